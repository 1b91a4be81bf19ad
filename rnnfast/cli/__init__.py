"""The command line: a thin layer over the library, one module for each family of commands.

The exit status is 0 when the command is done, 2 for input that the user can correct (one line on
standard error says how), and 128 plus the number of the signal for a command that was stopped: 130
for Ctrl-C. A training run is saved before it stops.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from .._common.errors import DataWarning, UserError
from .._version import __version__
from . import bench, compare, diagnose, doctor, embed, ngram, score, tasks, train
from .options import as_typed
from .output import Output

__all__ = ["Output", "main", "parser"]

FAMILIES = (train, compare, ngram, score, tasks, diagnose, embed, bench, doctor)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: the command and its arguments. None takes those of the process.

    Example:
        >>> from rnnfast.cli import main
        >>> main(["generate", "nowhere"])  # an error on standard error says what is wrong
        2
    """
    if sys.stdout is None:  # standard output is closed, as by `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the program ends
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character of the text must not end the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args, rest = parser().parse_known_args(argv)
    if rest:  # argparse itself would show the usage of rnnfast, not that of the command
        args.refuse(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", DataWarning)
            warnings.showwarning = _shower(warnings.showwarning)
            return args.run(args, Output(args.json))
    except UserError as error:
        line = " ".join(as_typed(error, args).splitlines())
        print(f"rnnfast: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rnnfast: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has closed the pipe, as `| head` does. Without this, Python would fail again
        # when it writes the rest of the buffer at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _shower(others: Callable) -> Callable:
    """Return what shows a DataWarning on one line, and other warnings as `others` does."""

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, DataWarning):
            print(f"rnnfast: warning: {' '.join(str(message).splitlines())}", file=sys.stderr)
        else:
            others(message, category, *args, **kwargs)

    return show


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. It sets `run`, the function of the command,
    and `refuse`, which shows an error in its usage."""
    top = argparse.ArgumentParser(
        prog="rnnfast",
        description="Train, evaluate and use RNN and n-gram language models, sequence classifiers "
        "and taggers, and word vectors.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"rnnfast {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for family in FAMILIES:
        family.register(commands)
    return top
