"""``torch.export`` and ONNX: exported models run with other T, B and lengths than those they were
traced with."""

import io

import pytest
import torch
from exported import Reader, load_onnx
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

from rnnfast import FastGRU, FastLSTM, FastRNN

CONFIGURATIONS = {
    "plain": {},
    "stack": {"num_layers": 3, "bias": False},
    "everything": {
        "num_layers": 2, "bidirectional": True, "batch_first": True, "nonlinearity": "relu",
    },
    "one-hot": {"tokens": True, "with_hx": False},
    "gru": {"cls": FastGRU, "num_layers": 2, "bidirectional": True, "batch_first": True},
    "gru, one-hot": {"cls": FastGRU, "bias": False, "tokens": True, "with_hx": False},
    "lstm": {"cls": FastLSTM, "num_layers": 2, "bidirectional": True, "batch_first": True},
    "lstm, one-hot": {"cls": FastLSTM, "bias": False, "tokens": True, "with_hx": False},
}  # fmt: skip
OPERATORS = {
    "whole": torch.ops.rnnfast.rnn.default,
    "lengths": torch.ops.rnnfast.rnn_padded.default,
}
GATED_OPERATORS = {
    "whole": torch.ops.rnnfast.gated_rnn.default,
    "lengths": torch.ops.rnnfast.gated_rnn_padded.default,
}
SIZES = [(1, 1), (9, 2), (30, 7)]


def export(model, arguments, **options):
    shapes = model.dynamic(Dim.DYNAMIC)
    return torch.export.export(model, (), arguments, dynamic_shapes=shapes, **options)


