"""The operator ``rnn_padded``: sequences of variable lengths, for the graphs of ``torch.export``.

A packed batch has as many rows and time steps as the values of ``lengths`` say, so the shapes in a
graph that packs would depend on data. Here the packing is inside of the operator.
"""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._torch import disable_dynamo
from .schema import RNNDescriptor, library


def _rnn_padded(x, h0, weights, lengths, *options, reset=None):
    """Run ``rnn_padded`` on the operator ``rnn``; ``schema.py`` describes the arguments."""
    descriptor = RNNDescriptor.of_operator(weights, *options)
    time, batch = (1, 0) if descriptor.batch_first else (0, 1)
    T, B, H = x.shape[time], x.shape[batch], weights[1].shape[-1]
    lengths, order = lengths.cpu().sort(descending=True)
    if lengths.shape != (B,) or (B and not 0 <= lengths[-1] <= lengths[0] <= T):
        raise ValueError(f"lengths must be {B} numbers in [0, {T}], got {lengths.tolist()}")
    shape = (descriptor.num_states, B, H)
    if h0 is not None and h0.shape != shape:
        raise RuntimeError(f"hx must be {shape}, got {tuple(h0.shape)}")

    output = weights[1].new_zeros((*x.shape[:2], descriptor.directions * H))
    h_n = (
        weights[1].new_zeros(shape)
        if h0 is None
        else h0.clone(memory_format=torch.contiguous_format)
    )
    count = int(lengths.count_nonzero())  # an empty sequence keeps its state
    if count == 0:
        return output, h_n
    order = order[:count].to(x.device)
    x = x.index_select(batch, order)
    data, batch_sizes, *_ = pack_padded_sequence(x, lengths[:count], descriptor.batch_first)
    h0 = None if h0 is None else h0.index_select(1, order)
    if reset is not None:
        reset = reset.index_select(batch, order)
        reset, *_ = pack_padded_sequence(reset, lengths[:count], descriptor.batch_first)
    options = descriptor._replace(batch_first=False).options
    call = (data, h0, weights, batch_sizes, *options, False)
    (out,), last = torch.ops.rnnfast.rnn(*call, reset=reset)
    packed = PackedSequence(out, batch_sizes)
    padded, _ = pad_packed_sequence(packed, descriptor.batch_first, total_length=T)
    output.index_copy_(batch, order, padded)
    return output, h_n.index_copy_(1, order, last)


library.impl("rnn_padded", disable_dynamo(_rnn_padded), "CompositeExplicitAutograd")

rnn_padded = torch.ops.rnnfast.rnn_padded.default
