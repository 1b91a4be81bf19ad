"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)

Item = TypeVar("Item")


def bar(console: Console, about: str, hidden: bool = False) -> Progress:
    """Return a bar with times and the text `about`, a rich template such as "{task.completed}".

    The bar shows nothing if it is `hidden`, or where the console is not a terminal. What is written
    to standard output while it shows still goes there, because it may be JSON for other programs.
    """
    columns = (BarColumn(), TextColumn(about), TimeElapsedColumn(), TimeRemainingColumn())
    disable = hidden or not console.is_terminal
    return Progress(*columns, console=console, redirect_stdout=False, disable=disable)


def measuring(items: Sequence[Item], console: Console) -> Iterable[Item]:
    """Iterate over `items` with a bar that moves between two items only.

    A bar that refreshes itself has a thread, which would compete with what is being timed.
    """
    return track(items, "measuring", console=console, auto_refresh=False, transient=True)
