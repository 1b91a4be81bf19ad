"""The regressor: numbers for each sequence, or one number for each time step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._common.errors import UserError
from .base import SequenceEstimator
from .settings import Flag, Pooling


@dataclass(kw_only=True, eq=False)
class SequenceRegressor(SequenceEstimator):
    """Regressor of sequences: an RNN predicts numbers for a sequence or for its time steps.

    The RNN is a `FastRNN`, `FastGRU` or `FastLSTM` of `rnnfast`, and a linear layer turns its
    hidden states into numbers. The loss is the mean squared error of targets that are scaled to
    mean 0 and variance 1. `fit` takes N sequences X and targets y of shape (N,) or (N, K), or with
    `every_step` a list of N arrays (T,). `score` returns the coefficient of determination R², which
    is averaged over the K numbers.

    Args:
        pooling: The pooling of the hidden states, if there is one target for a sequence: "last"
            takes the last state of each direction, "mean" and "max" take the mean and the largest
            value of each unit over the time steps.
        every_step: Whether y has a number for each time step.
        **settings: The settings of `rnnfast.tasks.settings.Settings`.

    Attributes:
        history_: One dict for each epoch, with the keys `network`, `epoch`, `train_loss`,
            `valid_score` (None without validation data) and `seconds` since `fit` began.
        coverage_: How many words of the training data have a vector, an
            `rnnfast.embeddings.vectors.Coverage`. None without `embeddings` and after `load`.
        metric: The name of what `score` returns, "R²".

    Example:
        >>> import numpy as np
        >>> from rnnfast.tasks import SequenceRegressor
        >>> rng = np.random.default_rng(0)
        >>> X = [rng.normal(size=(rng.integers(1, 8), 2)) for _ in range(200)]
        >>> y = [x[:, 0].mean() for x in X]
        >>> model = SequenceRegressor(hidden_size=16, epochs=20, lr=0.02).fit(X, y)
        >>> model.predict(X[:3]).shape
        (3,)
        >>> model.score(X, y) > 0.8
        True
    """

    pooling: Pooling = "mean"
    every_step: Flag = False

    _estimator_type = "regressor"
    metric = "R²"

    @property
    def _every_step(self) -> bool:
        return self.every_step

    @property
    def _outputs(self) -> int:
        return len(self._mean)

    def _fit_targets(self, y: list) -> None:
        targets = [self._numbers(one, f"y[{i}]") for i, one in enumerate(y)]
        if not self.every_step and len({len(row) for row in targets}) != 1:
            raise UserError("y must have as many numbers for one sequence as for all others")
        rows = torch.cat(targets)[:, None] if self.every_step else torch.stack(targets)
        self._single = not self.every_step and np.ndim(y[0]) == 0
        self._mean = rows.mean(0)
        self._std = rows.std(0, correction=0).clamp_min(torch.finfo(rows.dtype).tiny)

    def _encode_target(self, y: Any, where: str) -> torch.Tensor:
        return (self._numbers(y, where) - self._mean) / self._std

    def _numbers(self, y: Any, where: str) -> torch.Tensor:
        """Return the unscaled targets of one sequence, float64 (K,) or (T,)."""
        try:
            target = torch.as_tensor(y, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{where} must be a number or several numbers, not {y!r}") from error
        if not target.isfinite().all():
            raise UserError(f"{where} must be finite, not {y!r}")
        return target

    def _losses(
        self, outputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets = targets.reshape(outputs.shape).to(outputs)
        return (outputs - targets).square().mean(1), outputs.new_ones(len(outputs))

    def _activate(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.double() * self._std.to(outputs.device) + self._mean.to(outputs.device)

    def _decode(self, activated: np.ndarray) -> Any:
        if self.every_step:
            return activated[:, 0]
        return activated[0] if self._single else activated

    def _check_targets(self, y: list, name: str) -> None:
        for i, one in enumerate(y):
            found = len(self._numbers(one, f"{name}[{i}]"))
            if not self.every_step and found != self._outputs:
                raise UserError(
                    f"{name}[{i}] must have {self._outputs} numbers, as in training, not {found}"
                )

    def _scores(self, y: Sequence, predicted: Sequence) -> dict[str, float]:
        true, guess = (
            np.concatenate([np.asarray(one, float) for one in values])[:, None]
            if self.every_step
            else np.asarray(values, float).reshape(len(values), -1)
            for values in (y, predicted)
        )
        residual, total = ((true - guess) ** 2).sum(0), ((true - true.mean(0)) ** 2).sum(0)
        # If y does not vary, scikit-learn defines R² as 1 for exact predictions and as 0 otherwise.
        r2 = np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), residual == 0)
        return {self.metric: float(r2.mean())}

    def _targets_to_json(self) -> dict:
        return {
            "mean": self._mean.tolist(),
            "std": self._std.tolist(),
            "single": self._single,
        }

    def _targets_from_json(self, data: dict) -> None:
        self._mean, self._std = (
            torch.tensor(data[name], dtype=torch.float64) for name in ("mean", "std")
        )
        self._single = data["single"]
