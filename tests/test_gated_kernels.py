"""``rnnfast.functional.gru`` and ``lstm`` against the NumPy reference, by the rule of `rule`."""

import functools
from dataclasses import replace

import gated_rule
import pytest
import rule
import torch
from gated_rule import Case
from test_kernels import DTYPES, LAYOUTS, python

from rnnfast._ops import gated_rnn

CELLS = ["gru", "lstm"]
cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Every awkward size and option in some company; layouts, dtypes and cells multiply it.
SIZES = [
    Case(1, 1, 1, 1),
    Case(2, 2, 5, 7, gradients_of="output"),
    Case(19, 1, 1, 16, bias=False),
    Case(1, 5, 64, 33, bidirectional=True, with_hx=False),
    Case(19, 3, 5, 65, gradients_of="h_n", bidirectional=True),
    Case(2, 13, 64, 200, num_layers=2, bidirectional=True, bias=False, with_hx=False),
    Case(19, 1, 64, 257, gradients_of="output", with_hx=False),
    Case(19, 33, 5, 16, num_layers=3),
    Case(2, 33, 1, 257, gradients_of="h_n"),
    Case(19, 13, 5, 33, bidirectional=True),
]


@functools.cache
def judged(case):
    """The results of torch and those of the reference, which do not depend on what runs."""
    data = gated_rule.make(case)
    return gated_rule.run_baseline(case, data), gated_rule.run_reference(case, data)


def layout_of(size, cell, dtype):
    """Return a layout. Every size and cell meets each of them in some dtype."""
    return LAYOUTS[(size + CELLS.index(cell) + DTYPES.index(dtype)) % len(LAYOUTS)]


def check(case):
    ours = gated_rule.run_kernel(case, gated_rule.make(case))
    rule.check(ours, *judged(case), case.dtype)


@dtypes
@cells
@pytest.mark.parametrize("size", range(len(SIZES)))
def test_rule(isa, size, cell, dtype):
    layout = layout_of(size, cell, dtype)
    check(replace(SIZES[size], layout=layout, cell=cell, dtype=dtype))


LONGER = [
    Case(40, 9, 5, 33),
    Case(23, 6, 7, 19, num_layers=2, bidirectional=True),
    Case(130, 2, 17, 65, bias=False, with_hx=False),
    Case(300, 1, 8, 129, bidirectional=True),
]


@dtypes
@cells
@pytest.mark.parametrize("size", range(len(LONGER)))
def test_rule_with_resets(isa, size, cell, dtype):
    if dtype in rule.HALF and LONGER[size].T > 100:
        pytest.skip("float32 and float64 cover the long sequences")
    layout = layout_of(size, cell, dtype)
    check(replace(LONGER[size], layout=layout, cell=cell, dtype=dtype, with_reset=True))


@dtypes
@cells
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rule_for_long_sequences(bidirectional, cell, dtype):
    """The backward goes through them in blocks of steps, in which the directions meet."""
    layout = layout_of(bidirectional, cell, dtype)
    check(
        Case(200, 33, 5, 16, 2, bidirectional=bidirectional, layout=layout, dtype=dtype, cell=cell)
    )


@cells
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bidirectional_over_blocks_of_one_row(layout, cell):
    check(Case(1100, 1, 3, 70, bidirectional=True, layout=layout, cell=cell))


@cells
@pytest.mark.parametrize("rows", range(1, 34))
def test_every_number_of_rows(isa, rows, cell):
    """The height of the last tile takes every value."""
    check(Case(2, rows, 3, 17, cell=cell))


@cells
@pytest.mark.parametrize("hidden", [*range(2, 36), 63, 64, 65, 127, 128, 129])
def test_every_hidden_size(isa, hidden, cell):
    """The width of the last panel takes every value, in the widest vectors too."""
    check(Case(3, 2, 3, hidden, cell=cell))


@dtypes
@cells
@pytest.mark.parametrize("inputs, hidden", [(2, 5), (16, 64), (17, 70), (64, 257)])
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_single_step(isa, rows, inputs, hidden, cell, dtype):
    layout = LAYOUTS[rows % len(LAYOUTS)]
    options = {"bidirectional": True, "layout": layout, "dtype": dtype, "cell": cell}
    check(Case(1, rows, inputs, hidden, 2, **options))


