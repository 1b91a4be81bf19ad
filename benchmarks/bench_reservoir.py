"""Time a step of a reservoir with sparse weights, and compare forecasts with ReservoirPy.

rnnfast's kernel, a loop of torch operators and the backends of ReservoirPy have the same weights,
and their states must agree before anything is timed. Samples alternate as in `rnnfast bench`.
"""

import argparse
import contextlib
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rnnfast import _ops, bench
from rnnfast.tasks import EchoState

SHAPES = "1000,5 1000,100"
STEPS = 500
LEAK = 0.3
# The settings of ReservoirPy's tutorial, except that each unit reads the input.
FORECAST = {"units": 500, "spectral_radius": 1.25, "leak": 0.3, "connections": 50, "ridge": 1e-8}


def torchs(w_ih, w_hh, x):
    """Return the states that a loop of torch operators computes."""
    r = x.new_zeros(len(w_ih))
    states = x.new_empty(len(x), len(w_ih))
    for t in range(len(x)):
        torch.lerp(r, torch.tanh(w_ih @ x[t] + w_hh @ r), LEAK, out=states[t])
        r = states[t]
    return states


def reservoirpys(w_ih, w_hh, x):
    """Return a function for each backend of ReservoirPy, by name, or {} if it is not installed."""
    try:
        import scipy.sparse
        from reservoirpy.nodes import Reservoir
    except ImportError:
        return {}
    sparse = scipy.sparse.csr_array((w_hh.values(), w_hh.col_indices(), w_hh.crow_indices()))
    dense, w_ih, x = sparse.toarray(), w_ih.numpy(), x.numpy()

    def numpys(w):
        node = Reservoir(W=w, Win=w_ih, lr=LEAK, dtype=x.dtype)
        node.initialize(x)
        zeros = {"out": np.zeros(len(w_ih), x.dtype)}  # by default they are float64
        return lambda: node._run(zeros, x)[1]

    ways = {"NumPy": numpys(sparse), "NumPy, dense": numpys(dense)}
    try:
        import jax
        from jax.experimental.sparse import BCOO
        from reservoirpy.jax.nodes import Reservoir as JaxReservoir
    except ImportError:
        return ways
    jax.config.update("jax_enable_x64", True)

    def jaxs(w):
        inputs, win = jax.numpy.asarray(x), jax.numpy.asarray(w_ih)
        # It takes a sparse matrix from a function only.
        node = JaxReservoir(len(win), W=lambda *_, **__: w, Win=win, lr=LEAK, dtype=x.dtype)
        node.initialize(inputs)
        run = jax.jit(node._run)  # node.run compiles anew in each call
        zeros = {"out": jax.numpy.zeros(len(win), x.dtype)}
        return lambda: np.asarray(run(zeros, inputs)[1])

    ways["JAX"] = jaxs(BCOO.from_scipy_sparse(sparse))
    ways["JAX, dense"] = jaxs(jax.numpy.asarray(dense))
    return ways


def measure(shape, dtype, repeats, steps=STEPS):
    """Return the median microseconds of a step of each implementation."""
    units, connections = shape
    rng = np.random.default_rng(0)
    columns = np.concatenate([np.sort(rng.choice(units, connections, False)) for _ in range(units)])
    values = torch.tensor(rng.normal(size=len(columns)) / np.sqrt(connections), dtype=dtype)
    starts = torch.arange(0, len(columns) + 1, connections)
    parts = (starts, torch.tensor(columns), values)
    w_hh = torch.sparse_csr_tensor(*parts, (units, units), check_invariants=True)
    w_ih = torch.tensor(rng.uniform(-1, 1, (units, 1)), dtype=dtype)
    x = torch.tensor(rng.normal(size=(steps, 1)), dtype=dtype)
    alpha = torch.full((units,), LEAK, dtype=dtype)
    native = _ops.reservoir(w_ih, parts, None, alpha, _ops.LeakyDescriptor(False, False, "tanh"))
    ways = {
        "rnnfast": lambda: _ops.run_reservoir(native, x[:, None])[0][:, 0],
        "torch": partial(torchs, w_ih, w_hh, x),
        **reservoirpys(w_ih, w_hh, x),
    }
    expected = np.asarray(ways["rnnfast"]())
    for name, way in ways.items():
        np.testing.assert_allclose(np.asarray(way())[:50], expected[:50], atol=1e-3, err_msg=name)
    medians = bench.median_seconds(ways, repeats)
    return {name: 1e6 / steps * seconds for name, seconds in medians.items()}


def forecasts(seeds):
    """Return the errors of EchoState and ReservoirPy on Mackey-Glass for each of `seeds` seeds.

    The networks predict the value 10 steps ahead. An error is the root of the mean squared error on
    the steps after the training data, divided by the standard deviation there (NRMSE).
    """
    from reservoirpy.datasets import mackey_glass
    from reservoirpy.mat_gen import uniform
    from reservoirpy.nodes import Reservoir, Ridge

    series = mackey_glass(2510)
    series = 2 * (series - series.min()) / np.ptp(series) - 1
    x, y, train, washout = series[:-10], series[10:], 2000, 100

    def error(predicted):
        return float(np.sqrt(((predicted - y)[train:] ** 2).mean()) / y[train:].std())

    found = {"rnnfast": [], "ReservoirPy": []}
    for seed in range(seeds):
        model = EchoState(**FORECAST, washout=washout, seed=seed).fit(x[:train], y[:train])
        found["rnnfast"].append(error(model.predict(x)))
        theirs = Reservoir(
            FORECAST["units"],
            lr=FORECAST["leak"],
            sr=FORECAST["spectral_radius"],
            rc_connectivity=FORECAST["connections"] / FORECAST["units"],
            Win=uniform(low=-1, high=1, connectivity=1.0),
            seed=seed,
        ) >> Ridge(ridge=FORECAST["ridge"])
        theirs.fit(x[:train], y[:train], warmup=washout)
        theirs.reset()
        found["ReservoirPy"].append(error(theirs.run(x)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Units and connections of each unit, separated by blanks (default: two)"
    parser.add_argument("--shapes", metavar="SHAPES", default=SHAPES, help=about)
    about = "Seeds of the forecasts of Mackey-Glass (default: 10)"
    parser.add_argument("--seeds", type=int, metavar="N", default=10, help=about)
    about = "Samples (default: as many as fit in 1.5 s a shape, at least 5)"
    parser.add_argument("--repeats", type=int, metavar="N", help=about)
    args = parser.parse_args()

    cases = {}
    for text in args.shapes.split():
        for dtype in (torch.float32, torch.float64):
            shape = [int(number) for number in text.split(",")]
            cases[f"{text} {str(dtype)[6:]}"] = measure(shape, dtype, args.repeats)
    table = Table("", title=f"us a step, {torch.get_num_threads()} threads")
    for case in cases:
        table.add_column(case, justify="right")
    for name in next(iter(cases.values())):
        table.add_row(name, *(f"{us[name]:.3g}" for us in cases.values()))
    ratios = (min(list(us.values())[1:]) / us["rnnfast"] for us in cases.values())
    table.add_row("fastest other / rnnfast", *(f"{ratio:.3g}" for ratio in ratios))
    Console().print(table)
    with contextlib.suppress(ImportError):
        table = Table("", "median NRMSE", "lowest", "highest", title=f"{args.seeds} seeds")
        for name, errors in forecasts(args.seeds).items():
            numbers = (np.median(errors), min(errors), max(errors))
            table.add_row(name, *(f"{number:.3g}" for number in numbers))
        Console().print(table)


if __name__ == "__main__":
    main()
