"""One update of the weights: all that a training step has the device do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._torch import skips_updates_where
from ..config import Config
from ..neural.models import NeuralLM
from .distributed import Ranks
from .optimiser import max_norm, optimizer


class Figures(NamedTuple):
    """What the updates so far gave, as `Update.read` returns it."""

    loss: float  # the mean loss of the last chunk, in nats per token
    grad_norm: float  # the norm of its gradient before clipping
    loss_sum: float  # the sum of the losses since `Update.begin_sum`
    skipped: int  # the number of updates that did nothing, because of the two figures above


class Update:
    """Updates the weights: forward pass, backward pass through one chunk, clipping, optimizer.

    A call only gives work to the device, and the same work each time. It does not wait for a
    result, so a CUDA graph can hold it. Figures are added up on the device until `read` is called.
    The first loss or gradient that is not finite stays in the figures, and from that update on the
    weights stay what they are.

    Args:
        model: The model to train, on the device of `ranks`.
        config: The settings.
        ranks: The processes that train the model together.

    Attributes:
        optimizer: The optimizer. The rate of a group is a tensor on the device.
    """

    def __init__(self, model: NeuralLM, config: Config, ranks: Ranks):
        self.model, self.config, self.ranks = model, config, ranks
        loss = torch.compile(model.loss) if config.compile else model.loss
        self._loss = ranks.averaging(model, loss)
        self.optimizer = optimizer(model, config, ranks.device)
        self._failed = torch.zeros((), device=ranks.device)  # 1 once a figure is not finite
        self._skips = skips_updates_where(self.optimizer, self._failed)
        # The loss and the norm of the last chunk, the sum of the losses, the updates skipped.
        dtype = torch.float32 if ranks.device.type == "mps" else torch.float64
        self._figures = torch.zeros(4, dtype=dtype, device=ranks.device)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next updates."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate * group["lr_scale"])

    def restart(self) -> None:
        """Let the optimizer begin anew.

        Its tensors are not replaced, because a CUDA graph updates these.
        """
        for tensors in self.optimizer.state.values():
            for tensor in tensors.values():
                tensor.zero_()

    def __call__(self, inputs: Tensor, targets: Tensor, state: Tensor | None) -> Tensor:
        """Make one update.

        Args:
            inputs: The tokens of a chunk, int64 (T, B), on the device or in the memory of the host.
            targets: The tokens after them.
            state: The state of the model before the chunk, or None at the start of a text.

        Returns:
            The state after the chunk.
        """
        device = self.ranks.device
        inputs, targets = (
            staged(x, device).to(device, non_blocking=True) for x in (inputs, targets)
        )
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, state = self._backward(inputs, targets, state)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm(self.config))
        self._note(loss, norm)
        if self._skips or not self._failed.item():
            self.optimizer.step()
        return state

    def _backward(
        self, inputs: Tensor, targets: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients for one chunk of the sequences of this process.

        The sequences are cut into `accumulate` parts that run one after the other, so that only
        the activations of one part are in memory. Return the mean loss and the next state.
        """
        parts, device = self.config.accumulate, self.ranks.device
        cut = (x.tensor_split(parts, 1) for x in (inputs, targets))
        before: Sequence[Tensor | None] = [None] * parts
        if state is not None:
            before = state.tensor_split(parts, 1)
        losses: list[Tensor] = []
        states: list[Tensor] = []
        for ids, following, start in zip(*cut, before, strict=True):
            with self.ranks.deferred(self._loss, last=len(states) == parts - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
                    loss, end = self._loss(ids, following, start)
                loss = loss * (ids.shape[1] / inputs.shape[1])
                loss.backward()
            losses.append(loss.detach())
            states.append(end.detach())
        return sum(losses[1:], losses[0]), torch.cat(states, 1)

    @torch.no_grad()
    def _note(self, loss: Tensor, norm: Tensor) -> None:
        last, loss_sum, skipped = self._figures[:2], self._figures[2], self._figures[3]
        last.copy_(torch.where(self._failed > 0, last, torch.stack([loss, norm])))
        loss_sum += last[0]
        self._failed.copy_(~last.sum().isfinite())
        skipped += self._failed

    def read(self) -> Figures:
        """Wait for the device, and return its figures. The losses are means over all processes."""
        loss, norm, loss_sum, skipped = self._figures.tolist()
        size = self.ranks.size
        loss, loss_sum, skipped = self.ranks.sum(loss / size, loss_sum / size, skipped / size)
        # One of several processes may have skipped its update alone.
        return Figures(loss, norm, loss_sum, math.ceil(skipped))

    def begin_sum(self, value: float = 0.0) -> None:
        """Let the sum of the losses begin at `value`."""
        self._figures[2].fill_(value)


def staged(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` where a copy to the device can begin without waiting for the device."""
    return x.pin_memory() if x.is_cpu and device.type == "cuda" else x