@cells
@pytest.mark.parametrize("memory", ["strided", "transposed", "expanded"])
@dtypes
def test_not_contiguous(isa, dtype, memory, cell):
    layout = layout_of(len(memory), cell, dtype)
    options = {"layout": layout, "dtype": dtype, "memory": memory, "cell": cell}
    case = Case(4, 5, 7, 9, 2, bidirectional=True, **options)
    assert not gated_rule.make(case).input.is_contiguous()
    check(case)


@cells
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frozen", ["input", "hx", "c0", "weight 0", "weight 1", "weight 3"])
def test_some_need_no_gradient(layout, frozen, cell):
    """The other gradients are those of a call where everything needs one, bit for bit."""
    case = Case(3, 4, 5, 6, layout=layout, cell=cell)
    full = gated_rule.run_kernel(case, gated_rule.make(case))
    data = gated_rule.make(case)
    if frozen not in data.wanted:
        pytest.skip("a GRU has no cell state")
    data.wanted[frozen].requires_grad_(False)
    partial = gated_rule.run_kernel(case, data)
    assert full.keys() - partial.keys() == {f"d {frozen}"}
    for name, tensor in partial.items():
        assert torch.equal(tensor, full[name]), name


@cells
@pytest.mark.parametrize("wanted", ["hx", "c0"])
def test_gradients_only_of_one_state(wanted, cell):
    case = Case(3, 4, 5, 6, cell=cell)
    data = gated_rule.make(case)
    if wanted not in data.wanted:
        pytest.skip("a GRU has no cell state")
    expected = gated_rule.run_kernel(case, gated_rule.make(case))[f"d {wanted}"]
    for name, tensor in data.wanted.items():
        tensor.requires_grad_(name == wanted)
    assert torch.equal(gated_rule.run_kernel(case, data)[f"d {wanted}"], expected)


@cells
def test_inference_equals_training(isa, cell):
    """No gradient is needed, so the kernel saves nothing."""
    for layout in LAYOUTS:
        case = Case(5, 4, 3, 21, 2, bidirectional=True, layout=layout, cell=cell)
        data = gated_rule.make(case)
        expected = gated_rule.run_kernel(case, data)
        call = functools.partial(
            gated_rule.KERNELS[cell], data.input, data.states, data.weights,
            batch_first=layout == "batch", batch_sizes=data.batch_sizes, **case.options,
        )  # fmt: skip
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                output, h_n = call()
            for name, tensor in zip(
                ("output", "h_n", "c_n"), (output, *(h_n if cell == "lstm" else [h_n])),
                strict=False,
            ):  # fmt: skip
                assert not tensor.requires_grad
                assert torch.equal(tensor, expected[name])


@cells
@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout, with_reset, cell):
    case = Case(
        3, 3, 2, 4, 2, bidirectional=True, layout=layout, dtype=torch.float64, cell=cell,
        with_reset=with_reset,
    )  # fmt: skip
    data = gated_rule.make(case)

    def call(input, *tensors):
        states, weights = tensors[: 2 if cell == "lstm" else 1], tensors[-len(data.weights) :]
        output, h_n = gated_rule.KERNELS[cell](
            input, states if cell == "lstm" else states[0], weights, reset=data.reset,
            batch_first=layout == "batch", batch_sizes=data.batch_sizes, **case.options,
        )  # fmt: skip
        return output, *(h_n if cell == "lstm" else [h_n])

    states = data.states if cell == "lstm" else [data.hx]
    inputs = (data.input, *states, *data.weights)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@cells
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_tokens(isa, bidirectional, layout, cell):
    """They give the results of one-hot vectors, in both directions of both passes."""
    case = Case(
        6, 5, 7, 9, 2, bidirectional=bidirectional, layout=layout, dtype=torch.float64, cell=cell
    )
    data = gated_rule.make(case)
    tokens = torch.randint(7, data.input.shape[:-1])
    vectors = torch.nn.functional.one_hot(tokens, 7).double()
    results = [
        gated_rule.run_kernel(case, replace(data, input=input)) for input in (tokens, vectors)
    ]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    with pytest.raises(IndexError, match=r"token 7 is not in \[0, 7\)"):
        gated_rule.run_kernel(case, replace(data, input=tokens.clone().fill_(7)))


# Special values


