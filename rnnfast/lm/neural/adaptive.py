"""The output layer of large vocabularies."""

from __future__ import annotations

import torch
from torch import nn

from ..._common.errors import UserError

CUTOFFS = (20, 5)  # the vocabulary by these: the head, and the first of two clusters


class AdaptiveDecoder(nn.AdaptiveLogSoftmaxWithLoss):
    """log p of tokens in order of frequency, the frequent ones for less (Grave et al. 2017).

    The first twentieth of the vocabulary is in the head with two clusters, the tokens up to a fifth
    and the others, which get a quarter and a sixteenth of the features. Raises UserError for fewer
    than 20 tokens.
    """

    def __init__(self, nfeatures: int, size: int):
        if size < CUTOFFS[0]:
            raise UserError(f"adaptive needs {CUTOFFS[0]} tokens or more, not {size}")
        super().__init__(nfeatures, size, [size // part for part in CUTOFFS], head_bias=True)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(.., features) -> log p of all tokens, (.., V), which are logits as well."""
        rows = features.reshape(-1, self.in_features)
        return self.log_prob(rows).view(*features.shape[:-1], self.n_classes)

    def losses(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(N, features), int64 (N,) -> -log p(targets), (N,)."""
        # Under autocast the module cannot put together log p of two dtypes.
        with torch.autocast(features.device.type, enabled=False):
            return -super().forward(features.to(self.head.weight.dtype), targets).output
