"""The regressor learns a number, several numbers, and a number for each time step."""

import numpy as np
import pytest

from rnnfast.tasks import SequenceRegressor

from .helpers import QUICK

pytestmark = pytest.mark.usefixtures("one_thread")


def test_regressor_of_a_sequence_and_of_every_step():
    rng = np.random.default_rng(4)
    X = [rng.normal(size=(rng.integers(1, 8), 2)).astype("float32") for _ in range(200)]
    settings = {**QUICK, "epochs": 25, "hidden_size": 16}
    means = np.array([5 + 100 * x.mean(0) for x in X])
    both = SequenceRegressor(**settings).fit(X, means)
    assert both.predict(X[:3]).shape == (3, 2) and both.score(X, means) > 0.95
    one = SequenceRegressor(**settings, pooling="last").fit(X, means[:, 0])
    assert one.predict(X[:3]).shape == (3,) and one.score(X, means[:, 0]) > 0.9
    nothing = np.zeros((0, 2), "float32")
    assert one.fit([nothing, *X], [0, *means[:, 0]]).predict([nothing]).shape == (1,)
    sums = [x[:, 0].cumsum() for x in X]
    steps = SequenceRegressor(**settings, every_step=True).fit(X, sums)
    predicted = steps.predict(X)
    assert [len(p) for p in predicted] == [len(x) for x in X]
    assert [len(p) for p in steps.predict([nothing, X[0]])] == [0, len(X[0])]
    assert [len(p) for p in steps.predict([nothing])] == [0]
    flat, true = np.concatenate(predicted), np.concatenate(sums)
    r2 = 1 - ((flat - true) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    assert steps.score(X, sums) == pytest.approx(r2) and r2 > 0.9
