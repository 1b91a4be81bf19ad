"""The GRU and the LSTM in plain NumPy and on torch's operators, to compare the kernels with.

The rule, and what a case and its data are, are those of `rule`.
"""

from dataclasses import dataclass

import numpy as np
import rule
import torch

from rnnfast import functional
from rnnfast._ops import GatedDescriptor
from rnnfast.functional._operators import rnn_torch
from rnnfast.functional._segments import rnn_in_segments

KERNELS = {"gru": functional.gru, "lstm": functional.lstm}


@dataclass(frozen=True)
class Case(rule.Case):
    """One call of a gated cell. `gradients_of` is "both" (all outputs), "output" or "h_n"."""

    cell: str = "gru"
    with_reset: bool = False

    @property
    def gates(self):
        return {"gru": 3, "lstm": 4}[self.cell]

    @property
    def options(self):
        return {"num_layers": self.num_layers, "bidirectional": self.bidirectional}


@dataclass(frozen=True)
class Data(rule.Data):
    """The tensors of a case. `c0` and `dc_n` are None for a GRU, and `reset` without resets."""

    c0: torch.Tensor | None
    dc_n: torch.Tensor | None
    reset: torch.Tensor | None

    @property
    def states(self):
        """The argument `hx`."""
        if self.hx is None:
            return None
        return self.hx if self.c0 is None else (self.hx, self.c0)

    @property
    def wanted(self):
        c0 = {} if self.c0 is None or not self.c0.requires_grad else {"c0": self.c0}
        return super().wanted | c0


def make(case, device="cpu", seed=0):
    """Return the data of a case."""
    data, other = rule.make(case, device, seed), rule.make(case, device, seed + 1)
    c0, dc_n, reset = None, None, None
    if case.cell == "lstm":
        c0, dc_n = other.hx, other.dh_n
    if case.with_reset:
        generator = torch.Generator().manual_seed(seed)
        reset = torch.rand(data.input.shape[:-1], generator=generator) < 0.3
    return Data(**vars(data), c0=c0, dc_n=dc_n, reset=reset)


def baseline(
    input, hx, weights, *, cell, num_layers=1, bidirectional=False, batch_first=False,
    batch_sizes=None, reset=None,
):  # fmt: skip
    """Call torch's operator, once for each part between resets."""
    D = 2 if bidirectional else 1
    bias = len(weights) == 4 * num_layers * D
    descriptor = GatedDescriptor(num_layers, D, batch_first, cell, bias)
    call = (input, hx, weights, batch_sizes, descriptor)
    return rnn_torch(*call) if reset is None else rnn_in_segments(rnn_torch, *call, reset)


def run_baseline(case, data):
    """Return the outputs and gradients of torch's operator, by name."""
    return run(lambda *a, **options: baseline(*a, cell=case.cell, **options), case, data)


def run_kernel(case, data):
    """Return the outputs and gradients of `functional.gru` or `functional.lstm`, by name."""
    return run(KERNELS[case.cell], case, data)


def run(call, case, data):
    output, h_n = call(
        data.input, data.states, data.weights, batch_first=case.layout == "batch",
        batch_sizes=data.batch_sizes, reset=data.reset, **case.options,
    )  # fmt: skip
    final = (h_n,) if case.cell == "gru" else h_n
    heads = {"output": [(output, data.dy)]}
    heads["h_n"] = list(zip(final, (data.dh_n, data.dc_n), strict=False))
    heads["both"] = heads["output"] + heads["h_n"]
    roots, seeds = zip(*heads[case.gradients_of], strict=True)
    gradients = torch.autograd.grad(roots, list(data.wanted.values()), seeds, allow_unused=True)
    results = {"output": output.detach(), "h_n": final[0].detach()}
    if len(final) == 2:
        results["c_n"] = final[1].detach()
    for (name, tensor), gradient in zip(data.wanted.items(), gradients, strict=True):
        results[f"d {name}"] = torch.zeros_like(tensor) if gradient is None else gradient
    return results


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _step(cell, x, h, c, kept):
    """Return h_t, c_t and what the gradients need, for the products of x and of h."""
    H = h.shape[-1]
    x, y = (np.split(products, products.shape[-1] // H, axis=-1) for products in (x, kept))
    if cell == "gru":
        r, z = _sigmoid(x[0] + y[0]), _sigmoid(x[1] + y[1])
        n = np.tanh(x[2] + r * y[2])
        return (1 - z) * n + z * h, c, (r, z, n, y[2])
    i, f, o = (_sigmoid(x[g] + y[g]) for g in (0, 1, 3))
    g = np.tanh(x[2] + y[2])
    new = f * c + i * g
    return o * np.tanh(new), new, (i, f, g, o)


def _step_backward(cell, values, h, c, new_c, dh, dc):
    """Return the gradients of both products, and those of h and c by other ways."""
    if cell == "gru":
        r, z, n, y_n = values
        dn, dz = dh * (1 - z) * (1 - n * n), dh * (h - n) * z * (1 - z)
        dr = dn * y_n * r * (1 - r)
        return np.concatenate([dr, dz, dn], -1), np.concatenate([dr, dz, dn * r], -1), dh * z, dc
    i, f, g, o = values
    squashed = np.tanh(new_c)
    dc = dc + dh * o * (1 - squashed**2)
    gates = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g)]
    gates = np.concatenate([*gates, dh * squashed * o * (1 - o)], -1)
    return gates, gates, np.zeros_like(dh), dc * f