@dtypes
@cells
def test_nothing_is_left_of_the_call_before(isa, dtype, cell):
    """Work space is used again; a reverse packed row reads the state before its own first step."""
    options = {"bidirectional": True, "with_hx": False, "layout": "packed", "cell": cell}
    case = Case(6, 5, 3, 19, dtype=dtype, **options)
    expected = gated_rule.run_kernel(case, gated_rule.make(case))
    data = gated_rule.make(replace(case, H=40))
    with torch.no_grad():
        data.input.fill_(float("nan"))
    gated_rule.run_kernel(replace(case, H=40), data)
    for name, found in gated_rule.run_kernel(case, gated_rule.make(case)).items():
        assert torch.equal(found, expected[name]), name
        assert found.isfinite().all(), name


@dtypes
@cells
@pytest.mark.parametrize("where", ["input", "hx", "c0", "weight 1"])
def test_nan(isa, where, cell, dtype):
    """NaN comes out where that of torch does. Other rows of the batch do not notice."""
    case = Case(4, 5, 3, 19, cell=cell, dtype=dtype)
    results = []
    for run in (gated_rule.run_baseline, gated_rule.run_kernel):
        data = gated_rule.make(case)
        if where not in data.wanted:
            pytest.skip("a GRU has no cell state")
        with torch.no_grad():
            data.wanted[where].view(-1, data.wanted[where].shape[-1])[2, 1] = torch.nan
        results.append(run(case, data))
    theirs, ours = results
    for name, expected in theirs.items():
        assert torch.equal(ours[name].isnan(), expected.isnan()), name
    if where != "weight 1":
        assert ours["output"][:, torch.arange(5) != 2].isfinite().all()


@dtypes
@cells
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_saturated_gates(isa, cell, dtype, size):
    """Arguments far from 0 give gates of 0 and 1 and derivatives of 0, and nothing infinite."""
    case = Case(7, 3, 4, 17, cell=cell, dtype=dtype)
    data = gated_rule.make(case)
    with torch.no_grad():
        data.weights[2].copy_(data.weights[2].sign() * size)
        data.weights[3].zero_()
    for name, found in gated_rule.run_kernel(case, data).items():
        assert found.isfinite().all(), name
    output = gated_rule.run_kernel(case, data)["output"]
    theirs = gated_rule.run_baseline(case, data)["output"]
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(output, theirs, rtol=tolerance, atol=tolerance)


# Threads and processes

THREADED = [
    Case(30, 1, 5, 257),
    Case(12, 33, 5, 257, layout="packed"),
    Case(3, 5, 64, 257, bidirectional=True, layout="batch"),
    Case(30, 9, 5, 129, bidirectional=True),
    Case(200, 2, 7, 65, num_layers=2, with_reset=True),
    Case(1, 2, 5, 401),
]


@dtypes
@cells
@pytest.mark.parametrize("case", THREADED, ids=lambda c: f"B{c.B}-H{c.H}-{c.layout}")
def test_threads_do_not_change_a_bit(isa, num_threads, case, cell, dtype):
    case = replace(case, dtype=dtype, cell=cell)
    data = gated_rule.make(case)
    num_threads(1)
    expected = gated_rule.run_kernel(case, data)
    for threads in (2, 3, 8):
        num_threads(threads)
        for name, tensor in gated_rule.run_kernel(case, data).items():
            assert torch.equal(tensor, expected[name]), (threads, name)


@cells
def test_rows_do_not_depend_on_the_batch(isa, cell):
    """A sequence gives the same bits alone and in company."""
    case = Case(6, 33, 5, 70, cell=cell)
    data = gated_rule.make(case)
    together = gated_rule.run_kernel(case, data)["output"]
    for row in (0, 4, 32):
        own = slice(row, row + 1)
        states = data.hx[:, own] if cell == "gru" else (data.hx[:, own], data.c0[:, own])
        output, _ = gated_rule.KERNELS[cell](data.input[:, own], states, data.weights)
        assert torch.equal(output, together[:, own])


@cells
def test_works_in_a_forked_worker(cell):
    """With one thread, as in the workers of a DataLoader, after the parent has used several."""
    finished = python(
        f"""
import os, signal, torch, gated_rule
case = gated_rule.Case(20, 33, 5, 257, cell={cell!r})
torch.set_num_threads(2)
expected = gated_rule.run_kernel(case, gated_rule.make(case))
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang is libgomp waiting for threads that were not forked
    torch.set_num_threads(1)
    found = gated_rule.run_kernel(case, gated_rule.make(case))
    same = all(torch.equal(found[name], expected[name]) for name in expected)
    os._exit(0 if same else 3)
assert os.waitpid(child, 0)[1] == 0, "the child failed"
"""
    )
    assert finished.returncode == 0, finished.stderr


# Errors that are raised before native code runs


