"""ONNX export: how ``torch.onnx.export`` writes the operator as ONNX's own ``RNN``.

    torch.onnx.export(
        model.eval(), (x,), "model.onnx", dynamo=True, dynamic_shapes={"x": {0: "T", 1: "B"}},
        custom_translation_table=rnnfast.onnx.custom_translation_table,
    )

Needs onnx and onnxscript, the ``onnx`` extra of this package.
"""

import torch
from onnxscript import ir
from onnxscript import opset18 as op

__all__ = ["custom_translation_table"]


def _stack(tensors):
    new_axis = op.Constant(value_ints=[0])
    return op.Concat(*(op.Unsqueeze(t, new_axis) for t in tensors), axis=0)


def _rnn(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    """Arguments as rnnfast._ops has them; one ONNX ``RNN`` a layer, both directions in it."""
    if batch_sizes is not None:
        raise NotImplementedError("a PackedSequence has no ONNX form; export with padded input")
    D = len(weights) // (num_layers * (4 if bias else 2))
    H, inputs = weights[1].shape[0], weights[0].shape[1]
    if x.dtype == ir.DataType.INT64:  # one-hot
        values = op.CastLike(op.Constant(value_floats=[0.0, 1.0]), weights[0])
        x = op.OneHot(x, op.Constant(value_ints=[inputs]), values)
    if batch_first:  # layout=1 would say so, but ONNX Runtime does not have it
        x = op.Transpose(x, perm=[1, 0, 2])

    zero, outs, states = op.Constant(value_ints=[0]), [], []
    per = len(weights) // (num_layers * D)
    for layer in range(num_layers):
        own = weights[layer * D * per : (layer + 1) * D * per]
        B = None
        if bias:
            pairs = zip(own[2::4], own[3::4], strict=True)
            B = _stack([op.Concat(b_ih, b_hh, axis=0) for b_ih, b_hh in pairs])
        initial = None
        if h0 is not None:
            first, last = (op.Constant(value_ints=[n * D]) for n in (layer, layer + 1))
            initial = op.Slice(h0, first, last, zero)
        y, h_n = op.RNN(
            x, _stack(own[0::per]), _stack(own[1::per]), B, None, initial,
            activations=["Relu" if relu else "Tanh"] * D,
            direction="bidirectional" if D == 2 else "forward",
            hidden_size=H,
        )  # fmt: skip
        # (T, D, B, H) to (T, B, D * H)
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        outs.append(op.Transpose(x, perm=[1, 0, 2]) if batch_first else x)
        states.append(h_n)
    h_n = states[0] if num_layers == 1 else op.Concat(*states, axis=0)
    return op.SequenceConstruct(*(outs if keep else outs[-1:])), h_n


custom_translation_table = {torch.ops.rnnfast.rnn.default: _rnn}
