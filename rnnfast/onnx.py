"""ONNX export: a table that tells ``torch.onnx.export`` to write ONNX's ``RNN``, ``GRU``, ``LSTM``.

This module needs onnx and onnxscript: ``pip install rnnfast[onnx]``. The number of time steps and
the batch size may be dynamic. Sequences of variable lengths are exported by the argument
``lengths`` of the modules, or with a ``PackedSequence`` whose data and batch sizes are inputs of
the model. ``pack_padded_sequence`` inside of a model cannot be exported, except by the older
exporter (``dynamo=False``), which does not need this module.

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

from ._ops import GatedDescriptor, RNNDescriptor

__all__ = ["custom_translation_table"]


def _stack(tensors):
    """Return the ONNX value that holds ``tensors`` along a new first axis."""
    new_axis = op.Constant(value_ints=[0])
    return op.Concat(*(op.Unsqueeze(t, new_axis) for t in tensors), axis=0)


# The order in which ONNX has the gates, as numbers in the order of torch.
_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


def _reordered(weight, descriptor, H):
    """Return a weight or a bias with its gates in the order of ONNX."""
    order, zero = _GATES.get(descriptor.cell), op.Constant(value_ints=[0])
    if order is None:
        return weight
    bounds = [(op.Constant(value_ints=[n * H]), op.Constant(value_ints=[n * H + H])) for n in order]
    return op.Concat(*(op.Slice(weight, *bound, zero) for bound in bounds), axis=0)


def _node(x, w_ih, w_hh, B, lengths, initial, descriptor, H):
    """Return the outputs of one layer: y, (T, D, B, H), and its final states."""
    D = descriptor.directions
    options = {"direction": "bidirectional" if D == 2 else "forward", "hidden_size": H}
    inputs = (x, w_ih, w_hh, B, lengths)
    if descriptor.cell == "lstm":
        return op.LSTM(*inputs, *(initial or (None, None)), **options)
    initial = initial[0] if initial else None
    if descriptor.cell == "gru":
        return op.GRU(*inputs, initial, linear_before_reset=1, **options)
    activations = ["Relu" if descriptor.cell == "relu" else "Tanh"] * D
    return op.RNN(*inputs, initial, activations=activations, **options)


def _layers(x, hx, weights, lengths, descriptor):
    """Return the outputs of all layers and the final states: each layer is one node of ONNX.

    Args:
        x, weights: as described in rnnfast/_ops/schema.py, except that ``x`` is (T, B, I).
        hx: the initial states: none, h0, or h0 and c0.
        lengths: the number of time steps of each sequence, an int64 value (B), or None.
        descriptor: the description of the call.
    """
    D, H = descriptor.directions, weights[1].shape[1]
    weights = [_reordered(weight, descriptor, H) for weight in weights]
    if lengths is not None:
        lengths = op.Cast(lengths, to=ir.DataType.INT32)
    zero, outs, final = op.Constant(value_ints=[0]), [], []
    for layer in range(descriptor.num_layers):
        own = [descriptor.weights_of(weights, layer, direction) for direction in range(D)]
        B = None
        if descriptor.bias:
            B = _stack([op.Concat(b_ih, b_hh, axis=0) for _, _, b_ih, b_hh in own])
        first, last = (op.Constant(value_ints=[n * D]) for n in (layer, layer + 1))
        initial = [op.Slice(state, first, last, zero) for state in hx]
        w_ih, w_hh = (_stack([direction[n] for direction in own]) for n in (0, 1))
        y, *states = _node(x, w_ih, w_hh, B, lengths, initial, descriptor, H)
        # From (T, D, B, H) to (T, B, D * H).
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        outs.append(x)
        final.append(states)
    if len(final) == 1:
        return outs, final[0]
    return outs, [op.Concat(*states, axis=0) for states in zip(*final, strict=True)]


def _vectors(x, weights):
    """Return the vectors that one-hot tokens stand for. ONNX does not read tokens."""
    if x.dtype != ir.DataType.INT64:
        return x
    values = op.CastLike(op.Constant(value_floats=[0.0, 1.0]), weights[0])
    return op.OneHot(x, op.Constant(value_ints=[weights[0].shape[1]]), values)


def _transposed(x, batch_first):
    """Return ``x`` with the first two axes swapped if ``batch_first``.

    ONNX Runtime does not support the attribute ``layout``.
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


