"""`rnnfast compare`, `plot` and `join`: commands for several models or runs together."""

from __future__ import annotations

import argparse
import os
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .. import lm
from .._common.files import check_writable, write_atomic
from .._common.plots import check_plot, save_figure
from ..lm.compare import SAMPLE_TEMPERATURE
from ..lm.training import curves
from .options import (
    RUN,
    TEXTS,
    Commands,
    add_command,
    add_option,
    add_out_options,
    add_plot_option,
    add_preset_option,
    add_setting,
    add_text_options,
    plot_path,
    warn_without_effect,
)
from .output import Output
from .train import TrainingProgress, model_name

if TYPE_CHECKING:  # matplotlib is optional
    from matplotlib.figure import Figure

BUDGETS = {"epochs", "max_seconds", "preset"}
COMPARE_SECONDS = 300.0  # time budget of each neural model in a comparison


def compare(args: argparse.Namespace, output: Output) -> int:
    """Train every kind of model on one text, mix them, and print a table."""
    if args.plot:
        check_plot(args.plot)
    if args.markdown is not None:
        check_writable(args.markdown, "--markdown")
    names = ["level", "min_count", "max_vocab", "threads", "device", *BUDGETS]
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if not settings.keys() & BUDGETS:
        settings["max_seconds"] = COMPARE_SECONDS

    def run(trainer: lm.Trainer) -> None:
        assert trainer.folder is not None
        output.progress.print(escape(f"{model_name(trainer.config)}, in {trainer.folder.final}"))
        with TrainingProgress(output.progress, trainer.config) as progress:
            trainer.run(progress.step, progress.validation)

    corpus = lm.corpus.read(args.data, args.train, args.valid, args.test, args.vocab)
    if not (args.train or args.test):
        corpus = _with_test(corpus)
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
    if args.markdown is not None:
        write_atomic(args.markdown, _markdown(models, args.markdown, args.plot).encode())
    return 0


def _with_test(corpus: lm.Corpus) -> lm.Corpus:
    """Return the corpus with the second half of its validation text as the test text."""
    middle = len(corpus.valid) // 2
    # The source of a corpus names whole files only, so that `resume` could not read this one again.
    test = str(corpus.valid[middle:])
    return replace(corpus, valid=corpus.valid[:middle], test=test, source={})


def _figures(models: list[dict]) -> dict[str, list[str]]:
    """Return the columns of the table by their names."""
    columns = {
        "valid": [f"{m['valid_perplexity']:.2f}" for m in models],
        "test": [f"{m['test_perplexity']:.2f}" for m in models],
    }
    if models[0]["test_perplexity_of_words"] is not None:
        columns["test, words alone"] = [f"{m['test_perplexity_of_words']:.2f}" for m in models]
    return columns | {
        "parameters": [f"{m['parameters']:,}" for m in models],
        "MB": [f"{m['bytes'] / 1e6:.1f}" for m in models],
        "training, s": [f"{m['train_seconds']:.1f}" for m in models],
        "tokens/s scored": [f"{m['tokens_per_second']:,.0f}" for m in models],
    }


def comparison_table(models: list[dict]) -> Table:
    """Return the table of a comparison. `models` is what `lm.compare` returned."""
    columns = _figures(models)
    table = Table("model", title="perplexity and costs", title_justify="left")
    for name, figures in columns.items():
        # On a narrow terminal the names of the models are cut into lines, and figures stay whole.
        whole = max(map(len, [*name.split(), *figures]))
        table.add_column(name.replace(" ", "\n"), justify="right", min_width=whole)
    for model, *row in zip(models, *columns.values(), strict=True):
        table.add_row(model["model"], *row)
    return table


def _markdown(models: list[dict], path: str, picture: Path | None) -> str:
    """Return the table, a link to the picture and the samples as a page for the file `path`."""
    columns = _figures(models)
    lines = [f"| {' | '.join(('model', *columns))} |"]
    lines.append(f"| {' | '.join(['---', *['---:'] * len(columns)])} |")
    for model, *row in zip(models, *columns.values(), strict=True):
        lines.append(f"| {' | '.join((model['model'], *row))} |")
    if picture:
        link = Path(os.path.relpath(picture, Path(path).parent)).as_posix()
        lines += ["", f"![Perplexity of the test text by model]({link})"]
    lines += ["", "## Samples", "", f"The temperature of the samples is {SAMPLE_TEMPERATURE}."]
    for model in models:
        if model["sample"] is not None:
            # Indented text is code, in which no character has a special meaning.
            sample = textwrap.indent(model["sample"].strip("\n"), "    ")
            lines += ["", f"### {model['model']}", "", sample]
    return "\n".join(lines) + "\n"


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
        "print a table of their perplexities and costs. Without a text, use Python's language "
        "reference."
    )
    sub = add_command(commands, "compare", compare, about, epilog=TEXTS)
    about = "Train on the first 90%% of this text, and validate and test on a half each of the rest"
    add_option(sub, "data", str, about, "TEXT")
    add_option(sub, "train", str, "Train on this text, instead of --data", "TEXT")
    about = "Validate and tune mixtures on this text, together with --train"
    add_option(sub, "valid", str, about, "TEXT")
    add_option(sub, "test", str, "Evaluate the models on this text", "TEXT")
    add_text_options(sub)
    add_preset_option(sub)
    add_setting(sub, "epochs", int, "Passes of a neural model over the text")
    shown = f"{COMPARE_SECONDS:g} without --epochs and --preset"
    about = "Time budget of each neural model in seconds"
    add_setting(sub, "max_seconds", float, about, shown=shown)
    about = "Folder of the neural models. Models that it has are not trained again"
    add_option(sub, "out", str, about, "DIR", default="rnnfast-compare")
    add_plot_option(sub, "Draw the perplexities")
    about = "Write the table, with a link to the plot, and a sample of each model as Markdown"
    add_option(sub, "markdown", str, about, "PATH")

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
