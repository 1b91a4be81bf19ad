"""ONNX export: a table that tells ``torch.onnx.export`` to write the operator as ONNX's ``RNN``.

This module needs onnx and onnxscript: ``pip install rnnfast[onnx]``. The number of time steps and
the batch size may be dynamic. Sequences of variable lengths are exported by the argument
``lengths`` of FastRNN, or with a ``PackedSequence`` whose data and batch sizes are inputs of the
model. ``pack_padded_sequence`` inside of a model cannot be exported, except by the older exporter
(``dynamo=False``), which does not need this module.

Example:
    >>> import torch
    >>> from rnnfast import FastRNN
    >>> from rnnfast.onnx import custom_translation_table
    >>> program = torch.onnx.export(
    ...     FastRNN(10, 20).eval(), (torch.randn(5, 3, 10),), dynamo=True, verbose=False,
    ...     dynamic_shapes={"input": {0: "T", 1: "B"}},
    ...     custom_translation_table=custom_translation_table,
    ... )
    >>> "RNN" in [node.op_type for node in program.model.graph]
    True

``program.save("model.onnx")`` writes the file.
"""

import torch
from onnxscript import ir
from onnxscript import opset18 as op

from ._ops import RNNDescriptor

__all__ = ["custom_translation_table"]


def _stack(tensors):
    """Return the ONNX value that holds ``tensors`` along a new first axis."""
    new_axis = op.Constant(value_ints=[0])
    return op.Concat(*(op.Unsqueeze(t, new_axis) for t in tensors), axis=0)


def _layers(x, h0, weights, lengths, descriptor):
    """Return the outputs of all layers and ``h_n``: each layer is one ``RNN`` of ONNX.

    Args:
        x, h0, weights: as described in rnnfast/_ops/schema.py, except that ``x`` is (T, B, I).
        lengths: the number of time steps of each sequence, an int64 value (B), or None.
        descriptor: the `RNNDescriptor` of the call.
    """
    D, per_direction = descriptor.directions, descriptor.weights_per_direction
    if lengths is not None:
        lengths = op.Cast(lengths, to=ir.DataType.INT32)
    zero, outs, states = op.Constant(value_ints=[0]), [], []
    for layer in range(descriptor.num_layers):
        count = descriptor.weights_per_layer
        own = weights[layer * count : (layer + 1) * count]
        B = None
        if descriptor.bias:
            pairs = zip(own[2::4], own[3::4], strict=True)
            B = _stack([op.Concat(b_ih, b_hh, axis=0) for b_ih, b_hh in pairs])
        initial = None
        if h0 is not None:
            first, last = (op.Constant(value_ints=[n * D]) for n in (layer, layer + 1))
            initial = op.Slice(h0, first, last, zero)
        y, h_n = op.RNN(
            x, _stack(own[0::per_direction]), _stack(own[1::per_direction]), B, lengths, initial,
            activations=["Relu" if descriptor.nonlinearity == "relu" else "Tanh"] * D,
            direction="bidirectional" if D == 2 else "forward",
            hidden_size=weights[1].shape[0],
        )  # fmt: skip
        # From (T, D, B, H) to (T, B, D * H).
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        outs.append(x)
        states.append(h_n)
    return outs, states[0] if len(states) == 1 else op.Concat(*states, axis=0)


def _vectors(x, weights):
    """Return the vectors that one-hot tokens stand for. ONNX's ``RNN`` does not read tokens."""
    if x.dtype != ir.DataType.INT64:
        return x
    values = op.CastLike(op.Constant(value_floats=[0.0, 1.0]), weights[0])
    return op.OneHot(x, op.Constant(value_ints=[weights[0].shape[1]]), values)


def _transposed(x, batch_first):
    """Return ``x`` with the first two axes swapped if ``batch_first``.

    ONNX Runtime does not support the attribute ``layout`` of ``RNN``.
    """
    return op.Transpose(x, perm=[1, 0, 2]) if batch_first else x


def _unpack(data, batch_sizes):
    """Return ``(x, lengths, rows)`` of a packed batch: padded, (T, B, I), and how to pack again.

    Row n of the data is the time step t of the sequence b, with ``rows[n] = (t, b)``.
    """
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    first, second = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    numbers = op.Range(zero, op.Gather(batch_sizes, zero), one)
    has_step = op.Less(numbers, op.Unsqueeze(batch_sizes, second))  # (T, B)
    rows = op.Transpose(op.NonZero(has_step), perm=[1, 0])
    lengths = op.ReduceSum(op.Cast(has_step, to=ir.DataType.INT64), first, keepdims=0)
    shape = op.Concat(op.Shape(has_step), op.Constant(value_ints=[data.shape[1]]), axis=0)
    zeros = op.Expand(op.CastLike(op.Constant(value_float=0.0), data), shape)
    return op.ScatterND(zeros, rows, data), lengths, rows


def _rnn(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    """Translate the operator ``rnn``. Its arguments are described in rnnfast/_ops/schema.py."""
    descriptor = RNNDescriptor.of_operator(weights, num_layers, batch_first, relu, bias)
    x = _vectors(x, weights)
    if batch_sizes is None:
        outs, h_n = _layers(_transposed(x, batch_first), h0, weights, None, descriptor)
        outs = [_transposed(out, batch_first) for out in outs]
    else:
        x, lengths, rows = _unpack(x, batch_sizes)
        outs, h_n = _layers(x, h0, weights, lengths, descriptor)
        outs = [op.GatherND(out, rows) for out in outs]
    return op.SequenceConstruct(*(outs if keep else outs[-1:])), h_n


def _rnn_padded(x, h0, weights, lengths, num_layers, batch_first, relu, bias):
    """Translate the operator ``rnn_padded``: each ``RNN`` of ONNX has ``sequence_lens``."""
    descriptor = RNNDescriptor.of_operator(weights, num_layers, batch_first, relu, bias)
    x = _transposed(_vectors(x, weights), batch_first)
    outs, h_n = _layers(x, h0, weights, lengths, descriptor)
    if h0 is not None:
        # An empty sequence keeps its state. ONNX Runtime would return zeros.
        is_empty = op.Equal(lengths, op.Constant(value_int=0))
        h_n = op.Where(op.Unsqueeze(is_empty, op.Constant(value_ints=[1])), h0, h_n)
    return _transposed(outs[-1], batch_first), h_n


# For the argument of torch.onnx.export with the same name.
custom_translation_table = {
    torch.ops.rnnfast.rnn.default: _rnn,
    torch.ops.rnnfast.rnn_padded.default: _rnn_padded,
}
