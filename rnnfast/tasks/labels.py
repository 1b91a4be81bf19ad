"""What the estimators of labels share: classes, their weights, the loss and probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .._common.errors import UserError
from .base import SequenceEstimator
from .settings import ClassWeight
from .storage import plain


@dataclass(kw_only=True, eq=False)
class LabelEstimator(SequenceEstimator):
    """Classes: one logit and the binary cross-entropy for two, softmax for more."""

    class_weight: ClassWeight = None

    @property
    def _outputs(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _fit_labels(self, labels: list) -> None:
        self.classes_ = _classes(labels)
        self._number = {label: i for i, label in enumerate(self.classes_.tolist())}
        if len(self.classes_) < 2:
            raise UserError(f"y must have at least 2 classes, not {self.classes_.tolist()}")
        self._weights = torch.ones(len(self.classes_))
        given = self.class_weight
        if given == "balanced":
            counts = np.bincount([self._number[label] for label in labels])
            self._weights = torch.tensor(len(labels) / (len(counts) * counts)).float()
        elif given is not None:
            for label, weight in given.items():
                if label not in self._number or not 0 < weight < np.inf:
                    raise UserError(
                        f"class_weight must have positive weights of classes in y, not "
                        f"{weight!r} of {label!r}"
                    )
                self._weights[self._number[label]] = float(weight)

    def _encode_label(self, label, where: str) -> int:
        try:
            return self._number[label.item() if isinstance(label, np.generic) else label]
        except (KeyError, TypeError):
            raise UserError(
                f"{where} must be a class of the training data, not {label!r}"
            ) from None

    def _check_labels(self, labels: list, name: str) -> None:
        """A label that training has not seen is one that predictions miss; another kind of label
        is a mistake."""
        kind = type(self.classes_.tolist()[0])
        for label in map(plain, labels):
            if type(label) is not kind:
                raise UserError(
                    f"{name} must have labels of the kind of the training data's, "
                    f"{kind.__name__}, not {label!r}"
                )

    def _losses(self, outputs, targets):
        weights = self._weights.to(targets.device)[targets]
        if outputs.shape[1] == 1:
            losses = F.binary_cross_entropy_with_logits(
                outputs[:, 0], targets.to(outputs), reduction="none"
            )
        else:
            losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses, weights

    def _activate(self, outputs):
        if outputs.shape[1] == 1:
            p = outputs.double().sigmoid()
            return torch.cat([1 - p, p], 1)
        return outputs.double().softmax(1)

    def _targets_to_json(self):
        return {"classes": self.classes_.tolist()}

    def _targets_from_json(self, data):
        self.classes_ = np.array(data["classes"])
        self._number = {label: i for i, label in enumerate(self.classes_.tolist())}


def _classes(labels: list) -> np.ndarray:
    if len({type(label) for label in labels}) > 1 or not isinstance(labels[0], (str, int)):
        raise UserError("y must have labels of one kind: strings, integers or booleans")
    return np.array(sorted(set(labels)))
