"""The tagger learns, on made-up and on real data."""

import numpy as np
import pytest
from lm_helpers import DATA

from rnnfast.tasks import SequenceTagger

from .helpers import QUICK

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tagger_needs_what_comes_later():
    """The tag says whether the word occurs again. Only an RNN that reads backwards can know."""
    rng = np.random.default_rng(3)
    X = [rng.choice(list("abc"), rng.integers(1, 6)).tolist() for _ in range(150)]
    y = [["B-Y" if word in words[i + 1 :] else "O" for i, word in enumerate(words)] for words in X]
    X.append([]), y.append([])
    model = SequenceTagger(**{**QUICK, "epochs": 40, "hidden_size": 16, "features": ("word",)})
    model.fit(X, y)
    assert model.metric == "chunk F1" and model.score(X, y) > 0.97
    one_way = SequenceTagger(**{**model.get_params(), "bidirectional": False}).fit(X, y)
    assert one_way.score(X, y) < 0.95
    assert [len(tags) for tags in model.predict(X)] == [len(words) for words in X]
    proba = model.predict_proba([["a", "b"], []])
    assert proba[0].shape == (2, 2) and proba[1].shape == (0, 2)


@pytest.mark.skipif(
    not (DATA / "conll2000").is_dir(), reason=f"no CoNLL-2000 in {DATA} (RNNFAST_DATA names it)"
)
def test_conll2000():
    from rnnfast.tasks.data import read_tagged

    X, y = read_tagged(DATA / "conll2000" / "train.txt")
    assert len(X) == 8936 and sum(map(len, X)) == 211727
    assert X[0][1] == ("in", "IN") and y[0][:3] == ["B-NP", "B-PP", "B-NP"]
    model = SequenceTagger(hidden_size=32, embedding_size=32, epochs=3, batch_size=8, patience=None)
    model.fit(X[:600], y[:600])
    # A bigram tagger that sees only the parts of speech, trained on all data, reaches about 0.77.
    assert model.score(X[600:800], y[600:800]) > 0.8
