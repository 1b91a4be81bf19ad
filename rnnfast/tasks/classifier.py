"""The classifier: one label for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .labels import LabelEstimator
from .settings import Pooling
from .storage import plain


@dataclass(kw_only=True, eq=False)
class SequenceClassifier(LabelEstimator):
    """Classifier of sequences: an RNN reads a sequence and predicts one label for it.

    The RNN is a `FastRNN`, `FastGRU` or `FastLSTM` of `rnnfast`. Its hidden states (T, D * H), with
    D directions and H hidden units, are pooled over the time steps. A linear layer turns the result
    into class scores. `fit` takes N sequences X and N labels y. `score` returns the accuracy.

    Args:
        pooling: The pooling of the hidden states: "last" takes the last state of each direction,
            "mean" and "max" take the mean and the largest value of each unit over the time steps.
        class_weight: The weights of the classes in the loss: None for equal weights, "balanced" for
            N / (number of classes * count of the class), or a dict from classes to weights. A
            class that the dict does not name has the weight 1.
        **settings: The settings of `rnnfast.tasks.settings.Settings`.

    Attributes:
        classes_: The classes in order, an array of strings, integers or booleans, (K,).
        history_: One dict for each epoch, with the keys `network`, `epoch`, `train_loss`,
            `valid_score` (None without validation data) and `seconds` since `fit` began.
        coverage_: How many words of the training data have a vector, an
            `rnnfast.embeddings.vectors.Coverage`. None without `embeddings` and after `load`.
        metric: The name of what `score` returns, "accuracy".

    Example:
        >>> from rnnfast.tasks import SequenceClassifier
        >>> X, y = ["a fine film", "a dull film"] * 20, ["good", "bad"] * 20
        >>> model = SequenceClassifier(hidden_size=16, lr=0.02).fit(X, y)
        >>> model.predict(["fine", "a dull story"]).tolist()
        ['good', 'bad']
        >>> model.predict_proba(["fine"]).shape
        (1, 2)
    """

    pooling: Pooling = "max"

    _estimator_type = "classifier"
    _every_step = False
    metric = "accuracy"

    def _fit_targets(self, y: list) -> None:
        self._fit_labels([plain(label) for label in y])

    def _encode_target(self, y: Any, where: str) -> torch.Tensor:
        return torch.tensor(self._encode_label(y, where))

    def predict_proba(self, X: Sequence) -> np.ndarray:
        """Return the probabilities of `classes_`, float64 (N, K).

        Args:
            X: N sequences of the same kind as those of `fit`.

        Raises:
            UserError: The estimator is not fitted, or the sequences are of another kind.
        """
        return np.array(self._activated(X)).reshape(-1, len(self.classes_))

    def _decode(self, activated: np.ndarray) -> Any:
        return self.classes_[activated.argmax()]

    def _check_targets(self, y: list, name: str) -> None:
        self._check_labels(y, name)

    def _scores(self, y: Sequence, predicted: Sequence) -> dict[str, float]:
        right = [a == b for a, b in zip(y, predicted, strict=True)]
        return {self.metric: float(np.mean(right))}
