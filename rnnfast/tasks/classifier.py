"""The classifier: one label for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .labels import LabelEstimator
from .settings import Pooling
from .storage import plain


@dataclass(kw_only=True, eq=False)
class SequenceClassifier(LabelEstimator):
    """One label a sequence (many to one), from pooled states; `score` is the accuracy.

    Args:
        pooling: "last" (the last state of each direction), "mean" or "max" over the steps.
        class_weight: weights of the classes in the loss, a dict (others: 1), or "balanced" for
            N / (classes x count), or None. Of every labelled estimator.

    After `fit`, `classes_` has the labels in order; they may be strings, integers or booleans.
    """

    pooling: Pooling = "max"

    _estimator_type = "classifier"
    _every_step = False
    metric = "accuracy"

    def _fit_targets(self, y):
        self._fit_labels([plain(label) for label in y])

    def _encode_target(self, y, where):
        return torch.tensor(self._encode_label(y, where))

    def predict_proba(self, X: Sequence) -> np.ndarray:
        """Probabilities of `classes_`, float64 (N, C)."""
        return np.array(self._activated(X)).reshape(-1, len(self.classes_))

    def _decode(self, activated):
        return self.classes_[activated.argmax()]

    def _check_targets(self, y, name):
        self._check_labels(y, name)

    def _score(self, y, predicted):
        return float(np.mean([a == b for a, b in zip(y, predicted, strict=True)]))
