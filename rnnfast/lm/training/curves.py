"""Draw learning curves from the logs of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._common.errors import UserError
from ..._common.storage import LOG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"steps": "step", "epochs": "epoch", "seconds": "seconds"}  # their names in the log
LOSSES = ("train", "valid")


def read_log(path: str | Path) -> list[dict]:
    """Return the records in the log of a run's folder, the oldest first.

    Raises UserError if the folder has no log, or the log cannot be read.
    """
    file = Path(path) / LOG
    try:
        lines = file.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} has no {LOG}: give a folder that rnnfast train made") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
            records.append(record)
        except ValueError as error:
            if number < len(lines):  # the last line of a killed run may be incomplete
                raise UserError(f"{file}, line {number}, is not a record of a run") from error
    return records


def curve(records: list[dict], loss: str, x: str = "steps") -> tuple[list[float], list[float]]:
    """Return a learning curve: the places on the x axis, and the losses in nats per token.

    `loss` is one of LOSSES and `x` is one of AXES.
    """
    keys = (AXES[x], f"{loss}_loss")
    places, losses = [], []
    for record in records:
        place, value = (record.get(key) for key in keys)
        if isinstance(place, (int, float)) and isinstance(value, (int, float)):
            places.append(place)
            losses.append(value)
    return places, losses


def figure(runs: Mapping[str, list[dict]], x: str = "steps") -> Figure:
    """Return a matplotlib figure with the curves of runs by their names.

    Each run has a colour. The training loss is a thin line, the validation loss has dots.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, records) in enumerate(runs.items()):
        styles: list[dict[str, Any]] = [
            {"linewidth": 0.8, "alpha": 0.6},
            {"marker": "o", "markersize": 3},
        ]
        for loss, style in zip(LOSSES, styles, strict=True):
            points = curve(records, loss, x)
            if points[0]:
                axes.plot(*points, color=f"C{number}", label=f"{name}, {loss}", **style)
    axes.set_xlabel(x)
    axes.set_ylabel("cross-entropy, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
