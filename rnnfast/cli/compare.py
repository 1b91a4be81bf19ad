"""`rnnfast compare`, `plot` and `join`: commands for several models or runs together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .. import lm
from .._common.plots import check_plot, save_figure
from ..lm.training import curves
from .options import (
    RUN,
    TEXTS,
    Commands,
    add_command,
    add_option,
    add_out_options,
    add_plot_option,
    add_setting,
    add_text_options,
    plot_path,
    warn_without_effect,
)
from .output import Output
from .train import TrainingProgress, model_name

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure

COMPARE_SECONDS = 300.0  # time budget of each neural model in a comparison


def compare(args: argparse.Namespace, output: Output) -> int:
    """Train every kind of model on one text, mix them, and print a table."""
    if args.plot:
        check_plot(args.plot)
    names = ("level", "min_count", "max_vocab", "epochs", "max_seconds", "threads", "device")
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if not settings.keys() & {"epochs", "max_seconds"}:
        settings["max_seconds"] = COMPARE_SECONDS

    def run(trainer: lm.Trainer) -> None:
        assert trainer.folder is not None
        output.progress.print(escape(f"{model_name(trainer.config)}, in {trainer.folder.final}"))
        with TrainingProgress(output.progress, trainer.config) as progress:
            trainer.run(progress.step, progress.validation)

    corpus = lm.corpus.read(None, args.train, args.valid, args.test, args.vocab)
    warn_without_effect(args, args.level or lm.Config.defaults().level)
    try:
        models = lm.compare(corpus, settings, args.out, run)
    except lm.Interrupted as interrupted:
        output.text.print(
            f"stopped; the same command continues with the models in {escape(args.out)}"
        )
        return 128 + interrupted.signum
    output.text.print(comparison_table(models))
    output.json(models)
    if args.plot:
        save_figure(_comparison_figure(models), args.plot)
    return 0


def comparison_table(models: list[dict]) -> Table:
    """Return the table of a comparison. `models` is what `lm.compare` returned."""
    columns = {
        "valid": "valid_perplexity",
        "test": "test_perplexity",
        "test, words alone": "test_perplexity_of_words",
    }
    if models[0]["test_perplexity_of_words"] is None:
        columns.popitem()
    rows = []
    for model in models:
        costs = (model["bytes"] / 1e6, model["train_seconds"])
        row = [f"{model[key]:.2f}" for key in columns.values()] + [f"{c:.1f}" for c in costs]
        rows.append([*row, f"{model['tokens_per_second']:,.0f}"])
    table = Table("model", title="perplexity and costs", title_justify="left")
    names = (*columns, "MB", "training, s", "tokens/s scored")
    for name, figures in zip(names, zip(*rows, strict=True), strict=True):
        # On a narrow terminal the names of the models are cut into lines, and figures stay whole.
        whole = max(map(len, [*name.split(), *figures]))
        table.add_column(name.replace(" ", "\n"), justify="right", min_width=whole)
    for model, row in zip(models, rows, strict=True):
        table.add_row(model["model"], *row)
    return table


def _comparison_figure(models: list[dict]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.4 * len(models)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([m["model"] for m in models], [m["test_perplexity"] for m in models])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("perplexity of the test text")
    return figure


def plot(args: argparse.Namespace, output: Output) -> int:
    """Draw the learning curves of runs."""
    check_plot(args.output)
    runs = {run: curves.read_log(run) for run in args.runs}
    report = []
    for run, records in runs.items():
        steps, losses = curves.curve(records, "valid")
        if not steps and not curves.curve(records, "train")[0]:
            raise lm.UserError(f"the log of {run} has no loss yet: let the run continue")
        best = min(losses, default=None)
        line = f"{run}: no validation yet"
        if best is not None:
            line = f"{run}: best validation {best:.4f} nats, at step {steps[losses.index(best)]}"
        output.text.print(escape(line))
        report.append({"run": run, "best_valid_loss": best, "log": records})
    save_figure(curves.figure(runs, args.x), args.output)
    output.text.print(escape(f"drawn in {args.output}"))
    output.json(report)
    return 0


def join(args: argparse.Namespace, output: Output) -> int:
    """Make one RNN of several and save it."""
    model, config = lm.join_folders(args.model)
    lm.save(model, config, args.out, args.overwrite)
    parameters = sum(p.numel() for p in model.parameters())
    output.text.print(
        f"{config.cell} RNN, {config.nlayers} x {config.nhid} units, {parameters:,} parameters. "
        f"Saved in {escape(args.out)}"
    )
    output.json({"models": args.model, "nhid": config.nhid, "parameters": parameters})
    return 0


def register(commands: Commands) -> None:
    """Add the commands to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = (
        "Train n-grams, a window, an RNN and an LSTM on one text, mix all except the LSTM, and "
        "print a table of their perplexities and costs."
    )
    sub = add_command(commands, "compare", compare, about, epilog=TEXTS)
    add_option(sub, "train", str, "Text to train on", "TEXT", required=True)
    add_option(
        sub, "valid", str, "Text to validate on and to tune mixtures on", "TEXT", required=True
    )
    add_option(sub, "test", str, "Text to evaluate the models on", "TEXT", required=True)
    add_text_options(sub)
    add_setting(sub, "epochs", int, "Passes of a neural model over the text")
    shown = f"{COMPARE_SECONDS:g} without --epochs"
    about = "Time budget of each neural model in seconds"
    add_setting(sub, "max_seconds", float, about, shown=shown)
    about = "Folder of the neural models. Models that it has are not trained again"
    add_option(sub, "out", str, about, "DIR", default="rnnfast-compare")
    add_plot_option(sub, "Draw the perplexities")

    about = "Draw the learning curves of runs, from their logs."
    sub = add_command(commands, "plot", plot, about, device=False, threads=False)
    sub.add_argument("runs", metavar="RUN", nargs="+", help=RUN)
    about = "Draw in this .png or .svg file"
    add_option(sub, "output", plot_path, about, "FILE", default=Path("learning-curves.png"))
    add_option(sub, "x", None, "Unit of the x-axis", choices=curves.AXES, default="steps")

    about = "Join several RNNs into one whose logits are the mean of theirs: an ensemble."
    sub = add_command(commands, "join", join, about, device=False, threads=False)
    sub.add_argument("model", metavar="MODEL", nargs="+", help=RUN)
    add_out_options(sub, "Folder to save the model in", required=True)