def _direction(cell, x, h, c, weights, reset, dy, dh, dc, reverse):
    """Run one direction of one layer forward and backward.

    Returns:
        The outputs, the last h and c, and the gradients of x, of the first h and c and of the
        weights.
    """
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (0, 0)
    T = len(x)
    order = range(T)[::-1] if reverse else range(T)
    outputs, memory = [None] * T, []
    for t in order:
        later = t + 1 if reverse else t  # the later of the two steps that a reset divides
        kept = np.ones_like(h[:, :1]) if later == T else ~reset[later][:, None]
        h, c = h * kept, c * kept
        new_h, new_c, values = _step(cell, x[t] @ w_ih.T + b_ih, h, c, h @ w_hh.T + b_hh)
        memory.append((t, kept, h, c, new_c, values))
        h, c = new_h, new_c
        outputs[t] = h
    last = h, c
    dx, dw = np.zeros_like(x), [np.zeros_like(w) for w in weights]
    for t, kept, h, c, new_c, values in reversed(memory):
        dh = dh + dy[t]
        of_x, of_h, dh, dc = _step_backward(cell, values, h, c, new_c, dh, dc)
        dh = (dh + of_h @ w_hh) * kept
        dc = dc * kept
        dx[t] = of_x @ w_ih
        dw[0] += of_x.T @ x[t]
        dw[1] += of_h.T @ h
        if biases:
            dw[2] += of_x.sum(0)
            dw[3] += of_h.sum(0)
    return np.stack(outputs), last, dx, (dh, dc), dw


def sequences(case, x, h0, c0, weights, reset, dy, dh_n, dc_n):
    """Run all layers for sequences of equal lengths, and return outputs and gradients."""
    D, H = 2 if case.bidirectional else 1, case.H
    per_direction = len(weights) // (case.num_layers * D)
    own = [weights[n : n + per_direction] for n in range(0, len(weights), per_direction)]
    inputs = [x]
    finals = np.zeros_like(dh_n), np.zeros_like(dh_n)
    dstart = np.zeros_like(dh_n), np.zeros_like(dh_n)
    dweights = [None] * len(own)

    def run(n, dy):
        layer, d = divmod(n, D)
        return _direction(
            case.cell, inputs[layer], h0[n], c0[n], own[n], reset, dy, dh_n[n], dc_n[n], d == 1
        )

    for layer in range(case.num_layers):
        nothing = np.zeros((*x.shape[:2], H), x.dtype)
        results = [run(layer * D + d, nothing) for d in range(D)]
        for d, (_, last, *_) in enumerate(results):
            finals[0][layer * D + d], finals[1][layer * D + d] = last
        inputs.append(np.concatenate([outputs for outputs, *_ in results], -1))
    for layer in reversed(range(case.num_layers)):
        results = [run(layer * D + d, dy[..., d * H : (d + 1) * H]) for d in range(D)]
        for d, (*_, dstates, dw) in enumerate(results):
            n = layer * D + d
            dstart[0][n], dstart[1][n] = dstates
            dweights[n] = dw
        dy = sum(dx for _, _, dx, *_ in results)
    return inputs[-1], *finals, dy, *dstart, [g for dw in dweights for g in dw]


def run_reference(case, data):
    """Return the outputs and gradients of the equations in the wider dtype, by name."""
    wide = np.longdouble if case.dtype == torch.float64 else np.float64

    def array(t, like=None):
        if t is None:
            return np.zeros(like.shape, wide)
        return t.detach().cpu().double().numpy().astype(wide)

    x, dy, dh_n = (array(t) for t in (data.input, data.dy, data.dh_n))
    h0, c0, dc_n = (array(t, data.dh_n) for t in (data.hx, data.c0, data.dc_n))
    weights = [array(w) for w in data.weights]
    reset = np.zeros(x.shape[:-1], bool) if data.reset is None else data.reset.numpy()
    dy, dh_n, dc_n = (
        dy * (case.gradients_of != "h_n"),
        *(g * (case.gradients_of != "output") for g in (dh_n, dc_n)),
    )
    if case.layout == "batch":
        x, dy, reset = (a.swapaxes(0, 1) for a in (x, dy, reset))
    parts = [(slice(None), slice(None))]
    if case.layout == "packed":  # each sequence runs alone
        starts = np.concatenate([[0], np.cumsum(data.batch_sizes.numpy())])
        parts = [
            (starts[:length, None] + b, slice(b, b + 1))
            for b, length in enumerate(rule.lengths_of(case))
        ]
    output, dx = np.empty_like(dy), np.empty_like(x)
    states = [np.empty_like(dh_n) for _ in range(4)]
    dweights = [0] * len(weights)
    for rows, own in parts:
        given = (h0[:, own], c0[:, own], weights, reset[rows], dy[rows], dh_n[:, own], dc_n[:, own])
        output[rows], h_n, c_n, dx[rows], dh0, dc0, dw = sequences(case, x[rows], *given)
        for whole, part in zip(states, (h_n, c_n, dh0, dc0), strict=True):
            whole[:, own] = part
        dweights = [total + part for total, part in zip(dweights, dw, strict=True)]
    if case.layout == "batch":
        output, dx = output.swapaxes(0, 1), dx.swapaxes(0, 1)
    h_n, c_n, dh0, dc0 = states
    results = {"output": output, "h_n": h_n, "c_n": c_n}
    results |= {"d input": dx, "d hx": dh0, "d c0": dc0}
    results |= {f"d weight {i}": d for i, d in enumerate(dweights)}
    outputs = ("output", "h_n", *(("c_n",) if case.cell == "lstm" else ()))
    return {name: results[name] for name in (*outputs, *(f"d {n}" for n in data.wanted))}
