"""`rnnfast bench`: time the modules of rnnfast against those of torch."""

from __future__ import annotations

import argparse

import torch

from .. import bench
from .._common.plots import check_plot, save_figure
from .._common.progress import measuring
from ..bench import DEFAULT_SHAPES, THEIRS, Shape
from .options import Commands, add_command, add_flag, add_option, add_plot_option
from .output import Output


def run(args: argparse.Namespace, output: Output) -> int:
    """Measure, print the tables, and write the files asked for."""
    if args.plot:
        check_plot(args.plot)
    report = bench.measure(
        measuring(args.shapes, output.progress),
        cell=args.cell,
        dtype=getattr(torch, args.dtype),
        threads=args.threads,
        repeats=args.repeats,
        numpy=args.numpy,
    )
    report["command"] = _command(args)
    bench.show(report, output.text)
    output.json(report)
    if args.plot:
        save_figure(bench.figure(report), args.plot)
    return 0


def _command(args: argparse.Namespace) -> str:
    """Return the command that measures the same again, without the files that it writes."""
    words = ["rnnfast", "bench"]
    if args.cell != "rnn":
        words += ["--cell", args.cell]
    if args.shapes != DEFAULT_SHAPES:
        words += ["--shapes", *map(str, args.shapes)]
    for name in ("threads", "repeats"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name}", str(value)]
    if args.dtype != "float32":
        words += ["--dtype", args.dtype]
    if args.numpy:
        words.append("--numpy")
    return " ".join(words)


def _parse_shape(text: str) -> Shape:
    try:
        shape = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        shape = None
    if shape is None or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give four positive integers T,B,I,H")
    return shape


def register(commands: Commands) -> None:
    """Add the command to `commands`, what `ArgumentParser.add_subparsers` returned."""
    about = "Time FastRNN, FastGRU or FastLSTM against the module of torch.nn on the CPU."
    sub = add_command(commands, "bench", run, about, device=False)
    about = "Compare FastRNN and nn.RNN, FastGRU and nn.GRU, or FastLSTM and nn.LSTM"
    add_option(sub, "cell", None, about, choices=tuple(THEIRS), default="rnn")
    about = "Sizes of each call: time steps, batch rows, input size, hidden size"
    metavar, shown = "T,B,I,H", f"{len(DEFAULT_SHAPES)} shapes"
    add_option(
        sub, "shapes", _parse_shape, about, metavar, nargs="+", default=DEFAULT_SHAPES, shown=shown
    )
    about = "Samples of each measurement"
    add_option(sub, "repeats", int, about, shown="as many as fit in 1.5 s")
    dtypes = ("float32", "float64")
    add_option(sub, "dtype", None, "Data type", choices=dtypes, default="float32")
    add_flag(sub, "numpy", "Also time the forward pass of the NumPy reference (cell rnn)")
    add_plot_option(sub, "Draw the ratios")
