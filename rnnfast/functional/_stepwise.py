"""The recurrence step by step on torch's operators: what neither a kernel nor torch's RNN computes.

That is zoneout, which changes the recurrence, and torch.func.vmap, for which torch's operators of
whole sequences have no batching rule.
"""

import torch
from torch.nn import functional as F


def rnn(
    x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, zoneout=0.0, training=False
):
    """Arguments and results as of the operator in rnnfast._ops, but for ``outs``: the last alone.

    ``zoneout`` is the probability that a unit keeps its state for a step (Krueger et al. 2017,
    arXiv:1606.01305), drawn for every unit, sequence and step in ``training``;
    otherwise the new state is the expectation over that choice.
    """
    per = 4 if bias else 2
    D = len(weights) // (num_layers * per)
    if batch_first:
        x = x.transpose(0, 1)
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    B = x.shape[1] if sizes is None else sizes[0]
    shape = (num_layers * D, B, weights[1].shape[-1])
    if h0 is None:
        h0 = weights[1].new_zeros(shape)
    elif h0.shape != shape:  # it may broadcast
        raise RuntimeError(f"hx must be {shape}, got {tuple(h0.shape)}")
    states = []
    for layer in range(num_layers):
        directions = []
        for direction in range(D):
            n = layer * D + direction
            w_ih, w_hh, *biases = weights[n * per : (n + 1) * per]
            # An index in place of one_hot, which vmap refuses: it looks at the values.
            z = F.linear(x, w_ih) if x.is_floating_point() else F.embedding(x, w_ih.t())
            z = z + sum(biases) if biases else z
            keep = torch.rand(z.shape, device=z.device) < zoneout if training and zoneout else None
            z, keep = (_split(t, sizes) for t in (z, keep))
            outs, h = [], h0[n]
            for t in reversed(range(len(z))) if direction else range(len(z)):
                # The rows of a packed batch that are over keep their state; those yet to come, h0.
                B = z[t].shape[0]
                old = h[:B]
                new = z[t] + F.linear(old, w_hh)
                new = new.relu() if relu else new.tanh()
                if keep is not None:
                    new = torch.where(keep[t], old, new)
                elif zoneout:
                    new = torch.lerp(new, old, zoneout)
                outs.append(new)
                h = new if h.shape[0] == B else torch.cat((new, h[B:]))
            outs = outs[::-1] if direction else outs
            directions.append(torch.stack(outs) if sizes is None else torch.cat(outs))
            states.append(h)
        x = torch.cat(directions, -1)
    return (x.transpose(0, 1).contiguous() if batch_first else x), torch.stack(states)


def _split(t, sizes):
    """The time steps of a tensor (T, B, H), or (N, H) with ``sizes``; None of None."""
    if t is None:
        return None
    return t.unbind() if sizes is None else t.split(sizes)
