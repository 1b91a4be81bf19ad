"""``torch.jit.trace``, and what is built on it: TensorBoard's ``add_graph`` and the older exporter
of ONNX. A trace runs with other T, B and lengths than it was recorded with."""

import io

import pytest
import torch
from exported import Reader, load_onnx
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from rnnfast import FastGRU, FastLSTM, FastRNN, functional
from rnnfast.nn import Dropout

CONFIGURATIONS = {
    "plain": {},
    "stack": {"num_layers": 3, "bias": False, "dropout": 0.5, "with_hx": False},
    "everything": {
        "num_layers": 2, "bidirectional": True, "batch_first": True, "nonlinearity": "relu",
    },
    "one-hot": {"tokens": True, "with_hx": False},
    "gru": {"cls": FastGRU, "num_layers": 2, "bidirectional": True, "batch_first": True},
    "gru, one-hot": {"cls": FastGRU, "bias": False, "tokens": True, "with_hx": False},
    "lstm": {"cls": FastLSTM, "num_layers": 2, "bidirectional": True, "batch_first": True},
    "lstm, one-hot": {"cls": FastLSTM, "bias": False, "tokens": True, "with_hx": False},
}  # fmt: skip
READINGS = ["whole", "packed", "sorted", "lengths"]
SIZES = [(4, 3), (1, 1), (9, 2), (30, 7)]

# torch.jit.trace and the older exporter are deprecated, and warn of each value that they fix.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_trace(options, reading):
    """The parameters require gradients, as usual; the gradients are right, too."""
    model = Reader(reading, **options).eval()
    trace = torch.jit.trace(model, example_kwarg_inputs=model.example(4, 3))
    for T, B in SIZES:
        arguments = model.example(T, B)
        found, expected = trace(**arguments), model.expected(**arguments)
        torch.testing.assert_close(found, expected)
        sum(t.square().sum() for t in tree_leaves(found)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_trace_gives_the_gradients_of_torch():
    model = Reader("lengths", bidirectional=True)
    with torch.no_grad():  # the mode while a trace is recorded does not matter
        trace = torch.jit.trace(model, example_kwarg_inputs=model.example(4, 3))
    twin, arguments = model.with_torch(), model.example(9, 5)
    for call in (trace, twin):
        output, h_n = call(**arguments)
        (output.square().sum() + h_n.sum()).backward()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("cls", [FastRNN, FastGRU, FastLSTM])
@pytest.mark.parametrize("rows", [(), (3,)])
def test_trace_of_a_single_sequence_and_of_a_single_step(rows, cls):
    rnn = cls(5, 6)
    trace = torch.jit.trace(rnn, torch.randn(1, *rows, 5))
    x = torch.randn(8, *rows, 5)
    torch.testing.assert_close(trace(x), rnn(x))


def test_trace_of_regularisers():
    model = Reader("lengths", num_layers=2, variational_dropout=0.5, weight_dropout=0.5)
    trace = torch.jit.trace(model, example_kwarg_inputs=model.example(4, 3), check_trace=False)
    output, h_n = trace(**model.example(9, 5))
    assert output.shape == (9, 5, 4) and h_n.shape == (2, 5, 6)
    output.sum().backward()


def test_trace_of_the_loss_and_of_dropout():
    """They have autograd Functions as well, which a trace cannot record."""

    def call(x, weight, target):
        return functional.linear_cross_entropy(x, weight, target)

    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(4, 5)
    trace = torch.jit.trace(call, (x, weight, torch.randint(4, (6,))))
    x, target = torch.randn(9, 5), torch.randint(4, (9,))
    torch.testing.assert_close(trace(x, weight, target), F.cross_entropy(x @ weight.t(), target))

    ones = torch.ones(8, 5, requires_grad=True)
    trace = torch.jit.trace(Dropout(0.5), ones, check_trace=False)
    y = trace(torch.ones(1000))
    assert set(y.tolist()) == {0.0, 2.0}


def test_graph_of_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(FastRNN(5, 6, 2), torch.randn(4, 3, 5))
    (events,) = tmp_path.iterdir()
    assert b"aten::rnn_tanh" in events.read_bytes()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_older_exporter_of_onnx(options, reading):
    """The operators and the values are those of torch's modules, which that exporter knows."""
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    model, file = Reader(reading, **options).eval(), io.BytesIO()
    arguments = model.example(4, 3)

    def export():
        names, axes = [], {}
        for name, dims in model.dynamic(None).items():
            for n, of_one in enumerate(dims if isinstance(dims, tuple) else (dims,)):
                names.append(f"{name}{n}")
                axes[names[-1]] = {axis: f"{names[-1]}{axis}" for axis in of_one}
        torch.onnx.export(model, (arguments,), file, dynamo=False, input_names=names,
                          dynamic_axes=axes)  # fmt: skip

    if model.tokens and reading in ("packed", "sorted"):
        with pytest.raises(RuntimeError, match=r"give the module the padded tokens"):
            export()
        return
    export()
    kind = model.rnn.mode.partition("_")[0]
    nodes = [n for n in onnx.load_from_string(file.getvalue()).graph.node if n.op_type == kind]
    assert len(nodes) == model.rnn.num_layers
    assert all(bool(node.input[4]) is (reading != "whole") for node in nodes), "sequence_lens"
    run = load_onnx(file.getvalue())
    for T, B in SIZES:
        arguments = model.example(T, B)
        expected = tuple(tree_leaves(model.expected(**arguments)))
        torch.testing.assert_close(run(**arguments), expected, rtol=1e-5, atol=1e-5)
