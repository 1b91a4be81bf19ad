"""Parameter groups for an optimiser: which weights are decayed."""

from __future__ import annotations

from torch import nn


def parameter_groups(
    module: nn.Module, weight_decay: float, free: tuple[str, ...] = ("bias",)
) -> list[dict]:
    """Return two parameter groups for a torch optimiser: with and without weight decay.

    Args:
        module: The module whose parameters are trained.
        weight_decay: The weight decay of the first group.
        free: Parts of names. A parameter whose name contains one of them is in the second group,
            which has a weight decay of 0.
    """
    decayed, others = [], []
    for name, parameter in module.named_parameters():
        (others if any(part in name for part in free) else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
