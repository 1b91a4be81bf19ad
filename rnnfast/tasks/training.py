"""Training of one network: batches, updates, validation after each epoch, early stopping."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from .._common.errors import ArgumentError
from .._common.parameters import parameter_groups
from .network import SequenceNetwork

POOL = 32  # batches that are sorted by length together, so that little of a batch is padding

# Takes outputs (N, O) and targets (N, ...); returns the losses (N,) and their weights (N,).
Losses = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def train_network(
    network: SequenceNetwork,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    losses: Losses,
    validate: Callable[[], float] | None,
    report: Callable[[dict], None],
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    clip: float,
    patience: int | None,
) -> None:
    """Train a network in place with AdamW and a learning rate that falls to 0 along a cosine.

    Args:
        network: The network, on the device where it is trained.
        data: One pair of an encoded sequence and its targets for each training sequence.
        losses: The loss function, without a reduction.
        validate: Returns the score of the network on the validation data. None: no validation.
        report: Is called after each epoch with the epoch, the mean loss and the score.
        epochs: The largest number of passes over the data.
        batch_size: The number of sequences in one update.
        lr: The learning rate of the first update.
        weight_decay: The weight decay of AdamW, which biases do not have.
        clip: The largest norm of the gradient. A longer gradient is scaled down to it.
        patience: The number of epochs without a better score after which the training stops. The
            network then gets the weights of its best epoch. None: train all epochs, keep the last.

    Raises:
        UserError: The loss is infinite or NaN.
    """
    groups = parameter_groups(network, weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    updates = epochs * -(-len(data) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    lengths = torch.tensor([len(x) for x, _ in data])
    device = network.head.weight.device
    best_score: float = -np.inf
    epochs_since_best, best_weights = 0, None
    for epoch in range(1, epochs + 1):
        network.train()
        total = total_weight = 0.0
        for batch in shuffled_batches(lengths, batch_size):
            x, y = zip(*(data[i] for i in batch), strict=True)
            outputs = network.run(x)
            targets = torch.cat(y) if network.pooling is None else torch.stack(y)
            batch_losses, weights = losses(outputs, targets.to(device))
            loss = (batch_losses * weights).sum() / weights.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            schedule.step()
            batch_weight = float(weights.sum())
            total += batch_weight * float(loss.detach())
            total_weight += batch_weight
        if not np.isfinite(total):
            message = f"the loss is not finite in epoch {epoch}: lower lr or clip"
            raise ArgumentError(message, "lr", "clip")
        network.eval()
        score = None if validate is None else validate()
        report({"epoch": epoch, "train_loss": total / total_weight, "valid_score": score})
        if patience is None or score is None:
            continue
        epochs_since_best += 1
        if score > best_score:
            best_score, epochs_since_best = score, 0
            best_weights = {name: value.clone() for name, value in network.state_dict().items()}
        if epochs_since_best == patience:
            break
    if best_weights is not None:
        network.load_state_dict(best_weights)


def shuffled_batches(lengths: torch.Tensor, batch_size: int) -> list[list[int]]:
    """Return all indices once, in random order, in batches of sequences of similar length.

    Args:
        lengths: The number of time steps of each sequence, int64 (N,).
        batch_size: The number of indices in a batch. The last batch of a pool may have fewer.
    """
    order = torch.randperm(len(lengths))
    batches = []
    for pool in order.split(POOL * batch_size):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[i].tolist() for i in torch.randperm(len(batches)).tolist()]
