"""The base class of the classifier and the tagger: classes, their weights, loss, probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .._common.errors import UserError
from .base import SequenceEstimator
from .settings import ClassWeight
from .storage import plain


@dataclass(kw_only=True, eq=False)
class LabelEstimator(SequenceEstimator):
    """Base class of the estimators whose targets are labels.

    Two classes have one output and the binary cross-entropy as loss. More classes have one output
    each and the cross-entropy of the softmax.

    Args:
        class_weight: The weights of the classes in the loss: None for equal weights, "balanced" for
            N / (number of classes * count of the class), or a dict from classes to weights. A
            class that the dict does not name has the weight 1.

    Attributes:
        classes_: The classes in order, an array of strings, integers or booleans, (K,).
    """

    class_weight: ClassWeight = None

    @property
    def _outputs(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _fit_labels(self, labels: list) -> None:
        """Learn the classes and their weights from all labels of the training data."""
        self.classes_ = _classes(labels)
        self._number = {label: i for i, label in enumerate(self.classes_.tolist())}
        if len(self.classes_) < 2:
            raise UserError(f"y must have at least 2 classes, not {self.classes_.tolist()}")
        self._weights = torch.ones(len(self.classes_))
        given = self.class_weight
        if given == "balanced":
            counts = np.bincount([self._number[label] for label in labels])
            self._weights = torch.tensor(len(labels) / (len(counts) * counts)).float()
        elif given is not None and not isinstance(given, str):
            for label, weight in given.items():
                if label not in self._number or not 0 < weight < np.inf:
                    raise UserError(
                        f"class_weight must give positive weights to classes in y, not "
                        f"{weight!r} to {label!r}"
                    )
                self._weights[self._number[label]] = float(weight)

    def _encode_label(self, label: Any, where: str) -> int:
        """Return the index of a label in `classes_`. Raise UserError if it is not there."""
        try:
            return self._number[label.item() if isinstance(label, np.generic) else label]
        except (KeyError, TypeError):
            raise UserError(
                f"{where} must be a class of the training data, not {label!r}"
            ) from None

    def _check_labels(self, labels: list, name: str) -> None:
        """Raise UserError for a label of another type than the classes.

        A label of the right type that is no class is allowed: it counts as a wrong prediction.
        """
        kind = type(self.classes_.tolist()[0])
        for label in map(plain, labels):
            if type(label) is not kind:
                raise UserError(
                    f"{name} must have labels of the kind that the training data has, "
                    f"{kind.__name__}, not {label!r}"
                )

    def _losses(
        self, outputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self._weights.to(targets.device)[targets]
        if outputs.shape[1] == 1:
            losses = F.binary_cross_entropy_with_logits(
                outputs[:, 0], targets.to(outputs), reduction="none"
            )
        else:
            losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses, weights

    def _activate(self, outputs: torch.Tensor) -> torch.Tensor:
        if outputs.shape[1] == 1:
            p = outputs.double().sigmoid()
            return torch.cat([1 - p, p], 1)
        return outputs.double().softmax(1)

    def _targets_to_json(self) -> dict:
        return {"classes": self.classes_.tolist()}

    def _targets_from_json(self, data: dict) -> None:
        self.classes_ = np.array(data["classes"])
        self._number = {label: i for i, label in enumerate(self.classes_.tolist())}


def _classes(labels: list) -> np.ndarray:
    """Return the different labels in order. Raise UserError if their types differ."""
    if len({type(label) for label in labels}) > 1 or not isinstance(labels[0], (str, int)):
        raise UserError("y must have labels of one kind: strings, integers or booleans")
    return np.array(sorted(set(labels)))
