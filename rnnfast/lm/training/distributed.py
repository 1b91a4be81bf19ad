"""One training run in several processes that `torchrun` has started."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..._common.errors import ArgumentError
from ..._common.runtime import rank, world_size
from ..config import Config

# A process may wait for a long time while rank 0 evaluates. No shorter limit is needed to detect a
# process that has died, because torchrun does that.
TIMEOUT = timedelta(days=1)


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the process group while the body of a `with` statement runs.

    Nothing happens in a process that torchrun has not started.
    """
    if not distributed.is_torchelastic_launched():
        yield
        return
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if is_cuda else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        # A trainer that is still alive keeps the group alive. Its threads may then outlive the
        # interpreter, which sometimes ends in an abort (pytorch/pytorch#179291).
        gc.collect()
        distributed.destroy_process_group()


class Ranks:
    """The processes of the default group of torch.distributed, or only this one without a group.

    Attributes:
        rank: The number of this process.
        size: The number of processes.
        device: The device of this process.
    """

    def __init__(self, config: Config):
        self.rank, self.size = rank(), world_size()
        if config.batch_size % self.size:
            raise ArgumentError(
                f"batch_size must be a multiple of the {self.size} processes, not "
                f"{config.batch_size}"
            )
        if config.accumulate > config.batch_size // self.size:
            raise ArgumentError(
                f"accumulate must be at most the {config.batch_size // self.size} sequences of a "
                f"process, not {config.accumulate}"
            )
        self.adaptive = config.adaptive
        self.device = torch.device(config.device)
        if self.size > 1 and self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())

    def own_sequences(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sequences of this process: B / size neighbours of (T, B) or (.., B, H)."""
        return x.tensor_split(self.size, 1)[self.rank]

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return sums.tolist()

    def gather(self, value: object) -> list:
        """Gather the values of all processes on rank 0. Elsewhere return only this value."""
        if self.size == 1:
            return [value]
        values: list | None = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(value, values)
        return values or [value]

    def averaging(self, model: nn.Module, loss: Callable) -> Callable:
        """Return `loss` so that its gradients are averaged over all processes."""
        if self.size == 1:
            return loss
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            _Loss(model, loss),
            devices,
            gradient_as_bucket_view=True,
            # A batch may have no token of one of the clusters of an adaptive softmax.
            find_unused_parameters=self.adaptive,
        )

    def deferred(self, loss: Callable, last: bool) -> contextlib.AbstractContextManager:
        """Return a context in which gradients are only added up.

        They are averaged over the processes together with those of the `last` part of the batch.
        """
        if last or not isinstance(loss, DistributedDataParallel):  # there is one process
            return contextlib.nullcontext()
        return loss.no_sync()


class _Loss(nn.Module):
    """A module whose `forward` is the loss, because DistributedDataParallel hooks `forward`."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *args: Any) -> Any:
        return self.loss(*args)
