"""The tagger: one label for each time step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .labels import LabelEstimator
from .metrics import chunk_f1, is_iob
from .settings import PositiveInteger
from .storage import plain


@dataclass(kw_only=True, eq=False)
class SequenceTagger(LabelEstimator):
    """One label a step (many to many).

    `score` is the F1 of chunks if the labels are IOB tags ("B-NP", "I-NP", "O"), as conlleval and
    seqeval count it, else the accuracy over all steps. `class_weight` as in SequenceClassifier.
    """

    features: Sequence[str] = ("word", "prefix3", "suffix2", "suffix3", "shape")
    hidden_size: PositiveInteger = 100

    _every_step = True

    @property
    def metric(self):
        return "chunk F1" if is_iob(self.classes_.tolist()) else "accuracy"

    def _fit_targets(self, y):
        self._fit_labels([plain(label) for labels in y for label in labels])

    def _encode_target(self, y, where):
        return torch.tensor([self._encode_label(label, where) for label in y])

    def predict_proba(self, X: Sequence) -> list[np.ndarray]:
        """Probabilities of `classes_`, float64 (T, C) a sequence."""
        return self._activated(X)

    def _decode(self, activated):
        return self.classes_[activated.argmax(1)]

    def _check_targets(self, y, name):
        self._check_labels([label for labels in y for label in labels], name)

    def _score(self, y, predicted):
        if self.metric == "chunk F1":
            return chunk_f1(y, predicted)
        pairs = zip(y, predicted, strict=True)
        return float(np.mean([a == b for one in pairs for a, b in zip(*one, strict=True)]))
