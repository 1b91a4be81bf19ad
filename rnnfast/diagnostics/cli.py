"""`rnnfast diagnose`: gradient flow in a language model."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch.nn import functional as F

from .. import bench, lm
from .._common.runtime import set_up
from ..nn import FastRNN
from . import gradient_norms, jacobian_norms, spectral_radius

LANES = 32  # places of the text that gradients are summed over
JACOBIAN_LANES = 4  # and products of Jacobians averaged over: each costs T products of H x H


def register(command) -> None:
    """Add the command; `command(name, run, about)` makes its parser."""
    sub = command(
        "diagnose", diagnose, "How far back a prediction's gradient reaches in an RNN model."
    )
    sub.add_argument("model", metavar="MODEL", help="folder that rnnfast train made")
    sub.add_argument("--data", required=True, metavar="FILE", help="UTF-8 text")
    sub.add_argument("--steps", type=int, default=50, metavar="N", help="tokens to go back (50)")
    sub.add_argument("--plot", type=bench.plot_path, metavar="PATH", help="draw here, .png or .svg")


def diagnose(args: argparse.Namespace, output) -> int:
    if args.plot:
        bench.check_plot(args.plot)
    if args.steps < 1:
        raise lm.UserError(f"--steps must be at least 1, not {args.steps}")
    set_up(args.device or "cpu", args.threads)
    model = lm.load(args.model, args.device or "cpu")
    if not isinstance(getattr(model, "rnn", None), FastRNN):
        raise lm.UserError(f"{args.model} is no Elman RNN, which diagnose is for")
    report = {"model": args.model, **flow(model, lm.corpus.read_text(args.data), args.steps)}
    output.text.print(_table(report))
    for layer, radius in enumerate(report["spectral_radius"], 1):
        output.text.print(f"layer {layer}: spectral radius of W_hh {radius:.4f}")
    output.json(report)
    if args.plot:
        from .figures import draw

        layers = [f"layer {k}" for k in range(1, len(report["gradient_norms"]) + 1)]
        panels = {
            "norm of dL/dh_t": dict(zip(layers, report["gradient_norms"], strict=True)),
            "norm of dh_T/dh_t": dict(zip(layers, report["jacobian_norms"], strict=True)),
        }
        bench.save_figure(draw(panels, "norm"), args.plot)
        output.text.print(escape(f"drawn in {args.plot}"))
    return 0


def flow(model: lm.RNNLM, text: str, steps: int) -> dict:
    """Norms by time step of dL/dh_t, L the mean of -log p of the token after `steps` others at
    `LANES` places of the text, and the mean norm of dh_T/dh_t, layer by layer; the state begins at
    zero. Raises UserError for a text that is too short.
    """
    ids = model.vocab.encode_stream(text)
    if len(ids) <= steps:
        raise lm.UserError(f"the text has {len(ids)} tokens, too few for --steps {steps}")
    lanes = min(LANES, len(ids) - steps)
    starts = np.linspace(0, len(ids) - steps - 1, lanes).astype(int)
    device = model.encoder.weight.device
    ids = torch.from_numpy(ids[starts + np.arange(steps + 1)[:, None]]).to(device)
    with torch.no_grad():
        x = model.embed(ids[:-1])

    def loss(states: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model.decoder(states[-1]), ids[-1])

    return {
        "steps": steps,
        "lanes": lanes,
        "spectral_radius": spectral_radius(model.rnn)[:, 0].tolist(),
        "gradient_norms": gradient_norms(model.rnn, x, loss)[:, 0].tolist(),
        "jacobian_norms": jacobian_norms(model.rnn, x[:, :JACOBIAN_LANES])[:, 0].mean(-1).tolist(),
    }


def _table(report: dict) -> Table:
    layers = range(len(report["gradient_norms"]))
    table = Table("steps back")
    for layer in layers:
        for what in ("dL/dh_t", "dh_T/dh_t"):
            table.add_column(f"layer {layer + 1}: {what}", justify="right")
    back = [0, *(d * 10**e for e in range(5) for d in (1, 2, 5))]
    for steps in [b for b in back if b < report["steps"]]:
        row = []
        for layer in layers:
            for key in ("gradient_norms", "jacobian_norms"):
                row.append(f"{report[key][layer][-1 - steps]:.3g}")
        table.add_row(str(steps), *row)
    return table
