"""Seeds, early stopping and interrupted training."""

import numpy as np
import pytest
import torch

from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier

from .helpers import FILMS, FROZEN, ORDER, QUICK, SIDES, TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_seeds():
    def proba(**changes):
        model = SequenceClassifier(**{**QUICK, "epochs": 2, "dropout": 0.2, **changes})
        return model.fit(TEXTS, ORDER).predict_proba(TEXTS)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = proba(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first, proba(seed=1))
    second = proba(seed=2)
    assert not np.array_equal(first, second)
    mean = (first + second) / 2
    np.testing.assert_allclose(proba(seed=1, ensemble=2), mean, rtol=0, atol=1e-12)


def test_early_stopping_keeps_the_best_and_stops():
    """The labels are random, so what the network learns does not improve the validation score."""
    rng = np.random.default_rng(6)
    X = [rng.choice(list("abcdefgh"), 5).tolist() for _ in range(60)]
    y, other = rng.integers(0, 2, (2, 60))
    seen = []
    model = SequenceClassifier(**{**QUICK, "epochs": 30, "patience": 2})
    model.fit(X, y, valid=(X, other), progress=seen.append)
    scores = [record["valid_score"] for record in seen]
    assert seen == model.history_ and len(scores) < 30
    assert model.score(X, other) == max(scores)
    assert len(scores) == scores.index(max(scores)) + 1 + 2
    held_out = SequenceClassifier(**{**QUICK, "epochs": 2, "patience": 2}).fit(X, y)
    assert held_out.history_[0]["valid_score"] in {k / 6 for k in range(7)}


def test_what_an_interrupted_training_leaves_is_not_fitted():
    def interrupt(record):
        raise KeyboardInterrupt

    model = SequenceClassifier(**FROZEN).fit(FILMS, SIDES)
    with pytest.raises(KeyboardInterrupt):
        model.fit(["x y z"] * 9, [1, 2, 3] * 3, progress=interrupt)
    with pytest.raises(UserError, match="is not fitted"):
        model.predict(FILMS)
