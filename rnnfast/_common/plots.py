"""Plots: the check for matplotlib, the value of a `--plot` option, and writing a figure."""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_atomic


def require_matplotlib() -> None:
    """Raise UserError, saying what to install, where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("a plot needs matplotlib: pip install 'rnnfast[plot]'") from error


def check_plot(path: Path) -> None:
    """Raise UserError for a plot that cannot be: before the measurement rather than after it."""
    require_matplotlib()
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: give the plot a name in a folder")


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure, whole or not at all, in the format that the name ends with."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], dpi=150)
    write_atomic(path, image.getvalue())


def plot_path(text: str) -> Path:
    """The value of a --plot option."""
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r}: want a name that ends with .png or .svg")
    return path
