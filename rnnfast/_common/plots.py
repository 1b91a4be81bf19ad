"""Check for matplotlib, read the value of a `--plot` option, and write a figure."""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_atomic


def require_matplotlib() -> None:
    """Raise UserError, which says what to install, if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("a plot needs matplotlib: pip install 'rnnfast[plot]'") from error


def check_plot(path: Path) -> None:
    """Raise UserError if a plot cannot be drawn or written. Call this before the measurement."""
    require_matplotlib()
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            f"cannot write {path}: give the plot a name in a folder that can be written"
        )


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure in the format that the name ends with."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], dpi=150)
    write_atomic(path, image.getvalue())


def plot_path(text: str) -> Path:
    """Convert the value of a --plot option, a name that ends with .png or .svg."""
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r}: want a name that ends with .png or .svg")
    return path
