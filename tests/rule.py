"""The rule that every kernel must meet, and the two implementations that it is compared with.

The rule holds for each output and each gradient:

    max |ours - reference| <= 2 * max |nn.RNN - reference| + TINY * eps * max |reference|

nn.RNN runs in the dtype under test. The reference runs in a wider dtype: longdouble for float64,
and float64 for the others. Benchmarks import their baseline from here, so that tests and
benchmarks compare with the same function.
"""

from dataclasses import dataclass

import numpy as np
import torch

from rnnfast import reference

# The error of nn.RNN can be 0 by chance, for example if a tensor has one element or the rounding
# errors of a sum cancel. A correct implementation may always have four roundings of the largest
# element.
TINY = 4

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One call: its sizes, options and memory layout, and the outputs that have a gradient."""

    T: int
    B: int
    inputs: int
    H: int
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bidirectional: bool = False
    bias: bool = True
    with_hx: bool = True
    layout: str = "time"  # "time": [T, B, I]; "batch": [B, T, I]; "packed": [N, I]
    memory: str = "contiguous"  # or "strided", "transposed", "expanded"; gradients included
    gradients_of: str = "both"  # or "output", "h_n"
    dtype: torch.dtype = torch.float32
    gates = 1  # the number of rows of a weight for each unit

    @property
    def options(self):
        names = ("num_layers", "nonlinearity", "bidirectional")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Data:
    """The tensors of a case. Inputs and weights are leaves that require gradients."""

    input: torch.Tensor
    hx: torch.Tensor | None
    weights: list
    batch_sizes: torch.Tensor | None
    dy: torch.Tensor
    dh_n: torch.Tensor

    @property
    def wanted(self):
        """The tensors that get a gradient, by name."""
        named = {"input": self.input, "hx": self.hx}
        named |= {f"weight {i}": w for i, w in enumerate(self.weights)}
        return {name: t for name, t in named.items() if t is not None and t.requires_grad}


def baseline(
    input, hx, weights, *, num_layers=1, nonlinearity="tanh", bidirectional=False,
    batch_first=False, dropout=0.0, training=True, batch_sizes=None,
):  # fmt: skip
    """Call what nn.RNN.forward calls, with the signature of rnnfast.functional.rnn.

    `training` is true by default, because cuDNN has a backward pass only for training. It
    also needs a contiguous hx.
    """
    directions = 2 if bidirectional else 1
    if hx is None:
        rows = batch_sizes[0] if batch_sizes is not None else input.shape[0 if batch_first else 1]
        hx = input.new_zeros(num_layers * directions, rows, weights[1].shape[1])
    rnn = {"tanh": torch._VF.rnn_tanh, "relu": torch._VF.rnn_relu}[nonlinearity]
    bias = len(weights) == 4 * num_layers * directions
    options = (list(weights), bias, num_layers, dropout, training, bidirectional)
    if batch_sizes is not None:
        return rnn(input, batch_sizes, hx.contiguous(), *options)
    return rnn(input, hx.contiguous(), *options, batch_first)


def lengths_of(case):
    """Return the lengths of a packed batch, from T down to at least 1. Some may be equal."""
    return [max(1, case.T - (b * case.T) // case.B) for b in range(case.B)]


def make(case, device="cpu", seed=0):
    """Return the data of a case, uniform in [-1, 1].

    Weights are divided by the square root of the number of their inputs, so that hidden states do
    not grow with the sizes.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0, memory="contiguous"):
        if memory == "expanded":
            shape_drawn = (*shape[:-2], 1, shape[-1])
        elif memory == "strided":
            shape_drawn = (*shape[:-1], 2 * shape[-1])
        elif memory == "transposed":
            shape_drawn = (*shape[:-2], shape[-1], shape[-2])
        else:
            shape_drawn = shape
        t = torch.rand(shape_drawn, generator=generator, dtype=torch.float64) * 2 - 1
        t = (t * scale).to(device, case.dtype)
        if memory == "expanded":
            return t.expand(shape)
        if memory == "strided":
            return t[..., ::2]
        return t.mT if memory == "transposed" else t

    directions = 2 if case.bidirectional else 1
    batch_sizes = None
    rows = (case.B, case.T) if case.layout == "batch" else (case.T, case.B)
    if case.layout == "packed":
        lengths = torch.tensor(lengths_of(case))
        batch_sizes = (lengths[None] > torch.arange(case.T)[:, None]).sum(1)
        rows = (int(batch_sizes.sum()),)
    weights = []
    for layer in range(case.num_layers):
        below = directions * case.H if layer else case.inputs
        for _ in range(directions):
            rows_of_w = case.gates * case.H
            weights.append(draw(rows_of_w, below, scale=below**-0.5, memory=case.memory))
            weights.append(draw(rows_of_w, case.H, scale=case.H**-0.5, memory=case.memory))
            if case.bias:
                weights += [draw(rows_of_w), draw(rows_of_w)]
    states = (case.num_layers * directions, case.B, case.H)
    leaf = {"memory": case.memory}
    return Data(
        input=draw(*rows, case.inputs, **leaf).requires_grad_(),
        hx=draw(*states, **leaf).requires_grad_() if case.with_hx else None,
        weights=[w.requires_grad_() for w in weights],
        batch_sizes=batch_sizes,
        dy=draw(*rows, directions * case.H, **leaf),
        dh_n=draw(*states, **leaf),
    )


