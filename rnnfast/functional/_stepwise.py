"""The RNN as a loop over time steps on torch's operators.

It runs what neither a kernel nor torch's operator for whole sequences can: zoneout, which changes
the recurrence, and torch.func.vmap, for which torch's operator has no batching rule.
"""

import torch
from torch.nn import functional as F


def rnn_stepwise(
    x, h0, weights, batch_sizes, descriptor, zoneout=0.0, training=False, lengths=None, reset=None
):
    """Run the RNN step by step, and return ``(output, h_n)``.

    Args:
        x, h0, weights, batch_sizes: as described in rnnfast/_ops/schema.py. ``h0`` may be None.
        descriptor: the `RNNDescriptor` of the call.
        zoneout: the probability that a unit keeps its state for one step (Krueger et al. 2017,
            arXiv:1606.01305). With ``training`` it is drawn for each unit, sequence and step.
            Otherwise the new state is the expectation over that choice.
        lengths: the number of time steps of each sequence of a padded batch, (B), or None for T.
        reset: as described in rnnfast/_ops/schema.py.

    Raises:
        RuntimeError: ``h0`` does not fit the input and the weights.
    """
    D, relu = descriptor.directions, descriptor.nonlinearity == "relu"
    if descriptor.batch_first:
        x = x.transpose(0, 1)
        reset = None if reset is None else reset.transpose(0, 1)
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    B = x.shape[1] if sizes is None else sizes[0]
    shape = (descriptor.num_states, B, weights[1].shape[-1])
    if h0 is None:
        h0 = weights[1].new_zeros(shape)
    elif h0.shape != shape:  # the operations below would broadcast it
        raise RuntimeError(f"hx must be {shape}, got {tuple(h0.shape)}")
    resets = _split(reset, sizes)
    states = []
    for layer in range(descriptor.num_layers):
        directions = []
        for direction in range(D):
            w_ih, w_hh, *biases = descriptor.weights_of(weights, layer, direction)
            # F.one_hot would look at the values of the tokens, which vmap refuses.
            z = F.linear(x, w_ih) if x.is_floating_point() else F.embedding(x, w_ih.t())
            z = z + sum(biases) if biases else z
            keep = torch.rand(z.shape, device=z.device) < zoneout if training and zoneout else None
            z, keep = (_split(t, sizes) for t in (z, keep))
            outs, h = [], h0[layer * D + direction]
            for t in reversed(range(len(z))) if direction else range(len(z)):
                # In a packed batch, only the first rows have a step t. The others keep their state:
                # the last one, or h0 in the reverse direction.
                B = z[t].shape[0]
                old = h[:B]
                # The later of the two steps that a reset divides. It may have fewer rows.
                later = t + 1 if direction else t
                if resets is not None and later < len(z):
                    is_reset = F.pad(resets[later], (0, B - resets[later].shape[0]))
                    if lengths is not None:
                        is_reset = is_reset & (later < lengths).to(is_reset.device)
                    old = torch.where(is_reset.unsqueeze(1), 0.0, old)
                new = z[t] + F.linear(old, w_hh)
                new = new.relu() if relu else new.tanh()
                if keep is not None:
                    new = torch.where(keep[t], old, new)
                elif zoneout:
                    new = torch.lerp(new, old, zoneout)
                if lengths is None:
                    outs.append(new)
                else:
                    runs = (t < lengths).unsqueeze(1).to(new.device)
                    outs.append(torch.where(runs, new, 0.0))
                    new = torch.where(runs, new, old)
                h = new if h.shape[0] == B else torch.cat((new, h[B:]))
            outs = outs[::-1] if direction else outs
            directions.append(torch.stack(outs) if sizes is None else torch.cat(outs))
            states.append(h)
        x = torch.cat(directions, -1)
    output = x.transpose(0, 1).contiguous() if descriptor.batch_first else x
    return output, torch.stack(states)


def _split(t, sizes):
    """Return the time steps of ``t``, (T, B, H) or with ``sizes`` (N, H). None gives None."""
    if t is None:
        return None
    return t.unbind() if sizes is None else t.split(sizes)
