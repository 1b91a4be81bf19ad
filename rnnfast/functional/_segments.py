"""Resets inside of sequences, for implementations of a cell that have none.

A reset divides a sequence into segments that do not depend on one another. Here each segment
becomes a sequence of a packed batch of its own.
"""

from typing import NamedTuple

import torch

from ._shared import each_state


class _Segments(NamedTuple):
    """The segments of a batch, the longest first: K segments of B sequences with N rows."""

    rows: torch.Tensor  # the row of the input for each row of the packed segments, (N)
    batch_sizes: torch.Tensor  # the number of segments that have a step t
    first: torch.Tensor  # the segment at the beginning of each sequence, (B)
    last: torch.Tensor  # the segment at the end of each sequence, (B)


def _find_segments(reset, sizes):
    """Return the segments that ``reset``, bool (N) on the CPU, makes of a packed batch.

    ``sizes`` are the ``batch_sizes`` of that batch, int64 (T).
    """
    T, B = len(sizes), int(sizes[0])
    # The default device may be another one.
    sequence, time = torch.arange(B, device="cpu"), torch.arange(T, device="cpu")
    exists = sequence < sizes[:, None]
    lengths = exists.sum(0)
    row = (sizes.cumsum(0) - sizes)[:, None] + sequence  # of each time step and sequence
    begins = torch.zeros(T, B, dtype=torch.bool, device="cpu")
    begins[exists] = reset
    begins[0] = True
    # The segments in the order of their sequences, and within a sequence in that of time.
    owner, start = begins.t().nonzero(as_tuple=True)
    is_last = owner != torch.cat((owner[1:], owner.new_full((1,), B)))
    end = torch.where(is_last, lengths[owner], start.roll(-1))
    length, order = (end - start).sort(descending=True, stable=True)
    place = order.argsort()
    runs = length > time[: length[0], None]  # (longest segment, K)
    step, segment = runs.nonzero(as_tuple=True)
    rows = row[start[order][segment] + step, owner[order][segment]]
    return _Segments(rows, runs.sum(1), place[start == 0], place[is_last])


def rnn_in_segments(run, x, h0, weights, batch_sizes, descriptor, reset):
    """Run a cell with resets by ``run``, which has no resets.

    Args:
        run: a function like `rnn_torch`.
        x, weights, batch_sizes, reset: as described in rnnfast/_ops/schema.py.
        h0: the initial state, or a pair of them for an LSTM, or None.
        descriptor: the description of the call.

    Returns:
        ``(output, h_n)``, as ``run`` returns them.
    """
    L, D, batch_first = descriptor.num_layers, descriptor.directions, descriptor.batch_first
    if batch_sizes is None:
        if batch_first:
            x, reset = x.transpose(0, 1), reset.transpose(0, 1)
        steps = x.shape[:2]
        sizes = torch.full(steps[:1], steps[1], device="cpu")
        x, reset = x.flatten(0, 1), reset.flatten()
    else:
        sizes = batch_sizes
    reset = reset.cpu()
    segments = _find_segments(reset, sizes)
    rows, first, last = (t.to(x.device) for t in (segments.rows, segments.first, segments.last))
    kept = ~reset[: len(first)].to(x.device)[:, None]

    def begin(state):
        """Return the states at the beginnings of the segments, for those of the sequences."""
        # A forward direction begins with the first segment, a reverse direction with the last.
        state = state.unflatten(0, (L, D)).unbind(1)
        start = state[0].new_zeros(L, int(segments.batch_sizes[0]), state[0].shape[-1])
        starts = [start.index_copy(1, first, torch.where(kept, state[0], 0.0))]
        if D == 2:
            starts.append(start.index_copy(1, last, state[1]))
        return torch.stack(starts, 1).flatten(0, 1)

    def end(state):
        """Return the states at the ends of the sequences, for those of the segments."""
        state = state.unflatten(0, (L, D)).unbind(1)
        ends = [state[0].index_select(1, last), *(h.index_select(1, first) for h in state[1:])]
        return torch.stack(ends, 1).flatten(0, 1)

    packed = descriptor._replace(batch_first=False)
    output, h_n = run(x[rows], each_state(begin, h0), weights, segments.batch_sizes, packed)
    output = output[rows.argsort()]
    if batch_sizes is None:
        output = output.unflatten(0, steps)
        output = output.transpose(0, 1).contiguous() if batch_first else output
    return output, each_state(end, h_n)