def run(rnn, case, data):
    """Return the outputs and gradients of `baseline` or of rnnfast.functional.rnn, by name."""
    output, h_n = rnn(
        data.input, data.hx, data.weights,
        batch_first=case.layout == "batch", batch_sizes=data.batch_sizes, **case.options,
    )  # fmt: skip
    heads = {"output": [(output, data.dy)], "h_n": [(h_n, data.dh_n)]}
    heads["both"] = heads["output"] + heads["h_n"]
    roots, seeds = zip(*heads[case.gradients_of], strict=True)
    gradients = torch.autograd.grad(roots, list(data.wanted.values()), seeds, allow_unused=True)
    results = {"output": output.detach(), "h_n": h_n.detach()}
    for (name, tensor), gradient in zip(data.wanted.items(), gradients, strict=True):
        results[f"d {name}"] = torch.zeros_like(tensor) if gradient is None else gradient
    return results


def run_reference(case, data, output=None):
    """Return the outputs and gradients of rnnfast.reference in the wider dtype, by name.

    Each sequence of a packed batch runs alone. If `output` is given, for a single layer, the
    gradients are computed from these hidden states instead of those of the reference.
    """
    wide = np.longdouble if case.dtype == torch.float64 else np.float64

    def array(t):
        return None if t is None else t.detach().cpu().double().numpy().astype(wide)

    x, hx, dy, dh_n = map(array, (data.input, data.hx, data.dy, data.dh_n))
    weights = [array(w) for w in data.weights]
    dy = dy * (case.gradients_of != "h_n")
    dh_n = dh_n * (case.gradients_of != "output")

    if case.layout == "packed":
        starts = np.concatenate([[0], np.cumsum(data.batch_sizes.numpy())])
        # Each sequence has a pair: its rows of the packed data, and its rows of the states.
        parts = [
            (starts[:length, None] + b, slice(b, b + 1))
            for b, length in enumerate(lengths_of(case))
        ]
    elif case.layout == "batch":
        x, dy = x.swapaxes(0, 1), dy.swapaxes(0, 1)
        parts = [(slice(None), slice(None))]
    else:
        parts = [(slice(None), slice(None))]

    given = array(output)
    if given is not None and case.layout == "batch":
        given = given.swapaxes(0, 1)
    output, dx = np.empty_like(dy), np.empty_like(x)
    h_n, dhx, dweights = np.empty_like(dh_n), np.empty_like(dh_n), [0] * len(weights)
    for rows, states in parts:
        start = None if hx is None else hx[:, states]
        outputs, h_n[:, states] = reference.rnn(x[rows], start, weights, **case.options)
        output[rows] = outputs[-1]
        if given is not None:
            outputs = [given[rows]]
        dx[rows], dhx[:, states], more = reference.rnn_backward(
            x[rows], start, weights, outputs, dy[rows], dh_n[:, states], **case.options
        )
        dweights = [total + part for total, part in zip(dweights, more, strict=True)]
    if case.layout == "batch":
        output, dx = output.swapaxes(0, 1), dx.swapaxes(0, 1)
    results = {"output": output, "h_n": h_n, "d input": dx, "d hx": dhx}
    results |= {f"d weight {i}": d for i, d in enumerate(dweights)}
    return {name: results[name] for name in ("output", "h_n", *(f"d {n}" for n in data.wanted))}


def error(results, truth):
    """Return the largest deviation of each tensor, or infinity if a value is not finite."""
    errors = {}
    for name, true in truth.items():
        found = results[name].cpu().double().numpy().astype(true.dtype)
        assert found.shape == true.shape, f"{name}: {found.shape}, expected {true.shape}"
        deviation = np.abs(found - true).max(initial=0)
        errors[name] = deviation if np.isfinite(deviation) else np.inf
    return errors


def check(ours, torchs, truth, dtype, truth_of_torchs=None):
    """Assert that the results `ours` meet the rule. The message names each tensor that does not.

    `truth_of_torchs` is what nn.RNN is compared with, if that is not `truth`.
    """
    assert ours.keys() == torchs.keys() == truth.keys()
    our_error = error(ours, truth)
    torch_error = error(torchs, truth if truth_of_torchs is None else truth_of_torchs)
    eps = torch.finfo(dtype).eps
    broken = []
    for name, true in truth.items():
        limit = 2 * torch_error[name] + TINY * eps * np.abs(true).max(initial=0)
        assert ours[name].dtype == dtype, f"{name}: {ours[name].dtype}, expected {dtype}"
        if not our_error[name] <= limit:
            broken.append(f"{name}: {our_error[name]:.3g}, allowed {limit:.3g}")
    assert not broken, "; ".join(broken)
