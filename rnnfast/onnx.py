"""ONNX export: a table that tells ``torch.onnx.export`` to write the operator as ONNX's ``RNN``.

This module needs onnx and onnxscript: ``pip install rnnfast[onnx]``. The number of time steps and
the batch size may be dynamic. Packed sequences cannot be exported.

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


def _rnn(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    """Translate the operator ``rnn``: each layer is one ``RNN`` of ONNX with both directions.

    The arguments are described in rnnfast/_ops/schema.py.
    """
    if batch_sizes is not None:
        raise NotImplementedError(
            "batch_sizes must be None: ONNX has no PackedSequence. Export the model with padded "
            "input instead."
        )
    descriptor = RNNDescriptor.of_operator(weights, num_layers, batch_first, relu, bias)
    D, per_direction = descriptor.directions, descriptor.weights_per_direction
    H, inputs = weights[1].shape[0], weights[0].shape[1]
    if x.dtype == ir.DataType.INT64:  # ONNX's RNN reads vectors, not tokens
        values = op.CastLike(op.Constant(value_floats=[0.0, 1.0]), weights[0])
        x = op.OneHot(x, op.Constant(value_ints=[inputs]), values)
    if batch_first:  # ONNX Runtime does not support the attribute layout=1
        x = op.Transpose(x, perm=[1, 0, 2])

    zero, outs, states = op.Constant(value_ints=[0]), [], []
    for layer in range(num_layers):
        count = descriptor.weights_per_layer
        own = weights[layer * count : (layer + 1) * count]
        B = None
        if bias:
            pairs = zip(own[2::4], own[3::4], strict=True)
            B = _stack([op.Concat(b_ih, b_hh, axis=0) for b_ih, b_hh in pairs])
        initial = None
        if h0 is not None:
            first, last = (op.Constant(value_ints=[n * D]) for n in (layer, layer + 1))
            initial = op.Slice(h0, first, last, zero)
        y, h_n = op.RNN(
            x, _stack(own[0::per_direction]), _stack(own[1::per_direction]), B, None, initial,
            activations=["Relu" if relu else "Tanh"] * D,
            direction="bidirectional" if D == 2 else "forward",
            hidden_size=H,
        )  # fmt: skip
        # From (T, D, B, H) to (T, B, D * H).
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        outs.append(op.Transpose(x, perm=[1, 0, 2]) if batch_first else x)
        states.append(h_n)
    h_n = states[0] if num_layers == 1 else op.Concat(*states, axis=0)
    return op.SequenceConstruct(*(outs if keep else outs[-1:])), h_n


# For the argument of torch.onnx.export with the same name.
custom_translation_table = {torch.ops.rnnfast.rnn.default: _rnn}
