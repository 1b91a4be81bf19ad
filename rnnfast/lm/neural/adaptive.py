"""The output layer for large vocabularies."""

from __future__ import annotations

import torch
from torch import nn

from ..._common.errors import UserError

# The head has the first 1/20 of the vocabulary. The first cluster ends at 1/5 of the vocabulary.
CUTOFFS = (20, 5)


class AdaptiveDecoder(nn.AdaptiveLogSoftmaxWithLoss):
    """An adaptive softmax: log p of tokens that are numbered by frequency (Grave et al. 2017).

    The head has the most frequent twentieth of the vocabulary and one entry for each of two
    clusters. The clusters have the tokens up to a fifth of the vocabulary and all others. They see
    a quarter and a sixteenth of the features, so that rare tokens cost less than frequent ones.

    Raises:
        UserError: The vocabulary has fewer than 20 tokens.
    """

    def __init__(self, nfeatures: int, size: int):
        if size < CUTOFFS[0]:
            raise UserError(f"adaptive needs {CUTOFFS[0]} tokens or more, not {size}")
        super().__init__(nfeatures, size, [size // part for part in CUTOFFS], head_bias=True)
        nn.init.zeros_(self.head.bias)

    def forward(  # type: ignore[override]  # it takes no targets, as a decoder
        self, features: torch.Tensor
    ) -> torch.Tensor:
        """Return log p of all tokens, (..., V), for features (..., F). It can serve as logits."""
        flat = features.reshape(-1, self.in_features)
        return self.log_prob(flat).view(*features.shape[:-1], self.n_classes)

    def output_weights(self) -> list[torch.Tensor]:
        """Return the matrices whose products are logits: of the head, and of each cluster."""
        clusters = [list(cluster.children())[-1] for cluster in self.tail]
        return [layer.weight for layer in (self.head, *clusters)]  # type: ignore[misc]

    def losses(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return -log p(targets), (N,), for features (N, F) and targets int64 (N,)."""
        # Under autocast the head and the clusters would give different dtypes, which the module
        # cannot combine.
        with torch.autocast(features.device.type, enabled=False):
            return -super().forward(features.to(self.head.weight.dtype), targets).output
