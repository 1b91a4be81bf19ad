"""The operators ``rnn_padded`` and ``gated_rnn_padded``, for the graphs of ``torch.export``.

They run sequences of variable lengths. A packed batch has as many rows and time steps as the values
of ``lengths`` say, so the shapes in a graph that packs would depend on data. Here the packing is
inside of the operator.
"""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._torch import disable_dynamo
from .schema import GatedDescriptor, RNNDescriptor, library


def _rnn_padded(x, h0, weights, lengths, *options, reset=None):
    """Run ``rnn_padded`` on the operator ``rnn``; ``schema.py`` describes the arguments."""
    descriptor = RNNDescriptor.of_operator(weights, *options)

    def run(x, states, batch_sizes, descriptor, reset):
        call = (x, *states, weights, batch_sizes, *descriptor.options, False)
        (out,), h_n = torch.ops.rnnfast.rnn(*call, reset=reset)
        return out, h_n

    return _run_padded(run, x, (h0,), weights[1], lengths, descriptor, reset)


def _gated_rnn_padded(x, h0, c0, weights, lengths, *options, reset=None):
    """Run ``gated_rnn_padded`` on the operator ``gated_rnn``."""
    descriptor = GatedDescriptor.of_operator(weights, *options)

    def run(x, states, batch_sizes, descriptor, reset):
        states = states if descriptor.is_lstm else (*states, None)
        call = (x, *states, weights, batch_sizes, *descriptor.options, False)
        (out,), h_n, c_n, _ = torch.ops.rnnfast.gated_rnn(*call, reset=reset)
        return (out, h_n, c_n) if descriptor.is_lstm else (out, h_n)

    states = (h0, c0) if descriptor.is_lstm else (h0,)
    output, h_n, *c_n = _run_padded(run, x, states, weights[1], lengths, descriptor, reset)
    return output, h_n, c_n[0] if c_n else h_n.new_empty(0)


def _run_padded(run, x, states, like, lengths, descriptor, reset):
    """Pack a padded batch, run it and pad the output.

    Args:
        run: runs the operator: ``run(x, states, batch_sizes, descriptor, reset)`` returns the
            output and the final states.
        x, lengths, reset: as described in ``schema.py``.
        states: the initial states, each of which may be None.
        like: W_hh, which has H columns.
        descriptor: the description of the call.

    Returns:
        ``(output, *final_states)``.
    """
    time, batch = (1, 0) if descriptor.batch_first else (0, 1)
    T, B, H = x.shape[time], x.shape[batch], like.shape[-1]
    lengths, order = lengths.cpu().sort(descending=True)
    if lengths.shape != (B,) or (B and not 0 <= lengths[-1] <= lengths[0] <= T):
        raise ValueError(f"lengths must be {B} numbers in [0, {T}], got {lengths.tolist()}")
    shape = (descriptor.num_states, B, H)
    for state in states:
        if state is not None and state.shape != shape:
            raise RuntimeError(f"hx must be {shape}, got {tuple(state.shape)}")

    output = like.new_zeros((*x.shape[:2], descriptor.directions * H))
    final = [
        like.new_zeros(shape)
        if state is None
        else state.clone(memory_format=torch.contiguous_format)
        for state in states
    ]
    count = int(lengths.count_nonzero())  # an empty sequence keeps its state
    if count == 0:
        return output, *final
    order = order[:count].to(x.device)
    x = x.index_select(batch, order)
    data, batch_sizes, *_ = pack_padded_sequence(x, lengths[:count], descriptor.batch_first)
    states = [None if state is None else state.index_select(1, order) for state in states]
    if reset is not None:
        reset = reset.index_select(batch, order)
        reset, *_ = pack_padded_sequence(reset, lengths[:count], descriptor.batch_first)
    packed = descriptor._replace(batch_first=False)
    out, *last = run(data, states, batch_sizes, packed, reset)
    packed = PackedSequence(out, batch_sizes)
    padded, _ = pad_packed_sequence(packed, descriptor.batch_first, total_length=T)
    output.index_copy_(batch, order, padded)
    return output, *(f.index_copy_(1, order, t) for f, t in zip(final, last, strict=True))


for _name, _implementation in (
    ("rnn_padded", _rnn_padded),
    ("gated_rnn_padded", _gated_rnn_padded),
):
    library.impl(_name, disable_dynamo(_implementation), "CompositeExplicitAutograd")

rnn_padded = torch.ops.rnnfast.rnn_padded.default
gated_rnn_padded = torch.ops.rnnfast.gated_rnn_padded.default
