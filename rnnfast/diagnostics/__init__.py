"""How gradients flow through an Elman RNN: where they vanish, and where they explode.

The gradient of a loss at time step T reaches step t through a product of Jacobians of single steps,

    dh_T/dh_t = J_T J_{T-1} ... J_{t+1},   J_k = diag(f'(a_k)) W_hh,

whose norm shrinks or grows by about the same factor at every step (Pascanu, Mikolov & Bengio, "On
the difficulty of training recurrent neural networks", 2013). `figures.py` draws examples.

The functions take a `FastRNN` of any number of layers and directions. In the shapes of their
results, L is the number of layers, D the number of directions, T the number of time steps, B the
batch size and H the hidden size.
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
    """One layer in one direction. Its time steps are in the order in which they are computed."""

    weight_hh: torch.Tensor  # (H, H)
    inputs: torch.Tensor  # (T, B, H), W_ih x_t + b. The gradient of these is dL/da
    states: torch.Tensor  # (T, B, H)


def spectral_radius(rnn: FastRNN, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """Return the spectral radius of W_hh: the largest absolute value of an eigenvalue.

    Args:
        rnn: the RNN whose weights are taken.
        dtype: torch.float32 or torch.float64, in which the eigenvalues are computed.

    Returns:
        An array of shape (L, D) in `dtype`.

    Raises:
        TypeError: `rnn` is not a FastRNN.
        ValueError: `rnn` has zoneout.

    Example:
        >>> import torch
        >>> from rnnfast import FastRNN, diagnostics
        >>> rnn = FastRNN(3, 4)
        >>> _ = torch.nn.init.eye_(rnn.weight_hh_l0)
        >>> diagnostics.spectral_radius(rnn)
        array([[1.]])
    """
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
    """Return the norm of dL/dh_t, taken over batch and units, for every time step.

    dL/dh_t is the whole gradient: it reaches the state through the output of its step and through
    all later states. One backward pass is enough, because the kernel computes dL/da_t on its way:
    `dL/dh_t = dL/doutput_t + W_hh^T dL/da_{t+1}`. The gradients of the parameters do not change,
    and dropout is not applied.

    Args:
        rnn: a FastRNN without zoneout.
        input: a batch as the module takes it: (T, B, I), (B, T, I) if `batch_first`, or tokens
            (T, B) or (B, T), int64.
        loss: a function from the module's output, (T, B, D * H) or (B, T, D * H), to a scalar.
        hx: the initial state, (L * D, B, H). None means zeros.

    Returns:
        A float64 array of shape (L, D, T).

    Raises:
        TypeError: `rnn` is not a FastRNN.
        ValueError: `rnn` has zoneout, `input` or `hx` has a different shape, or `loss` returns
            something else than a scalar that depends on the output.

    Example:
        >>> import torch
        >>> from rnnfast import FastRNN, diagnostics
        >>> rnn, x = FastRNN(3, 4), torch.zeros(10, 2, 3)
        >>> norms = diagnostics.gradient_norms(rnn, x, lambda output: output[-1].sum())
        >>> norms.shape
        (1, 1, 10)
        >>> bool(norms[0, 0, 0] < norms[0, 0, -1])  # it vanishes on its way back
        True
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
    """Return the spectral norm of dh_T/dh_t for every time step t.

    T is the last step that a direction computes, and the norm there is 1. The Jacobians are those
    within a layer. Each row of the batch costs T products of H x H matrices, so give few rows.

    Args:
        rnn: a FastRNN without zoneout.
        input: a batch as the module takes it: (T, B, I), (B, T, I) if `batch_first`, or tokens
            (T, B) or (B, T), int64.
        hx: the initial state, (L * D, B, H). None means zeros.

    Returns:
        A float64 array of shape (L, D, T, B).

    Raises:
        TypeError: `rnn` is not a FastRNN.
        ValueError: `rnn` has zoneout, or `input` or `hx` has a different shape.

    Example:
        >>> import torch
        >>> from rnnfast import FastRNN, diagnostics
        >>> norms = diagnostics.jacobian_norms(FastRNN(3, 4), torch.zeros(10, 2, 3))
        >>> norms.shape
        (1, 1, 10, 2)
        >>> norms[0, 0, -1]
        array([1., 1.])
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
        raise ValueError(
            "rnn must be without zoneout: with it a step's Jacobian is not diag(f'(a)) W_hh"
        )


def _names(rnn: FastRNN) -> list[str]:
    """Return the ends of the parameters' names, layer by layer: l0, l0_reverse, l1, ..."""
    directions = ("", "_reverse") if rnn.bidirectional else ("",)
    return [f"l{layer}{direction}" for layer in range(rnn.num_layers) for direction in directions]


def _unroll(
    rnn: FastRNN, input: torch.Tensor, hx: torch.Tensor | None
) -> tuple[torch.Tensor, list[_Cell]]:
    """Return the states of the last layer, (T, B, D * H), and the cells of every layer.

    The product with W_ih is computed outside of the kernel, which gets an identity as its W_ih. The
    gradient of the kernel's input is then dL/da.
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
    """Stack the norms of all cells, (T, ...) each, to (L, D, T, ...) in the order of the input."""
    D = 2 if rnn.bidirectional else 1
    norms = [norm.flip(0) if k % D else norm for k, norm in enumerate(norms)]
    stacked = torch.stack(norms)
    return stacked.reshape(rnn.num_layers, D, *stacked.shape[1:]).cpu().numpy()
