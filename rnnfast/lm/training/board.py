"""Write the log of a run for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from ..._common.errors import MissingPackage


def check() -> None:
    """Raise UserError if the package tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - an optional dependency
    except ImportError as error:
        raise MissingPackage(
            "--tensorboard needs the package tensorboard: pip install 'rnnfast[tensorboard]'"
        ) from error


class Board:
    """The event files in a folder, which TensorBoard draws.

    TensorBoard no longer shows what earlier event files have from `step` on.
    """

    def __init__(self, path: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(path), purge_step=step)

    def log(self, record: dict) -> None:
        """Add a point to the curve of every number in `record`, at its "step".

        A list has one curve for each layer. A warning is a text.
        """
        for name, value in record.items():
            if name == "step" or value is None:
                continue
            if isinstance(value, str):
                self.writer.add_text(name, value, record["step"])
                continue
            for layer, one in enumerate(value) if isinstance(value, list) else [(None, value)]:
                curve = name if layer is None else f"{name}/{layer}"
                self.writer.add_scalar(curve, one, record["step"])
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()
