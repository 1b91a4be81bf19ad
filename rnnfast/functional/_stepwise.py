"""The RNN, the GRU and the LSTM as loops over time steps on torch's operators.

They run what neither a kernel nor torch's operator for whole sequences can: zoneout, which changes
the recurrence, and torch.func.vmap, for which torch's operators have no batching rule.
"""

import torch
from torch.nn import functional as F

from ._shared import as_hx, check_hx, input_product, state_shapes, states_of


def _gru(from_input, from_state, h):
    r_x, z_x, n_x = from_input.chunk(3, -1)
    r_h, z_h, n_h = from_state.chunk(3, -1)
    z, n = (z_x + z_h).sigmoid(), (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((h - n) * z + n,)


def _lstm(from_input, from_state, h, c):
    i, f, g, o = (from_input + from_state).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


# One step of each cell: its new states for W_ih x + b_ih, W_hh h + b_hh and its old states.
_STEPS = {
    "tanh": lambda from_input, from_state, h: ((from_input + from_state).tanh(),),
    "relu": lambda from_input, from_state, h: ((from_input + from_state).relu(),),
    "gru": _gru,
    "lstm": _lstm,
}


def rnn_stepwise(
    x, h0, weights, batch_sizes, descriptor, zoneout=0.0, training=False, lengths=None, reset=None
):
    """Run a cell step by step, and return ``(output, h_n)``.

    Args:
        x, weights, batch_sizes: as described in rnnfast/_ops/schema.py.
        h0: the initial state, or a pair of them for an LSTM, or None.
        descriptor: the description of the call.
        zoneout: the probability that an element of a state stays what it is for one step (Krueger
            et al. 2017, arXiv:1606.01305). With ``training`` it is drawn for each element, sequence
            and step. Otherwise the new state is the expectation over that choice.
        lengths: the number of time steps of each sequence of a padded batch, (B), or None for T.
        reset: as described in rnnfast/_ops/schema.py.

    Raises:
        RuntimeError: ``h0`` does not fit the input and the weights.
    """
    D, step = descriptor.directions, _STEPS[descriptor.cell]
    if descriptor.batch_first:
        x = x.transpose(0, 1)
        reset = None if reset is None else reset.transpose(0, 1)
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    B = x.shape[1] if sizes is None else sizes[0]
    if h0 is None:
        h0 = as_hx([weights[1].new_zeros(s) for s in state_shapes(weights, B, descriptor)])
    check_hx(h0, weights, B, descriptor)  # the operations below would broadcast it
    resets = _split(reset, sizes)
    final = []
    for layer in range(descriptor.num_layers):
        directions = []
        for direction in range(D):
            own = descriptor.weights_of(weights, layer, direction)
            w_ih, w_hh, *rest = own
            b_ih, b_hh = rest[:2] if descriptor.bias else (None, None)
            projection = own[-1] if len(own) % 2 else None
            z = input_product(x, w_ih)
            z = z if b_ih is None else z + b_ih
            old = [state[layer * D + direction] for state in states_of(h0)]
            keeps = None
            if training and zoneout:
                drawn = [torch.rand((*z.shape[:-1], s.shape[-1]), device=z.device) for s in old]
                keeps = [_split(numbers < zoneout, sizes) for numbers in drawn]
            z, outs, states = _split(z, sizes), [], old
            for t in reversed(range(len(z))) if direction else range(len(z)):
                # In a packed batch, only the first rows have a step t. The others keep their state:
                # the last one, or h0 in the reverse direction.
                B = z[t].shape[0]
                old = [state[:B] for state in states]
                # The later of the two steps that a reset divides. It may have fewer rows.
                later = t + 1 if direction else t
                if resets is not None and later < len(z):
                    is_reset = F.pad(resets[later], (0, B - resets[later].shape[0]))
                    if lengths is not None:
                        is_reset = is_reset & (later < lengths).to(is_reset.device)
                    old = [torch.where(is_reset.unsqueeze(1), 0.0, state) for state in old]
                new = step(z[t], F.linear(old[0], w_hh, b_hh), *old)
                if projection is not None:
                    new = (F.linear(new[0], projection), *new[1:])
                if keeps is not None:
                    chosen = zip(keeps, old, new, strict=True)
                    new = [torch.where(keep[t], o, n) for keep, o, n in chosen]
                elif zoneout:
                    new = [torch.lerp(n, o, zoneout) for o, n in zip(old, new, strict=True)]
                if lengths is None:
                    outs.append(new[0])
                else:
                    runs = (t < lengths).unsqueeze(1).to(x.device)
                    outs.append(torch.where(runs, new[0], 0.0))
                    new = [torch.where(runs, n, o) for o, n in zip(old, new, strict=True)]
                states = [
                    n if state.shape[0] == B else torch.cat((n, state[B:]))
                    for n, state in zip(new, states, strict=True)
                ]
            outs = outs[::-1] if direction else outs
            directions.append(torch.stack(outs) if sizes is None else torch.cat(outs))
            final.append(states)
        x = torch.cat(directions, -1)
    output = x.transpose(0, 1).contiguous() if descriptor.batch_first else x
    return output, as_hx([torch.stack(parts) for parts in zip(*final, strict=True)])


def _split(t, sizes):
    """Return the time steps of ``t``, (T, B, H) or with ``sizes`` (N, H). None gives None."""
    if t is None:
        return None
    return t.unbind() if sizes is None else t.split(sizes)
