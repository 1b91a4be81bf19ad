"""Leaky units in plain NumPy and as the usual loop of torch, which the kernels are compared with.

The rule is that of tests/rule.py: the error of each output and gradient against the reference in a
wider dtype is at most twice that of the torch loop in the dtype under test, plus four roundings.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from rule import TINY
from torch.nn import functional as F

from rnnfast.functional import leaky_rnn

SIGMA = 0.3  # the standard deviation of the noise

# f and its derivative as a function of the argument.
NUMPY = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (2 + np.exp(x) + np.exp(-x))),
    "softplus": (lambda x: np.logaddexp(0, x), lambda x: 1 / (1 + np.exp(-x))),
    "linear": (lambda x: x, np.ones_like),
}
TORCH = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "linear": lambda x: x,
}
KINDS = list(itertools.product(("rate", "current"), TORCH))


@dataclass(frozen=True)
class Case:
    """One call of a layer: its sizes, its options, and what it is given."""

    T: int
    B: int
    inputs: int
    H: int
    state: str = "rate"
    nonlinearity: str = "tanh"
    bias: bool = True
    with_hx: bool = True
    with_xi: bool = True
    with_reset: bool = False
    dtype: torch.dtype = torch.float32


def make(case, seed=0):
    """Return the tensors of a case by name, as leaves, and the gradients of its outputs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        t = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (t * scale).to(case.dtype)

    T, B, H = case.T, case.B, case.H
    tensors = {
        "input": draw(T, B, case.inputs),
        "w_ih": draw(H, case.inputs, scale=case.inputs**-0.5),
        "w_hh": draw(H, H, scale=H**-0.5),
        "alpha": (draw(H) * 0.45 + 0.55).to(case.dtype),
    }
    if case.bias:
        tensors["b"] = draw(H)
    if case.with_hx:
        tensors["hx"] = draw(B, H)
    if case.with_xi:
        tensors["xi"] = draw(T, B, H)
    reset = torch.rand(T, B, generator=generator) < 0.2 if case.with_reset else None
    gradients = (draw(T, B, H), draw(B, H), draw(T, B, H))
    return {name: t.requires_grad_() for name, t in tensors.items()}, reset, gradients


def loop(tensors, reset, case, sigma):
    """Run the layer as public code does, and return ``(output, h_n, states)``."""
    f, current = TORCH[case.nonlinearity], case.state == "current"
    x, alpha = tensors["input"], tensors["alpha"]
    state = tensors["hx"] if case.with_hx else x.new_zeros(case.B, case.H)
    outputs, states = [], []
    for t in range(case.T):
        if reset is not None:
            state = state * ~reset[t, :, None]
        r = f(state) if current else state
        p = F.linear(x[t], tensors["w_ih"], tensors.get("b")) + F.linear(r, tensors["w_hh"])
        if case.with_xi:
            p = p + (2 / alpha).sqrt() * sigma * tensors["xi"][t]
        state = (1 - alpha) * state + alpha * (p if current else f(p))
        outputs.append(f(state) if current else state)
        states.append(state)
    return torch.stack(outputs), state, torch.stack(states)


