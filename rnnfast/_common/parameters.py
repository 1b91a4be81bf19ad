"""The parameters of a module as an optimizer takes them."""

from __future__ import annotations

from torch import nn


def parameter_groups(
    module: nn.Module, weight_decay: float, free: tuple[str, ...] = ("bias",)
) -> list[dict]:
    """Return the parameters of `module` in two groups, as torch's optimizers take them.

    The first group has `weight_decay`. The second group has none: it holds the parameters that
    have one of the strings `free` in their names.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (others if any(part in name for part in free) else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
