"""The echo state network: it learns, forecasts, refuses what it cannot use, and is saved."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from rnnfast import tasks
from rnnfast.lm import UserError
from rnnfast.tasks import EchoState, SequenceRegressor
from rnnfast.tasks.echo_state import spectral_radius

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

WAVE = np.sin(np.arange(1001) / 5)
SMALL = {"units": 60, "washout": 50}


def plain_states(model, x):
    """Return the states of a fitted network by the equation in its docstring."""
    w = {name: value.double().numpy() for name, value in model._weights.items()}
    w_hh = np.zeros((model.units, model.units))
    for i in range(model.units):
        first, end = w["crow_indices"][i : i + 2].astype(int)
        w_hh[i, w["col_indices"][first:end].astype(int)] = w["values"][first:end]
    r, states = np.zeros(model.units), []
    for step in x:
        pre = w["weight_ih"] @ step + w_hh @ r + w["bias"]
        r = (1 - model.leak) * r + model.leak * np.tanh(pre)
        states.append(r)
    return np.array(states), w_hh


def test_the_reservoir_is_what_the_settings_say():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 2)), rng.normal(size=(300, 3))
    settings = {"leak": 0.4, "bias_scaling": 0.3, "input_scaling": 0.5, "spectral_radius": 0.7}
    model = EchoState(units=150, connections=4, ridge=0.1, washout=20, seed=3, **settings).fit(x, y)
    states, w_hh = plain_states(model, x)
    assert abs(np.linalg.eigvals(w_hh)).max() == pytest.approx(0.7)
    assert ((w_hh != 0).sum(1) == 4).all()
    weights = model._weights
    assert 0.45 < weights["weight_ih"].abs().max() <= 0.5
    assert 0.25 < weights["bias"].abs().max() <= 0.3
    # The readout is the solution of the normal equations.
    kept, targets = states[20:], y[20:]
    centred = kept - kept.mean(0)
    inner = centred.T @ centred + 0.1 * np.eye(150)
    w_out = np.linalg.solve(inner, centred.T @ (targets - targets.mean(0)))
    expected = (states - kept.mean(0)) @ w_out + targets.mean(0)
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-9)
    np.testing.assert_allclose(model.state_, states[-1], atol=1e-12)
    residual = ((targets - expected[20:]) ** 2).sum(0)
    total = ((targets - targets.mean(0)) ** 2).sum(0)
    assert model.score(x, y) == pytest.approx((1 - residual / total).mean())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forecast(dtype):
    model = EchoState(**SMALL, dtype=dtype).fit(WAVE[:-1], WAVE[1:])
    assert model.score(WAVE[:-1], WAVE[1:]) > 0.9999
    forecast = model.forecast(40)
    assert forecast.shape == (40,)
    np.testing.assert_allclose(forecast, np.sin(np.arange(1000, 1040) / 5), atol=0.05)
    # The prediction for a step is the input of the next one.
    again = model.predict(np.concatenate([WAVE[:-1], forecast]))[999:-1]
    np.testing.assert_allclose(again, forecast, atol=1e-4 if dtype == "float32" else 1e-10)
    np.testing.assert_allclose(model.forecast(40, WAVE[:-1]), forecast)
    assert model.forecast(0).shape == (0,)
    columns = EchoState(**SMALL).fit(WAVE[:-1, None], WAVE[1:, None])
    assert columns.forecast(2).shape == (2, 1) and columns.predict(WAVE).shape == (1001, 1)


def test_a_list_is_several_sequences():
    rng = np.random.default_rng(2)
    X = [rng.normal(size=(n, 2)) for n in (80, 120, 60)]
    y = [np.cumsum(x[:, 0]) / 10 for x in X]
    model = EchoState(**SMALL).fit(X, y)
    together = model.predict(X)
    for x, predicted in zip(X, together, strict=True):
        np.testing.assert_allclose(model.predict(x), predicted, atol=1e-9)
    single = EchoState(**SMALL).fit(X[1], y[1])
    assert single.predict(torch.tensor(X[1])).shape == (120,)
    # The washout is left out at the start of each sequence.
    changed = [np.concatenate([one[:50] + 9, one[50:]]) for one in y]
    assert model.score(X, changed) == model.score(X, y)
    np.testing.assert_array_equal(EchoState(**SMALL).fit(X, changed).predict(X[0]), together[0])


def test_seeds_and_scikit_learn():
    from sklearn.base import clone, is_regressor
    from sklearn.model_selection import GridSearchCV

    model = EchoState(**SMALL, seed=4)
    first = model.fit(WAVE[:-1], WAVE[1:]).predict(WAVE)
    np.testing.assert_array_equal(clone(model).fit(WAVE[:-1], WAVE[1:]).predict(WAVE), first)
    other = EchoState(**SMALL, seed=5).fit(WAVE[:-1], WAVE[1:]).predict(WAVE)
    assert not np.array_equal(first, other)
    assert is_regressor(model)
    X, y = [WAVE[:400], WAVE[100:500], WAVE[:300]], [WAVE[1:401], WAVE[101:501], WAVE[1:301]]
    search = GridSearchCV(model, {"leak": [0.5, 1.0]}, cv=3).fit(X, y)
    assert search.best_params_["leak"] in (0.5, 1.0) and search.best_score_ > 0.99


def test_copies_and_settings_that_change_after_fit():
    model = EchoState(**SMALL).fit(WAVE[:-1], WAVE[1:])
    first = model.predict(WAVE)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.predict(WAVE), first)
    assert pickle.loads(pickle.dumps(EchoState(units=3))).units == 3
    model.set_params(nonlinearity="relu", dtype="float32", units=5, leak=0.1)
    np.testing.assert_array_equal(copy.deepcopy(model).predict(WAVE), first)


def test_save_and_load(tmp_path):
    model = EchoState(units=np.int64(60), washout=50, dtype="float32").fit(WAVE[:-1], WAVE[1:])
    model.save(tmp_path / "m")
    for loaded in (tasks.load(tmp_path / "m"), EchoState.load(tmp_path / "m")):
        assert type(loaded) is EchoState and loaded.get_params() == model.get_params()
        np.testing.assert_array_equal(loaded.predict(WAVE), model.predict(WAVE))
        np.testing.assert_array_equal(loaded.forecast(5), model.forecast(5))
    with pytest.raises(UserError, match="holds a model"):
        model.save(tmp_path / "m")
    with pytest.raises(UserError, match="is of the class EchoState, not of SequenceRegressor"):
        SequenceRegressor.load(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "params": {**data["params"], "leak": 2}}))
    with pytest.raises(UserError, match=r"config\.json"):
        tasks.load(tmp_path / "m")
    config.write_text(json.dumps({**data, "estimator": "SequenceTagger"}))
    with pytest.raises(UserError, match="holds a SequenceTagger, not an EchoState"):
        EchoState.load(tmp_path / "m")


WRONG = {
    "units": {"units": 0},
    "leak": {"leak": 0.0},
    "spectral_radius": {"spectral_radius": -1},
    "connections": {"connections": 1.5},
    "nonlinearity": {"nonlinearity": "sine"},
    "dtype": {"dtype": "float16"},
    "washout": {"washout": -1},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_named(name):
    with pytest.raises(UserError, match=f"^{name} must be"):
        EchoState(**WRONG[name]).fit(WAVE, WAVE)


def test_wrong_arguments():
    x = np.zeros((100, 2))
    model = EchoState(**SMALL)
    for X, y, message in (
        (x, x[:-1], "y must have a target for each step"),
        (np.zeros((2, 3, 4)), x, "X must be finite numbers"),
        (np.full(100, np.nan), x, "X must be finite numbers"),
        ([x, x[:, :1]], [x, x], "X must have as many numbers"),
        ([], [], "X must have at least one sequence"),
        (["a", "b"], [x, x], r"X\[0\] must be an array of numbers"),
        (x[:50], x[:50], "X must have a sequence of more than 50 steps"),
    ):
        with pytest.raises(UserError, match=message):
            model.fit(X, y)
    with pytest.raises(UserError, match="is not fitted"):
        model.predict(x)
    model.fit(np.random.default_rng(0).normal(size=(100, 2)), np.zeros((100, 3)))
    with pytest.raises(UserError, match="X must have 2 numbers for each step"):
        model.predict(np.zeros(5))
    with pytest.raises(UserError, match="forecast needs as many outputs as inputs"):
        model.forecast(3)
    with pytest.raises(UserError, match="y must have 3 numbers"):
        model.score(x, x)
    with pytest.raises(UserError, match="steps must be a whole number"):
        EchoState(**SMALL).fit(WAVE, WAVE).forecast(1.5)


def test_spectral_radius():
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    for units in (1, 2, 99, 100, 101, 400):
        w = rng.normal(size=(units, units)) * (rng.random((units, units)) < max(0.05, 2 / units))
        found = spectral_radius(csr_array(w))
        assert found == pytest.approx(abs(np.linalg.eigvals(w)).max(), abs=1e-12)
