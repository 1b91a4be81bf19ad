"""``torch.export`` and ONNX: exported models run with other T and B than they were traced with."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim

from rnnfast import FastRNN

CONFIGURATIONS = {
    "plain": {},
    "stack": {"num_layers": 3, "bias": False},
    "everything": {
        "num_layers": 2, "bidirectional": True, "batch_first": True, "nonlinearity": "relu",
    },
    "one-hot": {"tokens": True, "with_hx": False},
}  # fmt: skip
SIZES = [(1, 1), (9, 2), (30, 7)]


class Tagger(nn.Module):
    """A model that reads features or, with ``tokens``, one-hot tokens. ``hx`` is optional."""

    def __init__(self, tokens=False, with_hx=True, **options):
        super().__init__()
        self.rnn = FastRNN(5, 6, **options)
        self.head = nn.Linear(6 * (1 + self.rnn.bidirectional), 4)
        self.tokens, self.with_hx = tokens, with_hx

    def forward(self, x, hx=None):
        output, h_n = self.rnn(x, hx)
        return self.head(output), h_n

    def example(self, T, B):
        rows = (B, T) if self.rnn.batch_first else (T, B)
        x = torch.randint(5, rows) if self.tokens else torch.randn(*rows, 5)
        if not self.with_hx:
            return (x,)
        return x, torch.randn(self.rnn.num_layers * (1 + self.rnn.bidirectional), B, 6)

    @property
    def dynamic_shapes(self):
        shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
        return shapes | ({"hx": {1: Dim.DYNAMIC}} if self.with_hx else {})


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_export(options):
    model = Tagger(**options)
    program = torch.export.export(model, model.example(4, 3), dynamic_shapes=model.dynamic_shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    calls = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert calls.count(torch.ops.rnnfast.rnn.default) == 1, "one operator, not T steps"
    for T, B in SIZES[1:]:  # torch.export treats a size of 1 as a constant
        arguments = model.example(T, B)
        for found, expected in zip(loaded(*arguments), model(*arguments), strict=True):
            torch.testing.assert_close(found, expected)


def test_export_of_a_single_step():
    """A graph of one time step has the operator as well; without a graph, nn.RNN's code runs it."""
    shapes = {"input": {1: Dim.DYNAMIC}}
    program = torch.export.export(FastRNN(5, 6), (torch.randn(1, 3, 5),), dynamic_shapes=shapes)
    calls = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert calls.count(torch.ops.rnnfast.rnn.default) == 1


# The exporter itself uses functions that Python and PyTorch have deprecated.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_onnx(options, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    from rnnfast.onnx import custom_translation_table

    model = Tagger(**options).eval()
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(
        model, model.example(4, 3), dynamo=True, dynamic_shapes=model.dynamic_shapes,
        custom_translation_table=custom_translation_table, verbose=False,
    )  # fmt: skip
    program.save(path)
    operators = [node.op_type for node in program.model.graph]
    assert operators.count("RNN") == model.rnn.num_layers
    assert not {"Loop", "Scan", "SequenceAt"} & set(operators)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1  # further threads would spin
    session = runtime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for T, B in SIZES:
        arguments = model.example(T, B)
        feed = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}
        with torch.no_grad():
            expected = model(*arguments)
        for found, tensor in zip(session.run(None, feed), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_refuses_packed_input():
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    from rnnfast.functional import rnn
    from rnnfast.onnx import custom_translation_table

    class Packed(nn.Module):
        def forward(self, data, batch_sizes, hx, w_ih, w_hh):
            return rnn(data, hx, [w_ih, w_hh], batch_sizes=batch_sizes)

    arguments = (torch.randn(5, 3), torch.tensor([2, 2, 1]), torch.randn(1, 2, 4),
                 torch.randn(4, 3), torch.randn(4, 4))  # fmt: skip
    with pytest.raises(torch.onnx.OnnxExporterError) as raised:
        torch.onnx.export(
            Packed().eval(), arguments, dynamo=True, verbose=False,
            custom_translation_table=custom_translation_table,
        )  # fmt: skip
    reason = raised.value
    while reason.__cause__ is not None:
        reason = reason.__cause__
    assert "padded input" in str(reason)
