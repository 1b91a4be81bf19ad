"""What tests of resets compare with: torch's operator and the NumPy reference, part by part.

A part of a sequence is what lies between two resets.
"""

import numpy as np
import rule
import torch

from rnnfast import reference
from rnnfast._ops import RNNDescriptor
from rnnfast.functional._operators import rnn_torch
from rnnfast.functional._segments import rnn_in_segments


def draw_resets(data, probability, seed=0):
    """Return resets for the rows of the input, each with this probability."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(data.input.shape[:-1], generator=generator) < probability


def in_parts(input, hx, weights, *, batch_first, batch_sizes, num_layers, nonlinearity,
             bidirectional, reset):  # fmt: skip
    """Run each part between resets as a sequence of its own, on torch's operator."""
    D = 2 if bidirectional else 1
    bias = len(weights) == 4 * num_layers * D
    descriptor = RNNDescriptor(num_layers, D, batch_first, nonlinearity, bias)
    return rnn_in_segments(rnn_torch, input, hx, weights, batch_sizes, descriptor, reset)


def reference_of_parts(case, data, reset):
    """Run each part between resets through the NumPy reference, and put the results together."""
    wide = np.longdouble if case.dtype == torch.float64 else np.float64

    def array(t):
        return None if t is None else t.detach().double().numpy().astype(wide)

    x, hx, dy, dh_n = map(array, (data.input, data.hx, data.dy, data.dh_n))
    dy, dh_n = dy * (case.gradients_of != "h_n"), dh_n * (case.gradients_of != "output")
    weights, resets = [array(w) for w in data.weights], reset.numpy()
    lengths = rule.lengths_of(case) if case.layout == "packed" else [case.T] * case.B
    if case.layout == "packed":
        starts = np.concatenate([[0], np.cumsum(data.batch_sizes.numpy())])
        rows_of = [starts[:length] + b for b, length in enumerate(lengths)]
    else:
        if case.layout == "batch":
            x, dy, resets = (a.swapaxes(0, 1) for a in (x, dy, resets))
        rows_of = [np.arange(case.T) * case.B + b for b in range(case.B)]
    shapes = dy.shape, x.shape
    x, dy, resets = (a.reshape(-1, *a.shape[-1:])[:] for a in (x, dy, resets[..., None]))
    output, dx = np.zeros_like(dy), np.zeros_like(x)
    h_n, dhx, dweights = np.zeros_like(dh_n), np.zeros_like(dh_n), [0] * len(weights)
    D = 2 if case.bidirectional else 1
    for b, rows in enumerate(rows_of):
        cuts = 1 + np.flatnonzero(resets[rows[1:], 0])
        parts = np.split(rows, cuts)
        for n, part in enumerate(parts):
            # The forward direction begins with the first part, the reverse one with the last.
            takes = [n == 0 and not resets[rows[0], 0], n == len(parts) - 1]
            gives = [n == len(parts) - 1, n == 0]
            start, seed = np.zeros_like(dh_n[:, b : b + 1]), np.zeros_like(dh_n[:, b : b + 1])
            for d in range(D):
                if takes[d] and hx is not None:
                    start[d::D, 0] = hx[d::D, b]
                if gives[d]:
                    seed[d::D, 0] = dh_n[d::D, b]
            steps = part[:, None]
            outputs, last = reference.rnn(x[steps], start, weights, **case.options)
            output[steps] = outputs[-1]
            dx[steps], dstart, more = reference.rnn_backward(
                x[steps], start, weights, outputs, dy[steps], seed, **case.options
            )
            dweights = [total + part for total, part in zip(dweights, more, strict=True)]
            for d in range(D):
                if gives[d]:
                    h_n[d::D, b] = last[d::D, 0]
                if takes[d]:
                    dhx[d::D, b] = dstart[d::D, 0]
    output, dx = output.reshape(shapes[0]), dx.reshape(shapes[1])
    if case.layout == "batch":
        output, dx = output.swapaxes(0, 1), dx.swapaxes(0, 1)
    results = {"output": output, "h_n": h_n, "d input": dx, "d hx": dhx}
    results |= {f"d weight {i}": d for i, d in enumerate(dweights)}
    return {name: results[name] for name in ("output", "h_n", *(f"d {n}" for n in data.wanted))}
