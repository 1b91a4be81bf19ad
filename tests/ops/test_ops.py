"""The operators ``torch.ops.rnnfast.*``: their errors, and how ``torch.compile`` treats them."""

import subprocess
import sys
from dataclasses import replace

import gated_rule
import pytest
import rule
import torch
from functorch.compile import make_boxed_func
from rule import Case
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from wrong_arguments import WRONG, check_message

from rnnfast import FastGRU, FastLSTM, FastRNN
from rnnfast._ops import GatedDescriptor, RNNDescriptor
from rnnfast.functional import rnn

CASES = [
    Case(4, 3, 5, 6),
    Case(4, 3, 5, 6, nonlinearity="relu", bidirectional=True, layout="batch"),
    Case(4, 3, 5, 6, bidirectional=True, bias=False, layout="packed", dtype=torch.float64),
    Case(4, 3, 5, 6, with_hx=False, layout="packed"),
    Case(4, 3, 5, 6, num_layers=3, bidirectional=True),
    Case(4, 3, 5, 6, num_layers=2, layout="packed"),
    Case(4, 3, 5, 6, layout="time", memory="transposed", bidirectional=True),
    Case(4, 3, 5, 6, layout="batch", memory="strided", dtype=torch.float64),
]


def operator_arguments(case, device="cpu"):
    """Return the data and the arguments of ``rnnfast::rnn`` except `keep`, without gradients."""
    data = rule.make(case, device)
    hx = None if data.hx is None else data.hx.detach()
    options = (
        case.num_layers,
        case.layout == "batch",
        case.nonlinearity == "relu",
        case.bias,
    )
    return data, (
        data.input.detach(),
        hx,
        [w.detach() for w in data.weights],
        data.batch_sizes,
        *options,
    )


def check_operators(case, device="cpu"):
    data, arguments = operator_arguments(case, device)
    for keep in (False, True):
        torch.library.opcheck(torch.ops.rnnfast.rnn.default, (*arguments, keep))
    outs, _ = torch.ops.rnnfast.rnn(*arguments, True)
    for dy, dh_n, needs in (
        (data.dy, data.dh_n, (True, case.with_hx, True)),
        (data.dy, None, (False, False, True)),
        (None, data.dh_n, (True, False, False)),
    ):
        torch.library.opcheck(
            torch.ops.rnnfast.rnn_backward.default, (dy, dh_n, outs, *arguments, *needs)
        )


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.layout}-{c.memory}-{c.dtype}-{c.num_layers}"
)
def test_opcheck(case):
    check_operators(case)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.layout}-{c.memory}-{c.dtype}-{c.num_layers}"
)
def test_operators_write_nothing_they_were_given(case):
    data, arguments = operator_arguments(case)
    given = [arguments[0], *arguments[2], data.dy, data.dh_n]
    given += [t for t in (arguments[1], arguments[3]) if t is not None]
    before = [t.clone() for t in given]
    outs, _ = torch.ops.rnnfast.rnn(*arguments, True)
    kept = [out.clone() for out in outs]
    needs = (True, case.with_hx, True)
    torch.ops.rnnfast.rnn_backward(data.dy, data.dh_n, outs, *arguments, *needs)
    for tensor, expected in zip([*given, *outs], [*before, *kept], strict=True):
        assert torch.equal(tensor, expected)


def test_descriptor():
    descriptor = RNNDescriptor(3, 2, batch_first=True, nonlinearity="relu", bias=True)
    weights = [f"{n} {kind}" for n in range(6) for kind in ("w_ih", "w_hh", "b_ih", "b_hh")]
    assert RNNDescriptor.of_operator(weights, *descriptor.options) == descriptor
    assert descriptor.weights_of(weights, 2, 1) == ["5 w_ih", "5 w_hh", "5 b_ih", "5 b_hh"]
    assert descriptor.num_states * descriptor.weights_per_direction == len(weights)
    assert descriptor.one_layer == descriptor._replace(num_layers=1)
    with pytest.raises(AttributeError):
        descriptor.bias = False


