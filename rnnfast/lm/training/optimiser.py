"""The update of the weights: optimizers, learning rate schedules, averaging."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from ..._common.parameters import parameter_groups
from ..._torch import foreach_lerp_
from ..config import Config
from ..neural import width
from ..neural.models import NeuralLM

# The warm-up ends after so many steps, or after this part of the budget if that is earlier.
WARMUP_STEPS = 100
WARMUP_PART = 0.05
FINAL_LR = 0.01  # the cosine schedule ends at this fraction of the learning rate
PLATEAU_FACTOR = 0.5  # the plateau schedule multiplies the learning rate by this factor


def optimizer(model: NeuralLM, config: Config, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer of `config` for the parameters of `model`.

    Biases and embeddings have no weight decay, which would only shrink what is rarely seen. The
    "lr_scale" of a group is its part of the learning rate. Its "lr" is a tensor on the device, so
    that a change reaches a CUDA graph of the update.
    """
    decays = parameter_groups(model, config.weight_decay, free=("bias", "encoder"))
    hidden = {id(parameter) for parameter in width.hidden_matrices(model)}
    # The kernels of CUDA devices read a float32. Those of the CPU take a float64, as a float is.
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    groups = []
    for group in decays:
        for is_hidden, scale in ((False, 1.0), (True, 1 / config.relative_width)):
            members = [p for p in group["params"] if (id(p) in hidden) == is_hidden]
            rate = torch.tensor(config.lr * scale, dtype=dtype, device=device)
            groups.append({**group, "params": members, "lr": rate, "lr_scale": scale})
    fused = device.type in ("cpu", "cuda")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, eps=config.eps, fused=fused)


def max_norm(config: Config) -> float:
    """Return the norm to clip the gradient to, or infinity.

    It is `config.clip` in a model of the width that the defaults were found for. The gradient of
    the output weights has a row of H elements for each token, whose size does not depend on H.
    """
    return config.clip * config.relative_width**0.5 or math.inf


def learning_rate(config: Config, step: int, progress: float, scale: float) -> float:
    """Return the learning rate of the next update: a linear warm-up, then the schedule.

    Args:
        config: The settings.
        step: The number of updates done.
        progress: The part of the budget that is used, from 0 to 1.
        scale: The factor that the plateau schedule has reached.
    """
    warmup = min(1.0, max((step + 1) / WARMUP_STEPS, progress / WARMUP_PART))
    if config.lr_schedule == "cosine":
        cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        scale = FINAL_LR + (1 - FINAL_LR) * cosine
    return config.lr * warmup * scale


def has_stalled(losses: list[float], patience: int) -> bool:
    """Return whether the last loss is above a loss that came more than `patience` before it.

    This is the non-monotonic trigger of averaging (Merity et al. 2018, algorithm 1).
    """
    earlier = losses[: max(len(losses) - 1 - patience, 0)]
    return bool(earlier) and losses[-1] > min(earlier)


class Average:
    """The mean of the weights since this object was made (Polyak & Juditsky 1992).

    The weights after each update count once.
    """

    def __init__(self, model: NeuralLM):
        self.parameters = dict(model.named_parameters())
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Add the present weights to the mean. This is call number `count`, from 1 on."""
        means, present = list(self.tensors.values()), list(self.parameters.values())
        foreach_lerp_(means, present, 1 / count)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the mean while the body of a `with` statement runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Swapping the data pointers makes no copy and does not round.
        for name, parameter in self.parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
