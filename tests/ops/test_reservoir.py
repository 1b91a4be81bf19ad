"""The leaky recurrence with sparse recurrent weights, against loops of the same equations."""

from itertools import pairwise

import numpy as np
import pytest
import rule
import torch
from torch.nn import functional

from rnnfast import _ops

STATES = ("rate", "current")
# The functions by name, for the plain loops in NumPy and in torch.
WIDE = {
    "tanh": np.tanh,
    "relu": lambda v: np.maximum(v, 0),
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "softplus": lambda v: np.logaddexp(v, 0),
    "linear": lambda v: v,
}
TORCHS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "linear": lambda v: v,
}
# T, B, I, H, and the density of W_hh. From 0.2 on, AVX-512 picks elements out of two vectors.
SIZES = [
    (1, 1, 1, 1, 1.0),
    (4, 2, 3, 7, 0.3),
    (5, 1, 0, 65, 0.05),
    (6, 3, 2, 257, 0.01),
    (6, 1, 1, 257, 0.3),
]


def make(T, B, inputs, H, density, dtype, seed=0):
    """Return the tensors of a call, with W_hh as a dense matrix. Some of its rows are empty."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    mask = torch.rand(H, H, generator=generator) < density
    mask[2::5] = False
    w_hh = draw(H, H) * mask / max(1, (H * density) ** 0.5)
    tensors = {"x": draw(T, B, inputs), "hx": draw(B, H), "addend": draw(T, B, H)}
    tensors |= {"w_ih": draw(H, inputs), "w_hh": w_hh, "bias": draw(H), "alpha": draw(H).abs()}
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    return tensors | {"reset": torch.rand(T, B, generator=generator) < 0.3}


def parts(w, index=torch.int64):
    """Return the parts of a dense matrix as a sparse CSR tensor."""
    row, column = w.nonzero(as_tuple=True)
    starts = torch.zeros(len(w) + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(row, minlength=len(w)).cumsum(0)
    return starts.to(index), column.to(index), w[row, column]


def run(data, nonlinearity, state, **changes):
    """Run the kernel on the tensors of `make`, some of which `changes` may replace."""
    data = {**data, "w_hh": parts(data["w_hh"]), **changes}
    names = ("w_ih", "w_hh", "bias", "alpha")
    leak = _ops.LeakyDescriptor(False, state == "current", nonlinearity)
    native = _ops.reservoir(*(data[name] for name in names), leak)
    return _ops.run_reservoir(native, *(data[name] for name in ("x", "hx", "reset", "addend")))


def loop(data, f, state, where, stack):
    """Run the recurrence in plain operations of NumPy or torch."""
    s, outputs, a = data["hx"], [], data["alpha"]
    for t in range(len(data["x"])):
        s = where(data["reset"][t][:, None], 0 * s, s)
        r = f(s) if state == "current" else s
        pre = data["x"][t] @ data["w_ih"].T + r @ data["w_hh"].T + data["bias"] + data["addend"][t]
        s = (1 - a) * s + a * (pre if state == "current" else f(pre))
        outputs.append(f(s) if state == "current" else s)
    return {"r": stack(outputs), "last": s}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("nonlinearity", WIDE)
def test_the_rule(nonlinearity, state, dtype, isa):
    wide = np.longdouble if dtype == torch.float64 else np.float64
    for sizes in SIZES:
        data = make(*sizes, dtype)
        r, last = run(data, nonlinearity, state)
        torchs = loop(data, TORCHS[nonlinearity], state, torch.where, torch.stack)
        arrays = {
            name: value.numpy() if name == "reset" else value.double().numpy().astype(wide)
            for name, value in data.items()
        }
        truth = loop(arrays, WIDE[nonlinearity], state, np.where, np.stack)
        rule.check({"r": r, "last": last}, torchs, truth, dtype)


@pytest.mark.parametrize("state", STATES)
def test_threads_do_not_change_a_bit(state, num_threads, isa):
    for sizes in ((30, 1, 2, 600, 0.4), (30, 2, 2, 600, 0.4), (20, 5, 2, 300, 0.3)):
        data = make(*sizes, torch.float32)
        results = []
        for threads in (1, 2, 3):
            num_threads(threads)
            results.append(run(data, "tanh", state))
        for other in results[1:]:
            assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


def test_indices_of_any_kind():
    data = make(4, 2, 3, 70, 0.2, torch.float64)
    r, last = run(data, "tanh", "rate")
    short = run(data, "tanh", "rate", w_hh=parts(data["w_hh"], torch.int32))
    assert torch.equal(short[0], r) and torch.equal(short[1], last)
    # The columns of a row may have any order, and a column may come twice.
    starts, columns, values = parts(data["w_hh"])
    order = torch.cat([torch.arange(i, j).flip(0) for i, j in pairwise(starts)])
    twice = columns[order].repeat_interleave(2), values[order].repeat_interleave(2) / 2
    other, _ = run(data, "tanh", "rate", w_hh=(2 * starts, *twice))
    torch.testing.assert_close(other, r)


@pytest.mark.parametrize("state", STATES)
def test_what_is_left_out_is_zero(state):
    data = make(5, 2, 3, 40, 0.2, torch.float64)
    zeros = {name: torch.zeros_like(data[name]) for name in ("hx", "reset", "addend", "bias")}
    expected = run(data, "sigmoid", state, **zeros)
    found = run(data, "sigmoid", state, **dict.fromkeys(zeros))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("state", STATES)
def test_a_call_goes_on_where_the_last_one_ended(state):
    data = make(7, 2, 3, 130, 0.2, torch.float32)
    whole, last = run(data, "tanh", state)
    first = {name: data[name][:3] for name in ("x", "reset", "addend")}
    rest = {name: data[name][3:] for name in first}
    begin, middle = run(data, "tanh", state, **first)
    end, after = run(data, "tanh", state, **rest, hx=middle)
    assert torch.equal(torch.cat([begin, end]), whole) and torch.equal(after, last)


def test_layouts():
    data = make(6, 3, 4, 33, 0.3, torch.float32)
    r, _ = run(data, "tanh", "rate")
    strided = {
        "x": data["x"].transpose(0, 1).contiguous().transpose(0, 1),
        "addend": data["addend"].repeat(1, 1, 2)[..., :33],
        "hx": data["hx"].t().contiguous().t(),
        "reset": data["reset"].t().contiguous().t(),
        "w_ih": data["w_ih"].t().contiguous().t(),
    }
    assert torch.equal(run(data, "tanh", "rate", **strided)[0], r)
    columns = data["x"].transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(run(data, "tanh", "rate", x=columns)[0], r)


STARTS, COLUMNS, VALUES = parts(torch.eye(4))
FLOAT64 = torch.zeros(2, 3, 4, dtype=torch.float64)
WRONG = {
    "input rank": (RuntimeError, "input", {"x": torch.zeros(2, 2)}),
    "input size": (RuntimeError, "input", {"x": torch.zeros(2, 3, 5)}),
    "input dtype": (RuntimeError, "input", {"x": FLOAT64[..., :2]}),
    "no steps": (RuntimeError, "input", {"x": torch.zeros(0, 3, 2)}),
    "hx": (RuntimeError, "hx", {"hx": torch.zeros(3, 5)}),
    "reset dtype": (RuntimeError, "reset", {"reset": torch.zeros(2, 3)}),
    "reset shape": (RuntimeError, "reset", {"reset": torch.zeros(3, 2, dtype=torch.bool)}),
    "addend": (RuntimeError, "addend", {"addend": FLOAT64}),
    "weight_ih rank": (RuntimeError, "weight_ih", {"w_ih": torch.zeros(4)}),
    "weight_ih dtype": (RuntimeError, "weight_ih", {"w_ih": torch.zeros(4, 2).half()}),
    "bias": (RuntimeError, "bias", {"bias": torch.zeros(5)}),
    "alpha": (RuntimeError, "alpha", {"alpha": torch.zeros(1)}),
    "starts size": (RuntimeError, "crow_indices", {"w_hh": (STARTS[1:], COLUMNS, VALUES)}),
    "starts dtype": (RuntimeError, "crow_indices", {"w_hh": (STARTS.float(), COLUMNS, VALUES)}),
    "starts fall": (ValueError, "crow_indices", {"w_hh": (STARTS.flip(0), COLUMNS, VALUES)}),
    "starts end": (ValueError, "crow_indices", {"w_hh": (STARTS // 2, COLUMNS, VALUES)}),
    "column high": (IndexError, "col_indices", {"w_hh": (STARTS, COLUMNS + 1, VALUES)}),
    "column low": (IndexError, "col_indices", {"w_hh": (STARTS, COLUMNS - 1, VALUES)}),
    "columns rank": (RuntimeError, "col_indices", {"w_hh": (STARTS, COLUMNS[None], VALUES)}),
    "values size": (RuntimeError, "values", {"w_hh": (STARTS, COLUMNS, VALUES[1:])}),
    "values dtype": (RuntimeError, "values", {"w_hh": (STARTS, COLUMNS, VALUES.double())}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(wrong):
    error, name, changes = WRONG[wrong]
    with pytest.raises(error, match=name):
        run(make(2, 3, 2, 4, 0.5, torch.float32), "tanh", "rate", **changes)


def test_a_wrong_nonlinearity_is_named():
    data = make(2, 3, 2, 4, 0.5, torch.float32)
    with pytest.raises(ValueError, match=r"nonlinearity must be tanh, relu.* got sine"):
        run(data, "sine", "rate")
