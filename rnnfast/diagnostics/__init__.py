"""How gradients flow through an Elman RNN: where they vanish, and where they explode.

Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks (2013): the
gradient of a loss at step T reaches step t through the product of step Jacobians

    dh_T/dh_t = J_T J_{T-1} ... J_{t+1},   J_k = diag(f'(a_k)) W_hh,

whose norm goes down or up by a factor a step. README.md beside this file has the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .. import functional
from ..nn import FastRNN

__all__ = ["gradient_norms", "jacobian_norms", "spectral_radius"]


class _Cell(NamedTuple):
    """One layer in one direction, its time steps in the order it goes through them."""

    weight_hh: torch.Tensor  # (H, H)
    inputs: torch.Tensor  # (T, B, H), W_ih x_t + b: dL/dinputs is dL/da
    states: torch.Tensor  # (T, B, H)


def spectral_radius(rnn: FastRNN, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The largest absolute value of an eigenvalue of W_hh, (L, D), computed in `dtype`."""
    _check(rnn)
    weights = (getattr(rnn, f"weight_hh_{name}").detach().to("cpu", dtype) for name in _names(rnn))
    radii = [torch.linalg.eigvals(weight).abs().max() for weight in weights]
    return torch.stack(radii).reshape(rnn.num_layers, -1).numpy()


def gradient_norms(
    rnn: FastRNN,
    input: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    hx: torch.Tensor | None = None,
) -> np.ndarray:
    """The norm of dL/dh_t over batch and units by time step, float64 (L, D, T).

    dL/dh_t is the whole gradient: what reaches the state through its output and through the states
    after it. One backward call has it, since the kernel computes dL/da_t on its way:
    ``dL/dh_t = dL/doutput_t + W_hh^T dL/da_{t+1}``. Gradients of parameters are not touched, and
    there is no dropout.

    Args:
        rnn: a FastRNN without zoneout.
        input: as the module takes it, a batch: (T, B, I), (B, T, I) if ``batch_first``, or tokens.
        loss: from the module's output, (T, B, D * H) or (B, T, D * H), to a scalar.
        hx: (L * D, B, H), or None for zeros.

    Raises:
        TypeError, ValueError: an argument that is none of these.
    """
    output, cells = _unroll(rnn, input, hx)
    value = loss(output.transpose(0, 1) if rnn.batch_first else output)
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ValueError(f"loss must return a scalar that depends on the output, got {value!r}")
    tensors = [tensor for cell in cells for tensor in (cell.inputs, cell.states)]
    gradients = torch.autograd.grad(value, tensors, materialize_grads=True)
    norms = []
    for cell, da, dh in zip(cells, gradients[::2], gradients[1::2], strict=True):
        dh = dh.double()
        dh[:-1] += (da[1:] @ cell.weight_hh).double()
        norms.append(dh.flatten(1).norm(dim=1))
    return _by_time(rnn, norms)


@torch.no_grad()
def jacobian_norms(rnn: FastRNN, input: torch.Tensor, hx: torch.Tensor | None = None) -> np.ndarray:
    """The spectral norm of dh_T/dh_t by time step, float64 (L, D, T, B).

    T is the last step that a direction goes through, where the norm is 1. The Jacobians are those
    within a layer; T products of H x H matrices a row of the batch, so give few rows. Arguments
    and errors as of :func:`gradient_norms`.
    """
    norms = []
    for cell in _unroll(rnn, input, hx)[1]:
        states = cell.states.double()
        slopes = 1 - states.square() if rnn.nonlinearity == "tanh" else (states > 0).double()
        weight = cell.weight_hh.double()
        product = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        product = product.repeat(states.shape[1], 1, 1)
        by_time = [product.new_ones(len(product))]
        for slope in slopes[1:].flip(0):
            product = product @ (slope[:, :, None] * weight)
            by_time.append(torch.linalg.matrix_norm(product, 2))
        norms.append(torch.stack(by_time[::-1]))
    return _by_time(rnn, norms)


def _check(rnn: FastRNN) -> None:
    if not isinstance(rnn, FastRNN):
        raise TypeError(f"rnn must be a FastRNN, got {type(rnn).__name__}")
    if rnn.zoneout:
        raise ValueError("rnn must be without zoneout, whose steps are not diag(f'(a)) W_hh alone")


def _names(rnn: FastRNN) -> list[str]:
    directions = ("", "_reverse") if rnn.bidirectional else ("",)
    return [f"l{layer}{direction}" for layer in range(rnn.num_layers) for direction in directions]


def _unroll(rnn: FastRNN, input: torch.Tensor, hx: torch.Tensor | None):
    """The last layer's states, (T, B, D * H), and every layer's cells.

    The input product is taken apart, so that what goes into the kernel, with an identity as its
    W_ih, has dL/da as its gradient.
    """
    _check(rnn)
    tokens = not input.is_floating_point()
    if input.dim() + tokens != 3 or not input.numel():
        raise ValueError(
            f"input must be a batch, (T, B, I) or (B, T, I) or tokens, got {tuple(input.shape)}"
        )
    x = input.detach().transpose(0, 1) if rnn.batch_first else input.detach()
    D = 2 if rnn.bidirectional else 1
    shape = (rnn.num_layers * D, x.shape[1], rnn.hidden_size)
    if hx is not None and hx.shape != shape:
        raise ValueError(f"hx must be {shape}, got {tuple(hx.shape)}")
    cells, states = [], []
    for k, name in enumerate(_names(rnn)):
        weight_ih, weight_hh = (getattr(rnn, f"weight_{w}_{name}").detach() for w in ("ih", "hh"))
        bias = 0.0
        if rnn.bias:
            bias = sum(getattr(rnn, f"bias_{b}_{name}").detach() for b in ("ih", "hh"))
        if tokens and k < D:
            inputs = F.embedding(x, weight_ih.t()) + bias
        else:
            inputs = F.linear(x, weight_ih) + bias
        if k % D:
            inputs = inputs.flip(0)
        if torch.is_grad_enabled() and not inputs.requires_grad:
            inputs.requires_grad_()
        h0 = None if hx is None else hx[k : k + 1].detach()
        identity = torch.eye(rnn.hidden_size, dtype=weight_hh.dtype, device=weight_hh.device)
        output, _ = functional.rnn(inputs, h0, [identity, weight_hh], nonlinearity=rnn.nonlinearity)
        cells.append(_Cell(weight_hh, inputs, output))
        states.append(output.flip(0) if k % D else output)
        if len(states) == D:
            x, states = torch.cat(states, -1), []
    return x, cells


def _by_time(rnn: FastRNN, norms: list[torch.Tensor]) -> np.ndarray:
    D = 2 if rnn.bidirectional else 1
    norms = [norm.flip(0) if k % D else norm for k, norm in enumerate(norms)]
    stacked = torch.stack(norms)
    return stacked.reshape(rnn.num_layers, D, *stacked.shape[1:]).cpu().numpy()
