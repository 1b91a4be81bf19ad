"""The log of a run for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from ..._common.errors import MissingPackage


def check() -> None:
    """Raises UserError if the package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - an optional dependency, imported when asked for
    except ImportError as error:
        raise MissingPackage(
            "--tensorboard needs the package tensorboard: pip install 'rnnfast[tensorboard]'"
        ) from error


class Board:
    """Event files in a folder; what earlier ones have from `step` on is not shown any more."""

    def __init__(self, path: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(path), purge_step=step)

    def log(self, record: dict) -> None:
        """A curve for every number of a line of the log, over its "step"."""
        for name, value in record.items():
            if name == "step" or value is None:
                continue
            for layer, one in enumerate(value) if isinstance(value, list) else [(None, value)]:
                curve = name if layer is None else f"{name}/{layer}"
                self.writer.add_scalar(curve, one, record["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