def test_gated_descriptor():
    descriptor = GatedDescriptor(3, 2, batch_first=True, cell="lstm", bias=False)
    weights = [f"{n} {kind}" for n in range(6) for kind in ("w_ih", "w_hh")]
    assert GatedDescriptor.of_operator(weights, *descriptor.options) == descriptor
    assert descriptor.weights_of(weights, 2, 1) == ["5 w_ih", "5 w_hh"]
    projected = [f"{n} {kind}" for n in range(6) for kind in ("w_ih", "w_hh", "w_hr")]
    assert descriptor.weights_of(projected, 2, 1) == ["5 w_ih", "5 w_hh", "5 w_hr"]
    assert descriptor.gates == 4 and descriptor._replace(cell="gru").gates == 3


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.layout}-{c.memory}-{c.dtype}-{c.num_layers}"
)
def test_opcheck_of_gated_cells(case, cell):
    """They write nothing that they were given, too."""
    options = {name: getattr(case, name) for name in Case.__dataclass_fields__}
    case = gated_rule.Case(**options, cell=cell)
    data = gated_rule.make(case)
    hx, c0 = (None if t is None else t.detach() for t in (data.hx, data.c0))
    weights = [w.detach() for w in data.weights]
    layout = (cell, case.num_layers, case.layout == "batch", case.bias)
    arguments = (data.input.detach(), hx, c0, weights, data.batch_sizes, *layout)
    for keep in (False, True):
        torch.library.opcheck(torch.ops.rnnfast.gated_rnn.default, (*arguments, keep))
    outs, _, _, saved = torch.ops.rnnfast.gated_rnn(*arguments, True)
    has_c0 = c0 is not None
    for dy, dh_n, dc_n, needs in (
        (data.dy, data.dh_n, data.dc_n, (True, case.with_hx, has_c0, True)),
        (data.dy, None, None, (False, False, False, True)),
        (None, data.dh_n, None, (True, False, False, False)),
    ):
        given = (dy, dh_n, dc_n, outs, saved, *arguments, *needs)
        torch.library.opcheck(torch.ops.rnnfast.gated_rnn_backward.default, given)


# torch.compile


def differentiated(call, data):
    output, h_n = call(data.input, data.hx, data.weights)
    wanted = list(data.wanted.values())
    return [output, h_n, *torch.autograd.grad((output, h_n), wanted, (data.dy, data.dh_n))]


def compare_compiled(case, backend, device="cpu"):
    case = replace(case, num_layers=2)
    data = rule.make(case, device)

    def call(input, hx, weights):
        return rnn(
            input, hx, weights,
            batch_first=case.layout == "batch", batch_sizes=data.batch_sizes, **case.options,
        )  # fmt: skip

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    eager, found = differentiated(call, data), differentiated(compiled, data)
    for tensor, expected in zip(found, eager, strict=True):
        torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.layout != "packed"], ids=lambda c: f"{c.layout}-{c.memory}"
)
def test_compile(case):
    compare_compiled(case, "aot_eager")


def test_compile_with_inductor():
    compare_compiled(CASES[1], "inductor")


def test_compile_other_lengths():
    """A graph that was compiled for one length also runs another length."""
    torch.compiler.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (4, 9):
        data = rule.make(Case(steps, 3, 5, 6))
        call = (data.input, data.hx, data.weights)
        for tensor, expected in zip(compiled(*call), rnn(*call), strict=True):
            torch.testing.assert_close(tensor, expected)


