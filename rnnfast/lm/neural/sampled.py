"""A sampled softmax: the loss of the output layer in training, over a part of a large vocabulary.

The softmax is over the most frequent tokens, the targets of the batch, and a random sample of all
others. log p(the token is among them) is subtracted from its logit. The weights that make this loss
smallest are then those of the full softmax, however few tokens are sampled (Jean et al. 2015,
section 3; Bengio & Senecal 2008). Evaluation computes the full softmax.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ... import functional


def sampled_cross_entropy(
    features: torch.Tensor, decoder: nn.Linear, targets: torch.Tensor, samples: int
) -> torch.Tensor:
    """Return the mean of the loss over a sample of the vocabulary.

    Args:
        features: What the decoder gets, (N, F).
        decoder: The output layer. Its rows are numbered by how frequent their tokens are.
        targets: The tokens to predict, int64 (N,).
        samples: The number of tokens in the softmax. The first half of them are the most frequent
            tokens. There are more if the targets do not fit in the second half.
    """
    size, device = decoder.out_features, targets.device
    frequent = samples // 2
    count = max(samples, frequent + len(targets))
    if count >= size:
        count = frequent = size
    # Tokens of the highest keys are chosen. The number of them does not depend on the targets, so
    # that no step has to wait for a number from the device.
    keys = torch.rand(size, device=device)
    keys[:frequent] = 2.0
    keys[targets] = 2.0
    chosen = keys.topk(count, sorted=False).indices
    certain = (keys == 2.0).sum()
    drawn = (count - certain) / (size - certain).clamp(min=1)
    # The token of rank r is a target with a probability of about 1 / (r log V), by Zipf's law.
    ranks = torch.arange(1, size + 1, device=device)
    absent = (1 - drawn) * torch.exp(-len(targets) / (ranks * math.log(size)))
    absent[:frequent] = 0.0
    rows = torch.empty_like(ranks)
    rows[chosen] = torch.arange(count, device=device)
    bias = decoder.bias[chosen] - torch.log1p(-absent[chosen])
    return functional.linear_cross_entropy(
        features, decoder.weight[chosen], rows[targets], linear_bias=bias
    )