PACKED = torch.tensor([3, 2, 2, 1])
# Each name has a pattern that the message must match, and what replaces an argument of a right
# call. G is the number of gates.
WRONG = {
    "hx batch": ("hx", lambda G: {"hx": torch.zeros(1, 4, 6)}),
    "hx layers": ("hx", lambda G: {"hx": torch.zeros(2, 3, 6)}),
    "hx size": ("hx", lambda G: {"hx": torch.zeros(1, 3, 7)}),
    "hx dtype": ("hx", lambda G: {"hx": torch.zeros(1, 3, 6, dtype=torch.float64)}),
    "weight_ih shape": ("weight_ih", lambda G: {"weight 0": torch.zeros(G * 6, 4)}),
    "weight_ih rows": ("weight_ih", lambda G: {"weight 0": torch.zeros(6, 5)}),
    "weight_hh rows": (
        r"weight_hh_l0 must be \(. \* H, H\)", lambda G: {"weight 1": torch.zeros(6, 6)},
    ),
    "bias_ih shape": ("bias_ih", lambda G: {"weight 2": torch.zeros(6)}),
    "bias_hh rank": ("bias_hh", lambda G: {"weight 3": torch.zeros(G * 6, 1)}),
    "input rank": ("input", lambda G: {"input": torch.zeros(4, 5)}),
    "int32 tokens": (
        r"int64: call input\.long", lambda G: {"input": torch.zeros(4, 3, dtype=torch.int32)},
    ),
    "packed, too few rows": (
        "batch_sizes", lambda G: {"batch_sizes": PACKED, "input": torch.zeros(7, 5)},
    ),
    "packed, growing": (
        "batch_sizes", lambda G: {"batch_sizes": PACKED.flip(0), "input": torch.zeros(8, 5)},
    ),
}  # fmt: skip


@cells
@pytest.mark.parametrize("gradient", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong, gradient, cell):
    named, change = WRONG[wrong]
    case = Case(4, 3, 5, 6, cell=cell)
    data = gated_rule.make(case)
    arguments = {"input": data.input, "hx": data.hx, "batch_sizes": None}
    arguments |= {f"weight {i}": w for i, w in enumerate(data.weights)}
    arguments |= change(case.gates)
    weights = [arguments.pop(f"weight {i}") for i in range(4)]
    if cell == "lstm":
        arguments["hx"] = (arguments["hx"], data.c0)
    with torch.set_grad_enabled(gradient), pytest.raises(RuntimeError, match=named):
        gated_rule.KERNELS[cell](weights=weights, **arguments)


@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 3, 6), (1, 3, 7)])
def test_wrong_cell_state(shape):
    data = gated_rule.make(Case(4, 3, 5, 6, cell="lstm"))
    with pytest.raises(RuntimeError, match="cx must be"):
        gated_rule.KERNELS["lstm"](data.input, (data.hx, torch.zeros(shape)), data.weights)


@cells
def test_what_is_no_state(cell):
    data = gated_rule.make(Case(4, 3, 5, 6, cell=cell))
    wrong = [3, (data.hx,), (data.hx,) * 3, (data.hx, None)]
    for hx in (*wrong, data.hx if cell == "lstm" else (data.hx, data.hx)):
        with pytest.raises(TypeError, match="hx must be a"):
            gated_rule.KERNELS[cell](data.input, hx, data.weights)


@cells
@pytest.mark.parametrize("weights", [3, 6, 8])
def test_wrong_number_of_weights(weights, cell):
    data = gated_rule.make(Case(4, 3, 5, 6, cell=cell))
    if (weights, cell) == (3, "lstm"):
        pytest.skip("three weights are those of projections without biases")
    with pytest.raises(ValueError, match="weights must hold 2 or 4"):
        gated_rule.KERNELS[cell](data.input, data.states, data.weights[:1] * weights)


def test_keep_nothing():
    """Without `keep` the operator returns the last output only, and saves nothing."""
    case = Case(4, 3, 5, 6, 3, cell="lstm")
    data = gated_rule.make(case)
    descriptor = gated_rule.GatedDescriptor(3, 1, False, "lstm", True)
    tensors = [t.detach() for t in (data.input, data.hx, data.c0)]
    weights = [w.detach() for w in data.weights]
    outs, _, c_n, saved = gated_rnn(*tensors, weights, None, descriptor, False)
    assert (len(outs), len(saved)) == (1, 0) and c_n.shape == (3, 3, 6)
