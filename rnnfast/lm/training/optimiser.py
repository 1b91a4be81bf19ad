"""How weights are updated: optimizers, learning rate schedules, averaging."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from ..._common.parameters import parameter_groups
from ..config import Config
from ..neural.models import NeuralLM

WARMUP_STEPS = 100  # warm-up ends here, or after this part of the budget if that is sooner
WARMUP_PART = 0.05
FINAL_LR = 0.01  # cosine ends at this fraction of the learning rate
PLATEAU_FACTOR = 0.5


def optimizer(model: NeuralLM, config: Config, device: torch.device) -> torch.optim.Optimizer:
    """No weight decay on biases and embeddings: it would only shrink what is rarely seen."""
    groups = parameter_groups(model, config.weight_decay, free=("bias", "encoder"))
    options = {"lr": config.lr, "fused": device.type in ("cpu", "cuda")}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, **options)
    return torch.optim.AdamW(groups, eps=config.eps, **options)


def learning_rate(config: Config, step: int, progress: float, scale: float) -> float:
    """Of the update after `step`, at `progress` of the budget: a linear warm-up, then the schedule.

    `scale` is what the plateau schedule has come to.
    """
    warmup = min(1.0, max((step + 1) / WARMUP_STEPS, progress / WARMUP_PART))
    if config.lr_schedule == "cosine":
        cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        scale = FINAL_LR + (1 - FINAL_LR) * cosine
    return config.lr * warmup * scale


def has_stalled(losses: list[float], patience: int) -> bool:
    """Whether the last loss is above one that came more than `patience` before it.

    The non-monotonic trigger of averaging (Merity et al. 2018, algorithm 1).
    """
    earlier = losses[: max(len(losses) - 1 - patience, 0)]
    return bool(earlier) and losses[-1] > min(earlier)


class Average:
    """The mean of the weights after each update since it was made (Polyak & Juditsky 1992)."""

    def __init__(self, model: NeuralLM):
        self.parameters = dict(model.named_parameters())
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, count: int) -> None:
        """After the update that is number `count`."""
        means, present = list(self.tensors.values()), list(self.parameters.values())
        torch._foreach_lerp_(means, present, 1 / count)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean, and after that its weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Data pointers, not values: no copy, and no rounding.
        for name, parameter in self.parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