def reference(tensors, reset, gradients, case, sigma):
    """Return the outputs and the gradients of the layer, computed in a wider dtype."""
    wide = np.longdouble if case.dtype is torch.float64 else np.float64
    v = {name: t.detach().double().numpy().astype(wide) for name, t in tensors.items()}
    dy, dh_n, dstates = (g.double().numpy().astype(wide) for g in gradients)
    f, slope = NUMPY[case.nonlinearity]
    current = case.state == "current"
    alpha, w_hh, T = v["alpha"], v["w_hh"], case.T
    scale = np.sqrt(2 / alpha) * wide(sigma)
    xi = v.get("xi", np.zeros((T, case.B, case.H), wide))
    kept = np.ones((T, case.B, 1), wide) if reset is None else ~reset.numpy()[:, :, None]
    before, rates, p, states = [], [], [], []
    state = v.get("hx", np.zeros((case.B, case.H), wide))
    for t in range(T):
        before.append(state * kept[t])
        rates.append(f(before[t]) if current else before[t])
        p.append(v["input"][t] @ v["w_ih"].T + rates[t] @ w_hh.T + v.get("b", 0) + scale * xi[t])
        state = (1 - alpha) * before[t] + alpha * (p[t] if current else f(p[t]))
        states.append(state)
    output = np.stack([f(s) if current else s for s in states])

    g = {name: np.zeros_like(t) for name, t in v.items()}
    dstate = dh_n
    for t in reversed(range(T)):
        dstate = dstate + (dy[t] * slope(states[t]) + dstates[t] if current else dy[t])
        target = p[t] if current else f(p[t])
        dp = dstate * alpha * (1 if current else slope(p[t]))
        g["alpha"] += (dstate * (target - before[t])).sum(0)
        g["alpha"] += (dp * xi[t]).sum(0) * -scale / (2 * alpha)
        g["w_ih"] += dp.T @ v["input"][t]
        g["w_hh"] += dp.T @ rates[t]
        g["input"][t] = dp @ v["w_ih"]
        if "b" in g:
            g["b"] += dp.sum(0)
        if "xi" in g:
            g["xi"][t] = dp * scale
        dr = dp @ w_hh
        dstate = dstate * (1 - alpha) + (dr * slope(before[t]) if current else dr)
        dstate = dstate * kept[t]
    if "hx" in g:
        g["hx"] = dstate
    return [output, states[-1], np.stack(states)], g


def check(ours, baseline, expected, dtype):
    """Hold results by name to the rule."""
    eps = torch.finfo(dtype).eps
    for name, wanted in expected.items():
        scale = np.abs(wanted).max()

        def error(results, name=name, wanted=wanted):
            return np.abs(results[name].detach().double().numpy() - wanted).max()

        allowed = 2 * error(baseline) + TINY * eps * scale
        assert error(ours) <= allowed, (name, float(error(ours)), float(allowed))


def run(tensors, reset, case, **options):
    """Call `leaky_rnn` for a case."""
    weights = [tensors[name] for name in ("w_ih", "w_hh", "b") if name in tensors]
    hx = tensors["hx"].unsqueeze(0) if "hx" in tensors else None
    noise = {"noise": SIGMA, "xi": tensors["xi"]} if "xi" in tensors else {}
    options = {"state": case.state, "nonlinearity": case.nonlinearity, **noise, **options}
    output, h_n, states = leaky_rnn(
        tensors["input"], hx, weights, tensors["alpha"], reset=reset, **options
    )
    return output, h_n[0], states


def with_gradients(outputs, tensors, gradients, case):
    """Return the outputs and the gradients of ``tensors`` by name."""
    used = slice(3 if case.state == "current" else 2)
    grads = torch.autograd.grad(outputs[used], list(tensors.values()), gradients[used])
    named = dict(zip(("output", "h_n", "states"), outputs, strict=True))
    return named | dict(zip(tensors, grads, strict=True))


def check_case(case, seed=0, device="cpu", loops_dtype=None):
    """Hold `leaky_rnn` on a device to the rule; the loop runs in ``loops_dtype`` if it is given."""
    tensors, reset, gradients = make(case, seed)
    there = {name: t.detach().to(device).requires_grad_() for name, t in tensors.items()}
    given = [g.to(device) for g in gradients]
    ours = with_gradients(run(there, reset, case), there, given, case)
    ours = {name: t.cpu() for name, t in ours.items()}
    its = replace(case, dtype=loops_dtype or case.dtype)
    own, _, own_gradients = make(its, seed)
    baseline = with_gradients(loop(own, reset, its, SIGMA), own, own_gradients, its)
    if case.state == "rate":
        gradients = (*gradients[:2], torch.zeros_like(gradients[2]))
    outputs, grads = reference(tensors, reset, gradients, case, SIGMA)
    expected = dict(zip(("output", "h_n", "states"), outputs, strict=True)) | grads
    check(ours, baseline, expected, case.dtype)
