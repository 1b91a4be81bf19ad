"""`rnnfast diagnose`: gradient flow in a language model."""

from __future__ import annotations

import argparse

from rich.markup import escape
from rich.table import Table

from .. import lm
from .._common.plots import check_plot, save_figure
from .._common.runtime import set_up
from ..diagnostics.flow import flow
from ..nn import FastRNN
from .options import RUN, Commands, add_command, add_option, add_plot_option
from .output import Output


def diagnose(args: argparse.Namespace, output: Output) -> int:
    """Print, and draw, how far back the gradient of a prediction reaches."""
    if args.plot:
        check_plot(args.plot)
    if args.steps < 1:
        raise lm.UserError(f"--steps must be at least 1, not {args.steps}")
    set_up(args.device or "cpu", args.threads)
    model = lm.load(args.model, args.device or "cpu")
    if not isinstance(getattr(model, "rnn", None), FastRNN):
        raise lm.UserError(
            f"{args.model} is no Elman RNN: give a model of the kind rnn with the cell tanh or relu"
        )
    figures = flow(model, lm.read_text(args.data), args.steps)  # type: ignore[arg-type]  # see above
    report = {"model": args.model, **figures}
    output.text.print(_table(report))
    for layer, radius in enumerate(report["spectral_radius"], 1):
        output.text.print(f"layer {layer}: spectral radius of W_hh {radius:.4f}")
    output.json(report)
    if args.plot:
        from ..diagnostics.figures import draw

        layers = [f"layer {k}" for k in range(1, len(report["gradient_norms"]) + 1)]
        panels = {
            "norm of dL/dh_t": dict(zip(layers, report["gradient_norms"], strict=True)),
            "norm of dh_T/dh_t": dict(zip(layers, report["jacobian_norms"], strict=True)),
        }
        save_figure(draw(panels, "norm"), args.plot)
        output.text.print(escape(f"drawn in {args.plot}"))
    return 0


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


def register(commands: Commands) -> None:
    """Add the command to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = "Measure how far back the gradient of a prediction reaches in an RNN language model."
    sub = add_command(commands, "diagnose", diagnose, about)
    sub.add_argument("model", metavar="MODEL", help=RUN)
    add_option(sub, "data", str, "Text to predict, in UTF-8", "FILE", required=True)
    add_option(sub, "steps", int, "Tokens to go back", default=50)
    add_plot_option(sub, "Draw the norms")
