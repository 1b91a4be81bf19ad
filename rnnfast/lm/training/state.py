"""The numbers of a run: its state, and what a progress bar shows of each update."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class State:
    """The state of a run, which a checkpoint holds together with the tensors."""

    step: int = 0  # the number of updates done
    seconds: float = 0.0  # of training and validation, in all parts of a resumed run
    validated_step: int = 0
    validated_seconds: float = 0.0  # when the last validation ended
    validation_cost: float = 0.0  # the seconds that the last validation took
    best_loss: float | None = None  # in nats per token
    best_step: int = 0
    lr_scale: float = 1.0  # the factor that the plateau schedule has reached
    averaged: int | None = None  # the number of updates whose weights are averaged
    loss_sum: float = 0.0  # of the updates since the last line of the log
    loss_steps: int = 0  # the number of these updates
    train_loss: float | None = None  # the mean training loss in the last line of the log
    warning: str | None = None  # why the run does not learn, once it has been found out
    curve: list[dict] = field(default_factory=list)  # the record of every validation


@dataclass(frozen=True)
class TrainingStep:
    """One update, as `Trainer.train_step` returns it.

    On a CUDA device the loss, the norm and the speed are read at every line of the log, and about
    twice a second. Between two readings they are those of the last reading.

    Attributes:
        step: The number of updates done.
        epoch: The passes over the training text so far.
        seconds: The time of the run so far.
        loss: The mean loss of this chunk, in nats per token.
        lr: The learning rate of this update.
        grad_norm: The norm of the gradient before clipping.
        tokens_per_second: The speed of the updates since the last reading.
        progress: The part of the budget that is used.
    """

    step: int
    epoch: float
    seconds: float
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    progress: float