class Tagger(nn.Module):
    """A subclass of FastRNN inside another module."""

    def __init__(self):
        super().__init__()
        self.rnn = type("Own", (FastRNN,), {})(5, 6, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        output, h_n = self.rnn(x)
        return self.head(output), h_n


@pytest.mark.parametrize(
    "make",
    [
        lambda: FastRNN(5, 6, bidirectional=True),
        lambda: FastGRU(5, 6, bidirectional=True),
        lambda: FastLSTM(5, 6, bidirectional=True),
        Tagger,
    ],
    ids=["FastRNN", "FastGRU", "FastLSTM", "Tagger"],
)
def test_compile_module(make):
    """Forward and backward pass are one graph each, compiled once for every T and B."""
    torch.compiler.reset()
    module, counter = make(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for T, B in ((4, 3), (9, 2), (30, 7)):
        x = torch.randn(T, B, 5, requires_grad=True)
        results = []
        for call in (compiled, module):
            output, *final = tree_leaves(call(x))
            loss = output.square().sum() + sum(t.sum() for t in final)
            results.append([output, *final, *torch.autograd.grad(loss, [x, *module.parameters()])])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


@pytest.mark.parametrize("cls", [FastRNN, FastGRU, FastLSTM])
def test_compiled_graph_does_not_grow_with_length(cls):
    """The graphs of forward and backward pass have the same size for any T in the backend too."""
    sizes = []
    for T in (3, 300):
        torch.compiler.reset()
        graphs = []

        def count(graph, _, graphs=graphs):
            graphs.append(len(graph.graph.nodes))
            return make_boxed_func(graph.forward)

        backend = aot_autograd(fw_compiler=count)
        compiled = torch.compile(cls(5, 6), fullgraph=True, dynamic=False, backend=backend)
        compiled(torch.randn(T, 2, 5))[0].sum().backward()
        sizes.append(graphs)
    assert len(sizes[0]) == 2
    assert sizes[0] == sizes[1]


def test_dynamo_goes_on_refusing_other_rnns():
    for module in (nn.RNN(5, 6), nn.LSTM(5, 6)):
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
            torch.compile(module, fullgraph=True, backend="eager")(torch.randn(4, 3, 5))


@pytest.mark.parametrize("first", ["rnnfast", "torch._dynamo"])
def test_compile_whichever_is_imported_first(first):
    """Importing rnnfast does not import Dynamo, which would take a second."""
    program = f"""
import sys, torch, {first}
assert ("torch._dynamo" in sys.modules) is {first != "rnnfast"}
import rnnfast
torch.compile(rnnfast.FastRNN(5, 6), fullgraph=True, backend="eager")(torch.randn(4, 3, 5))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.filterwarnings("error:Dynamo does not know how to trace:UserWarning")
def test_compile_packed():
    """Graph breaks do not change the results, and the kernels are not traced."""
    torch.compiler.reset()
    x = pack_sequence([torch.randn(n, 5) for n in (4, 2, 1)])
    for module in (FastRNN(5, 6, 2), FastGRU(5, 6, 2), FastLSTM(5, 6, 2)):
        output, h_n = torch.compile(module, backend="aot_eager")(x)
        expected, expected_h_n = module(x)
        torch.testing.assert_close(output.data, expected.data)
        torch.testing.assert_close(h_n, expected_h_n)


# Errors that are raised before native code runs


@pytest.mark.parametrize("gradient", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong, gradient):
    with torch.set_grad_enabled(gradient):
        check_message(wrong)


@pytest.mark.parametrize("weights", [3, 5, 8])
def test_wrong_number_of_weights(weights):
    data = rule.make(Case(4, 3, 5, 6, 2))
    with pytest.raises(ValueError, match="weights"):
        rnn(data.input, data.hx, data.weights[:1] * weights, num_layers=1)


def test_wrong_nonlinearity():
    data = rule.make(Case(4, 3, 5, 6))
    with pytest.raises(ValueError, match="sigmoid"):
        rnn(data.input, data.hx, data.weights, nonlinearity="sigmoid")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [3, -0.1, float("nan")])
def test_wrong_dropout(dropout, training):
    data = rule.make(Case(4, 3, 5, 6))
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\], got"):
        rnn(data.input, data.hx, data.weights, dropout=dropout, training=training)


def test_what_is_no_tensor():
    data = rule.make(Case(4, 3, 5, 6))
    for input in (None, [[[1.0]]], data.input.detach().numpy()):
        with pytest.raises(TypeError, match="input must be a tensor, got"):
            rnn(input, data.hx, data.weights)
    with pytest.raises(TypeError, match="hx must be a tensor, got tuple"):
        rnn(data.input, (data.hx, data.hx), data.weights)


def test_no_layers():
    data = rule.make(Case(4, 3, 5, 6))
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        rnn(data.input, data.hx, data.weights, num_layers=0)


@pytest.mark.parametrize(
    "batch_sizes", [torch.tensor([3, 9, 3, 9, 3, 9])[::2], torch.tensor([3]).expand(3)]
)
def test_batch_sizes_with_strides(batch_sizes):
    """The kernels read batch_sizes through a pointer, so strides must not matter."""
    data = rule.make(Case(3, 3, 5, 6))
    flat = data.input.detach().reshape(9, 5)
    expected, _ = rnn(flat, data.hx, data.weights, batch_sizes=batch_sizes.contiguous())
    found, _ = rnn(flat, data.hx, data.weights, batch_sizes=batch_sizes)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("num_layers", "count", "match"),
    [
        (0, 4, "num_layers must be at least 1, got 0"),
        (-1, 4, "num_layers must be at least 1, got -1"),
        (1, 0, "weights must have 4 tensors for each of 1 layers .*, got 0"),
        (1, 1, "weights must have 4 tensors for each of 1 layers .*, got 1"),
        (2, 4, "weights must have 4 tensors for each of 2 layers .*, got 4"),
        (1, 12, "weights must have 4 tensors for each of 1 layers .*, got 12"),
    ],
)
def test_wrong_layers_of_an_operator(num_layers, count, match, device):
    x, weights = torch.randn(4, 3, 5, device=device), [torch.randn(6, 6, device=device)] * count
    lengths, operators = torch.ones(3, dtype=torch.int64, device=device), torch.ops.rnnfast
    plain, gated = (num_layers, False, False, True), ("gru", num_layers, False, True)
    for call in (
        lambda: operators.rnn(x, None, weights, None, *plain, False),
        lambda: operators.rnn_padded(x, None, weights, lengths, *plain),
        lambda: operators.gated_rnn(x, None, None, weights, None, *gated, False),
        lambda: operators.gated_rnn_padded(x, None, None, weights, lengths, *gated),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_views_that_negate():
    """A tensor may have a minus sign that is not in its memory."""
    data = rule.make(Case(4, 3, 5, 6))
    negated = torch.complex(data.input.detach(), -data.input.detach()).conj().imag
    assert negated.is_neg()
    found, _ = rnn(negated, data.hx, data.weights)
    torch.testing.assert_close(found, rnn(data.input, data.hx, data.weights)[0])
