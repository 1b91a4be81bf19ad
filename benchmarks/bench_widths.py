"""Train models of several widths at several learning rates, and draw their validation losses.

    head -c 300000 train.txt > text.txt
    python benchmarks/bench_widths.py text.txt --level word --epochs 3 --json widths.json \\
        --plot widths.svg

Each run has the default settings of its level, except for the width, the rate and the budget. The
runs at the default rate are also made without anything that depends on the width. A run that the
JSON already has is not made again, so a benchmark that was stopped goes on.
"""

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from rnnfast import build_info, lm
from rnnfast._common.files import write_atomic

WIDTHS = (100, 200, 400, 800)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
KEYS = ("width", "factor", "mup")


def measure(corpus, settings, width, factor, mup):
    """Return the figures of one run. `factor` multiplies the default learning rate."""
    usual = lm.Config.defaults(**settings)
    sizes = {"nhid": width, "emsize": width if usual.tied else usual.emsize}
    config = lm.Config.defaults(**settings, **sizes)
    config = replace(config, lr=factor * (config.lr if mup else usual.lr), mup=mup)
    began = time.perf_counter()
    _, report = lm.train(config, corpus)
    return {
        "width": width,
        "factor": factor,
        "lr": config.lr,
        "mup": mup,
        "seconds": time.perf_counter() - began,
        "vocab_size": report["vocab_size"],
        "train_loss": report["curve"][-1]["train_loss"],
        "valid_losses": [record["valid_loss"] for record in report["curve"]],
    }


def final_losses(runs, factor=None, width=None, mup=True):
    """Return pairs of a width (or, of one width, a factor) and the last validation loss."""
    axis = "width" if width is None else "factor"
    chosen = [
        run
        for run in runs
        if run["mup"] == mup and factor in (None, run["factor"]) and width in (None, run["width"])
    ]
    return sorted((run[axis], run["valid_losses"][-1]) for run in chosen)


def figure(report):
    """Return a plot of the losses by width at the default rate, and by rate for each width."""
    runs = report["runs"]
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for mup, label, style in ((False, "not scaled", "o--"), (True, "scaled by width", "o-")):
        left.plot(*zip(*final_losses(runs, 1.0, mup=mup), strict=True), style, label=label)
    for width in sorted({run["width"] for run in runs}):
        right.plot(*zip(*final_losses(runs, width=width), strict=True), "o-", label=f"{width}")
    for axes, label in ((left, "hidden units"), (right, "learning rate / default")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_xticks(sorted({run["width"] for run in runs}))
    left.minorticks_off()
    left.set_ylabel("validation loss, nats per token")
    left.legend()
    right.legend(title="hidden units")
    return figure


def table(report):
    """Return a table of the losses, with a row for each width and a column for each rate."""
    runs = report["runs"]
    factors = sorted({run["factor"] for run in runs if run["mup"]})
    result = Table("units", title="validation loss in nats, by learning rate / default")
    for heading in (*(f"{factor:g}" for factor in factors), "1, not scaled"):
        result.add_column(heading, justify="right")
    for width in sorted({run["width"] for run in runs}):
        losses = dict(final_losses(runs, width=width))
        others = dict(final_losses(runs, width=width, mup=False))
        cells = [losses.get(factor) for factor in factors] + [others.get(1.0)]
        result.add_row(str(width), *("" if loss is None else f"{loss:.3f}" for loss in cells))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", help="Train on the first 90%% of this text")
    parser.add_argument("--level", default="char", help="Level of the tokens (default: char)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="(default: 3)")
    shown = " ".join(map(str, WIDTHS))
    about = f"Numbers of hidden units (default: {shown})"
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="N", help=about)
    about = "What to multiply the default learning rate by (default: 0.25 0.5 1 2 4)"
    parser.add_argument(
        "--factors", type=float, nargs="+", default=FACTORS, metavar="X", help=about
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--json", type=Path, required=True, help="File of the results")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    args = parser.parse_args()

    settings = {"level": args.level, "epochs": args.epochs, "threads": args.threads}
    corpus = lm.corpus.read(data=args.text)
    report = {"settings": settings, "torch": torch.__version__, "build": build_info(), "runs": []}
    if args.json.exists():
        report = json.loads(args.json.read_text())
        if report["settings"] != settings:
            parser.error(f"{args.json} has runs with the settings {report['settings']}")
    asked = [(width, 1.0, False) for width in args.widths]
    asked += itertools.product(args.widths, args.factors, [True])
    done = {tuple(run[key] for key in KEYS) for run in report["runs"]}
    for run in sorted(set(asked) - done):
        report["runs"].append(measure(corpus, settings, *run))
        write_atomic(args.json, (json.dumps(report, indent=1) + "\n").encode())
    Console(width=100).print(table(report))
    if args.plot:
        # Without these the file would differ from run to run.
        matplotlib.rcParams["svg.hashsalt"] = "rnnfast"
        figure(report).savefig(args.plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
