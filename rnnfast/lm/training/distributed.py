"""One training run in several processes, as `torchrun` starts them."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..._common.errors import UserError
from ..._common.runtime import rank, world_size
from ..config import Config

# A process may wait for another that evaluates; one that has died torchrun sees for itself.
TIMEOUT = timedelta(days=1)


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """In the process group that torchrun describes, if it started this process."""
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
        # A group that a trainer holds on to outlives this, and its threads the interpreter: an
        # abort now and then (pytorch/pytorch#179291).
        gc.collect()
        distributed.destroy_process_group()


class Ranks:
    """The processes of torch.distributed's default group, or this one alone if there is none."""

    def __init__(self, config: Config):
        self.rank, self.size = rank(), world_size()
        if config.batch_size % self.size:
            raise UserError(
                f"batch-size must be a multiple of the {self.size} processes, not "
                f"{config.batch_size}"
            )
        if config.accumulate > config.batch_size // self.size:
            raise UserError(
                f"accumulate must be at most the {config.batch_size // self.size} sequences of a "
                f"process, not {config.accumulate}"
            )
        self.adaptive = config.adaptive
        self.device = torch.device(config.device)
        if self.size > 1 and self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())

    def own_sequences(self, x: torch.Tensor) -> torch.Tensor:
        """Of (T, B) or (.., B, H) those of this process: B / size in a row."""
        return x.tensor_split(self.size, 1)[self.rank]

    def sum(self, *values: float) -> list[float]:
        """Of each over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return sums.tolist()

    def gather(self, value) -> list:
        """That of every process, in process 0; elsewhere only this one's."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(value, values)
        return values or [value]

    def averaging(self, model: nn.Module, loss: Callable) -> Callable:
        """`loss`, but its gradients of the model's parameters are the mean over all processes."""
        if self.size == 1:
            return loss
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            _Loss(model, loss),
            devices,
            gradient_as_bucket_view=True,
            # A batch may have no token of a cluster of the adaptive softmax.
            find_unused_parameters=self.adaptive,
        )

    def deferred(self, loss: Callable, last: bool) -> contextlib.AbstractContextManager:
        """Where gradients are only added up, to be averaged with those of the `last` part."""
        return contextlib.nullcontext() if last or self.size == 1 else loss.no_sync()


class _Loss(nn.Module):
    """What DistributedDataParallel can wrap: its hooks are on `forward`."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *args):
        return self.loss(*args)
