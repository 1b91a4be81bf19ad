"""Where a run stands, and what is told of each update."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class State:
    """Where a run stands. Together with the tensors of `Trainer.checkpoint` it is all there is."""

    step: int = 0  # updates done
    seconds: float = 0.0  # of training and validation, over all resumes
    validated_step: int = 0
    validated_seconds: float = 0.0  # when the last validation ended
    validation_cost: float = 0.0  # seconds the last validation took
    best_loss: float | None = None  # nats a token
    best_step: int = 0
    lr_scale: float = 1.0  # what the plateau schedule has made of the learning rate
    averaged: int | None = None  # updates whose weights are averaged
    loss_sum: float = 0.0  # since the last line of the log
    loss_steps: int = 0
    train_loss: float | None = None  # in the last line of the log
    curve: list[dict] | None = None


@dataclass(frozen=True)
class TrainingStep:
    """One update, for a progress bar: `progress` is the part of the budget that is used."""

    step: int
    epoch: float
    seconds: float
    loss: float  # nats a token, of this chunk
    lr: float
    grad_norm: float
    tokens_per_second: float
    progress: float
