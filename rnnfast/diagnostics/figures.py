"""Pictures of gradient flow.

    python -m rnnfast.diagnostics.figures gradients.svg

draws the picture of the documentation, with the examples of `curves`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .._common.plots import require_matplotlib, save_figure
from ..nn import FastRNN
from . import gradient_norms, spectral_radius

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure

T, B, H = 60, 16, 64  # sizes of the RNNs in the picture
TRUNCATION = 20  # time steps
# The inputs are so small that tanh stays linear, even at a spectral radius of 1.25. Only W_hh then
# makes the gradient shrink or grow.
INPUT_STD = 1e-6


def example(weight_hh: torch.Tensor, nonlinearity: str = "tanh") -> tuple[FastRNN, torch.Tensor]:
    """Return an RNN with this W_hh and an identity as its W_ih, and small noise as its input."""
    H = len(weight_hh)
    rnn = FastRNN(H, H, nonlinearity=nonlinearity, bias=False)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(weight_hh)
        nn.init.eye_(rnn.weight_ih_l0)
    return rnn, INPUT_STD * torch.randn(T, B, H)


def of_radius(radius: float) -> torch.Tensor:
    """Return a Gaussian matrix, (H, H), scaled to the spectral radius."""
    weight = torch.randn(H, H)
    return weight * (radius / float(torch.linalg.eigvals(weight).abs().max()))


def last_step(output: torch.Tensor) -> torch.Tensor:
    """Return a loss of the last step alone, whose gradient has norm 1 and equal elements."""
    return output[-1].sum() / (B * H) ** 0.5


def curves() -> dict[str, dict[str, np.ndarray]]:
    """Compute what the picture shows: norms of dL/dh_t, (T,), by panel and label."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        radii = {radius: example(of_radius(radius)) for radius in (0.8, 1.0, 1.25)}
        uniform, orthogonal = (torch.empty(H, H) for _ in range(2))
        nn.init.uniform_(uniform, -(H**-0.5), H**-0.5)
        nn.init.orthogonal_(orthogonal)
        starts = {
            "uniform (torch's own)": example(uniform),
            "orthogonal": example(orthogonal),
            "identity, ReLU": example(torch.eye(H), "relu"),
        }
    norms = {radius: gradient_norms(*pair, last_step)[0, 0] for radius, pair in radii.items()}
    exploding, x = radii[1.25]
    # Truncation back-propagates through the last steps only. The state before them is a constant.
    with torch.no_grad():
        _, hx = exploding(x[:-TRUNCATION])
    truncated = np.full(T, np.nan)
    truncated[-TRUNCATION:] = gradient_norms(exploding, x[-TRUNCATION:], last_step, hx)[0, 0]
    (gradient,) = torch.autograd.grad(last_step(exploding(x)[0]), [exploding.weight_hh_l0])
    total = float(gradient.norm())
    return {
        "spectral radius of W_hh": {f"{radius:g}": norm for radius, norm in norms.items()},
        "initialisation": {
            f"{name}: {spectral_radius(rnn)[0, 0]:.2f}": gradient_norms(rnn, x, last_step)[0, 0]
            for name, (rnn, x) in starts.items()
        },
        "remedies at radius 1.25": {
            "none": norms[1.25],
            f"truncated after {TRUNCATION} steps": truncated,
            "dL/dW_hh clipped to 0.01": norms[1.25] * min(1.0, 0.01 / total),
        },
    }


def draw(panels: dict[str, dict[str, np.ndarray]], ylabel: str = "norm of dL/dh_t") -> Figure:
    """Draw panels side by side: norms by the number of time steps before the last.

    Args:
        panels: the norms, (T,), by the title of a panel and the label of a curve.
        ylabel: what the norms are.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        UserError: matplotlib, which is optional, is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (about, lines) in zip(all_axes, panels.items(), strict=True):
        for label, norms in lines.items():
            axes.semilogy(np.arange(1 - len(norms), 1), norms, label=label)
        axes.set_title(about, fontsize="medium")
        axes.set_xlabel("t - T, time steps")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel(ylabel)
    return figure


if __name__ == "__main__":
    save_figure(draw(curves()), Path(sys.argv[1]))