def _whole(x, hx, weights, batch_sizes, descriptor, keep):
    """Return ``outs`` and the final states of sequences that are whole or packed."""
    x, batch_first = _vectors(x, weights), descriptor.batch_first
    if batch_sizes is None:
        outs, final = _layers(_transposed(x, batch_first), hx, weights, None, descriptor)
        outs = [_transposed(out, batch_first) for out in outs]
    else:
        x, lengths, rows = _unpack(x, batch_sizes)
        outs, final = _layers(x, hx, weights, lengths, descriptor)
        outs = [op.GatherND(out, rows) for out in outs]
    return op.SequenceConstruct(*(outs if keep else outs[-1:])), *final


def _padded(x, hx, weights, lengths, descriptor):
    """Return the output and the final states of a padded batch, which has ``sequence_lens``."""
    x = _transposed(_vectors(x, weights), descriptor.batch_first)
    outs, final = _layers(x, hx, weights, lengths, descriptor)
    if hx:
        # An empty sequence keeps its state. ONNX Runtime would return zeros.
        is_empty = op.Unsqueeze(
            op.Equal(lengths, op.Constant(value_int=0)), op.Constant(value_ints=[1])
        )
        final = [op.Where(is_empty, old, new) for old, new in zip(hx, final, strict=True)]
    return _transposed(outs[-1], descriptor.batch_first), *final


def _states(*hx):
    return [state for state in hx if state is not None]


def _rnn(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    """Translate the operator ``rnn``. Its arguments are described in rnnfast/_ops/schema.py."""
    descriptor = RNNDescriptor.of_operator(weights, num_layers, batch_first, relu, bias)
    return _whole(x, _states(h0), weights, batch_sizes, descriptor, keep)


def _rnn_padded(x, h0, weights, lengths, num_layers, batch_first, relu, bias):
    """Translate the operator ``rnn_padded``."""
    descriptor = RNNDescriptor.of_operator(weights, num_layers, batch_first, relu, bias)
    return _padded(x, _states(h0), weights, lengths, descriptor)


def _gated_rnn(x, h0, c0, weights, batch_sizes, cell, num_layers, batch_first, bias, keep):
    """Translate the operator ``gated_rnn``, except for ``saved``, which no graph reads."""
    descriptor = GatedDescriptor.of_operator(weights, cell, num_layers, batch_first, bias)
    outs, h_n, *c_n = _whole(x, _states(h0, c0), weights, batch_sizes, descriptor, keep)
    return outs, h_n, c_n[0] if c_n else _unread(), op.SequenceConstruct(_unread())


def _gated_rnn_padded(x, h0, c0, weights, lengths, cell, num_layers, batch_first, bias):
    """Translate the operator ``gated_rnn_padded``."""
    descriptor = GatedDescriptor.of_operator(weights, cell, num_layers, batch_first, bias)
    output, h_n, *c_n = _padded(x, _states(h0, c0), weights, lengths, descriptor)
    return output, h_n, c_n[0] if c_n else _unread()


def _unread():
    """Return a value for a result that no graph reads."""
    return op.Constant(value_float=0.0)


# For the argument of torch.onnx.export with the same name.
custom_translation_table = {
    torch.ops.rnnfast.rnn.default: _rnn,
    torch.ops.rnnfast.rnn_padded.default: _rnn_padded,
    torch.ops.rnnfast.gated_rnn.default: _gated_rnn,
    torch.ops.rnnfast.gated_rnn_padded.default: _gated_rnn_padded,
}