def operators(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("reading", OPERATORS)
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_export(options, reading):
    model = Reader(reading, **options)
    program = export(model, model.example(4, 3))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    operator = (GATED_OPERATORS if "cls" in options else OPERATORS)[reading]
    assert operators(program).count(operator) == 1, "one operator, not T steps"
    for T, B in SIZES[1:]:  # torch.export treats a size of 1 as a constant
        arguments = model.example(T, B)
        torch.testing.assert_close(loaded(**arguments), model.expected(**arguments))


@pytest.mark.parametrize("cls", [FastRNN, FastGRU, FastLSTM])
def test_export_of_a_single_step(cls):
    """A graph of one time step has the operator as well; without a graph, torch's code runs it."""
    shapes = {"input": {1: Dim.DYNAMIC}}
    program = torch.export.export(cls(5, 6), (torch.randn(1, 3, 5),), dynamic_shapes=shapes)
    operator = (OPERATORS if cls is FastRNN else GATED_OPERATORS)["whole"]
    assert operators(program).count(operator) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_lengths_checks_their_values_when_it_runs(strict):
    model = Reader("lengths", bidirectional=True)
    program = export(model, model.example(4, 3), strict=strict).module()
    arguments = model.example(6, 4)
    for wrong in ([7, 1, 1, 1], [2, 2, -1, 2]):
        with pytest.raises(ValueError, match=r"lengths must be 4 numbers in \[0, 6\], got"):
            program(**arguments | {"lengths": torch.tensor(wrong)})


def test_export_of_lengths_of_empty_sequences():
    """They have outputs of zero and keep their state; the others are as without them."""
    model = Reader("lengths", bidirectional=True)
    program = export(model, model.example(4, 3)).module()
    arguments = model.example(6, 4)
    output, h_n = program(**arguments | {"lengths": torch.tensor([0, 6, 0, 2])})
    torch.testing.assert_close(h_n[:, [0, 2]], arguments["hx"][:, [0, 2]])
    torch.testing.assert_close(output[:, [0, 2]], model.head.bias.expand(6, 2, 4))
    x, hx = (arguments[name][:, [1, 3]] for name in ("x", "hx"))
    expected = model.expected(x, hx, torch.tensor([6, 2]))
    torch.testing.assert_close((output[:, [1, 3]], h_n[:, [1, 3]]), expected)
    output, h_n = program(**arguments | {"lengths": torch.zeros(4, dtype=torch.int64)})
    torch.testing.assert_close(h_n, arguments["hx"])


@pytest.mark.parametrize("recorder", ["export", "trace"])
@pytest.mark.filterwarnings("ignore")
def test_zoneout_and_lengths_in_a_graph(recorder):
    """There the steps run one by one, so T is a constant; B and the lengths are not."""
    model = Reader("lengths", zoneout=0.3, bidirectional=True).eval()
    arguments = model.example(4, 3)
    if recorder == "export":
        shapes = model.dynamic(Dim.DYNAMIC) | {"x": {1: Dim.DYNAMIC}}
        call = torch.export.export(model, (), arguments, dynamic_shapes=shapes).module()
    else:
        call = torch.jit.trace(model, example_kwarg_inputs=arguments)
    arguments = model.example(4, 6)
    torch.testing.assert_close(call(**arguments), model(**arguments))


def test_export_of_lengths_with_dropout_and_autocast():
    model = Reader("lengths", num_layers=2, dropout=0.5, variational_dropout=0.5)
    output, h_n = export(model, model.example(4, 3)).module()(**model.example(9, 5))
    assert output.shape == (9, 5, 4) and h_n.shape == (2, 5, 6)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        program, arguments = export(model, model.example(4, 3)).module(), model.example(9, 5)
        found, expected = program(**arguments), model(**arguments)
    torch.testing.assert_close(found, expected)
    assert found[1].dtype == torch.bfloat16


@pytest.mark.parametrize("h0", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_opcheck_of_rnn_padded(batch_first, tokens, h0):
    rows = (3, 4) if batch_first else (4, 3)
    x = torch.randint(5, rows) if tokens else torch.randn(*rows, 5)
    weights = [w.detach() for w in FastRNN(5, 6, bidirectional=True).parameters()]
    hx = torch.randn(3, 2, 6).transpose(0, 1) if h0 else None
    lengths = torch.tensor([2, 0, 4])
    options = (1, batch_first, False, True)
    torch.library.opcheck(OPERATORS["lengths"], (x, hx, weights, lengths, *options))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("h0", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_opcheck_of_gated_rnn_padded(batch_first, tokens, h0, cell):
    rows = (3, 4) if batch_first else (4, 3)
    x = torch.randint(5, rows) if tokens else torch.randn(*rows, 5)
    module = (FastGRU if cell == "gru" else FastLSTM)(5, 6, bidirectional=True)
    weights = [w.detach() for w in module.parameters()]
    states = [torch.randn(3, 2, 6).transpose(0, 1) if h0 else None for _ in range(2)]
    states = states if cell == "lstm" else [states[0], None]
    lengths = torch.tensor([2, 0, 4])
    options = (cell, 1, batch_first, True)
    torch.library.opcheck(GATED_OPERATORS["lengths"], (x, *states, weights, lengths, *options))


@pytest.mark.parametrize("cls", [FastGRU, FastLSTM])
def test_export_of_lengths_of_empty_sequences_of_gated_cells(cls):
    """They have outputs of zero and keep their states."""
    model = Reader("lengths", cls=cls, bidirectional=True)
    program = export(model, model.example(4, 3)).module()
    arguments = model.example(6, 4) | {"lengths": torch.tensor([0, 6, 0, 2])}
    output, h_n = program(**arguments)
    torch.testing.assert_close(output[:, [0, 2]], model.head.bias.expand(6, 2, 4))
    for last, first in zip(tree_leaves(h_n), tree_leaves(arguments["hx"]), strict=True):
        torch.testing.assert_close(last[:, [0, 2]], first[:, [0, 2]])
    torch.testing.assert_close((output, h_n), model(**arguments))


class Packed(nn.Module):
    """A model whose input is the data and the batch sizes of a PackedSequence."""

    def __init__(self, cls=FastRNN, **options):
        super().__init__()
        self.rnn = cls(5, 6, **options)

    def forward(self, data, batch_sizes, hx=None):
        output, h_n = self.rnn(PackedSequence(data, batch_sizes), hx)
        return output.data, h_n

    def example(self, *lengths, with_hx):
        x = torch.randn(max(lengths), len(lengths), 5)
        packed = pack_padded_sequence(x, torch.tensor(lengths))
        arguments = {"data": packed.data, "batch_sizes": packed.batch_sizes}
        states = self.rnn.num_layers * (1 + self.rnn.bidirectional)
        return arguments | ({"hx": torch.randn(states, len(lengths), 6)} if with_hx else {})

    def dynamic(self, dim):
        return {"data": {0: dim}, "batch_sizes": {0: dim}, "hx": {1: dim}}


PACKED_LENGTHS = [(4, 2, 1), (1,), (9, 9, 9, 2), (30, 7, 7, 7, 1)]


@pytest.mark.parametrize("cls", [FastRNN, FastGRU])
@pytest.mark.parametrize("with_hx", [False, True])
def test_export_of_a_packed_input(with_hx, cls):
    model = Packed(cls, num_layers=2, bidirectional=True)
    arguments = model.example(4, 2, 1, with_hx=with_hx)
    shapes = {name: model.dynamic(Dim.DYNAMIC)[name] for name in arguments}
    program = torch.export.export(model, (), arguments, dynamic_shapes=shapes).module()
    for lengths in PACKED_LENGTHS[2:]:
        arguments = model.example(*lengths, with_hx=with_hx)
        torch.testing.assert_close(program(**arguments), model(**arguments))


def test_export_says_what_to_do_in_place_of_packing():
    """torch has no right shapes for a batch that the model itself packs."""
    model = Reader("packed")
    with pytest.raises(RuntimeError, match=r"rnn\(input, hx, lengths=lengths\)"):
        torch.export.export(model, (), model.example(4, 3))


def run_onnx(model, arguments, shapes, path):
    """Export a model, and return the nodes of the graph and a function that runs the file."""
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    from rnnfast.onnx import custom_translation_table

    program = torch.onnx.export(
        model.eval(), (), kwargs=arguments, dynamo=True, dynamic_shapes=shapes, verbose=False,
        custom_translation_table=custom_translation_table,
    )  # fmt: skip
    program.save(path)
    return list(program.model.graph), load_onnx(path)


def sequence_lens(nodes):
    """Return that input of each recurrent node, or None where a node has no such input."""
    recurrent = ("RNN", "GRU", "LSTM")
    return [dict(enumerate(n.inputs)).get(4) for n in nodes if n.op_type in recurrent]


# The exporter itself uses functions that Python and PyTorch have deprecated.
ignore_deprecations = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@ignore_deprecations
@pytest.mark.parametrize("reading", OPERATORS)
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_onnx(options, reading, tmp_path):
    model = Reader(reading, **options)
    shapes = model.dynamic(Dim.DYNAMIC)
    nodes, run = run_onnx(model, model.example(4, 3), shapes, tmp_path / "model.onnx")
    lens = sequence_lens(nodes)
    assert len(lens) == model.rnn.num_layers
    assert all((value is not None) is (reading == "lengths") for value in lens)
    assert not {"Loop", "Scan", "SequenceAt"} & {node.op_type for node in nodes}
    for T, B in SIZES:
        arguments = model.example(T, B)
        expected = tuple(tree_leaves(model.expected(**arguments)))
        torch.testing.assert_close(run(**arguments), expected, rtol=1e-5, atol=1e-5)
    if reading == "lengths" and model.with_hx:  # an empty sequence keeps its state
        arguments["lengths"][2] = 0
        _, *final = run(**arguments)
        for last, first in zip(final, tree_leaves(arguments["hx"]), strict=True):
            torch.testing.assert_close(last[:, 2], first[:, 2])


@ignore_deprecations
@pytest.mark.parametrize("cls", [FastRNN, FastGRU])
@pytest.mark.parametrize("with_hx", [False, True])
def test_onnx_of_a_packed_input(with_hx, cls, tmp_path):
    model = Packed(cls, num_layers=2, bidirectional=True)
    arguments = model.example(4, 2, 1, with_hx=with_hx)
    shapes = {name: model.dynamic(Dim.DYNAMIC)[name] for name in arguments}
    nodes, run = run_onnx(model, arguments, shapes, tmp_path / "model.onnx")
    lens = sequence_lens(nodes)
    assert len(lens) == 2 and None not in lens
    for lengths in PACKED_LENGTHS:
        arguments = model.example(*lengths, with_hx=with_hx)
        torch.testing.assert_close(run(**arguments), model(**arguments), rtol=1e-5, atol=1e-5)


@ignore_deprecations
def test_onnx_says_what_to_do_in_place_of_packing(tmp_path):
    model = Reader("packed")
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"rnn\(input, hx, lengths=lengths\)"):
        run_onnx(model, model.example(4, 3), None, tmp_path / "model.onnx")
