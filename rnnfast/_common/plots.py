"""Plots: the check for matplotlib, and writing a figure."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import write_atomic


def require_matplotlib() -> None:
    """Raise UserError, which says what to install, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("a plot needs matplotlib: pip install 'rnnfast[plot]'") from error


def check_plot(path: Path) -> None:
    """Raise UserError if a plot cannot be written to `path`, before hours of work and not after."""
    require_matplotlib()
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: give a file in a folder that exists")


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure completely or not at all, as .png or .svg by the name's end."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], dpi=150)
    write_atomic(path, image.getvalue())
