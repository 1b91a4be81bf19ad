"""The tagger: one label for each time step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._common.errors import DataWarning
from .labels import LabelEstimator
from .metrics import Scheme, why_no_scheme
from .settings import PositiveInteger
from .storage import plain


@dataclass(kw_only=True, eq=False)
class SequenceTagger(LabelEstimator):
    """Tagger of sequences: an RNN predicts one label for each time step.

    The RNN is a `FastRNN`, `FastGRU` or `FastLSTM` of `rnnfast`. A linear layer turns its hidden
    state at each time step into class scores. `fit` takes N sequences X and a list y of N lists of
    labels, one for each time step. `score` returns the F1 of the chunks, as conlleval and seqeval
    compute it, if all labels are tags of one scheme: IOB, IOE, IOBES (BIOES) or BILOU, with the
    type of the chunk after the letter ("B-NP"), before it ("NP-B") or without types ("B").
    Otherwise it returns the accuracy over all time steps. If the labels look like tags, a warning
    says why they get no F1.

    `scores` returns the keys "accuracy" and, for tags of a scheme, "chunk F1" and "strict chunk
    F1". The strict F1 counts only the chunks that begin and end as the scheme says. These are the
    values of seqeval's default mode and of its strict mode. The default mode of seqeval does not
    know L and U of BILOU, which are read as E and S here.

    Args:
        class_weight: The weights of the classes in the loss: None for equal weights, "balanced" for
            N / (number of classes * count of the class), or a dict from classes to weights. A
            class that the dict does not name has the weight 1.
        **settings: The settings of `rnnfast.tasks.settings.Settings`. The defaults of `features`
            and `hidden_size` are different here.

    Attributes:
        classes_: The classes in order, an array of strings, integers or booleans, (K,).
        history_: One dict for each epoch, with the keys `network`, `epoch`, `train_loss`,
            `valid_score` (None without validation data) and `seconds` since `fit` began.
        coverage_: How many words of the training data have a vector, an
            `rnnfast.embeddings.vectors.Coverage`. None without `embeddings` and after `load`.
        metric: The name of what `score` returns, "chunk F1" or "accuracy".

    Example:
        >>> from rnnfast.tasks import SequenceTagger
        >>> X = [["the", "cat", "sleeps"], ["the", "dog", "barks"]] * 20
        >>> y = [["DET", "NOUN", "VERB"]] * 40
        >>> model = SequenceTagger(hidden_size=16, lr=0.02).fit(X, y)
        >>> [tags.tolist() for tags in model.predict([["the", "cat", "barks"]])]
        [['DET', 'NOUN', 'VERB']]
        >>> model.metric
        'accuracy'
    """

    features: Sequence[str] = ("word", "prefix3", "suffix2", "suffix3", "shape")
    hidden_size: PositiveInteger = 100

    _every_step = True

    @property
    def metric(self) -> str:
        """The name of what `score` returns, "chunk F1" or "accuracy"."""
        return "accuracy" if self._scheme is None else "chunk F1"

    @property
    def _scheme(self) -> Scheme | None:
        return Scheme.of(self.classes_.tolist())

    def _fit_targets(self, y: list) -> None:
        self._fit_labels([plain(label) for labels in y for label in labels])
        why = why_no_scheme(self.classes_.tolist())
        if why is not None:
            message = f"scores are the accuracy, not the F1 of chunks, because {why}"
            warnings.warn(message, DataWarning, stacklevel=3)

    def _encode_target(self, y: Any, where: str) -> torch.Tensor:
        return torch.tensor([self._encode_label(label, where) for label in y])

    def predict_proba(self, X: Sequence) -> list[np.ndarray]:
        """Return the probabilities of `classes_` at each time step.

        Args:
            X: N sequences of the same kind as those of `fit`.

        Returns:
            A list of N arrays, float64 (T, K).

        Raises:
            UserError: The estimator is not fitted, or the sequences are of another kind.
        """
        return self._activated(X)

    def _decode(self, activated: np.ndarray) -> Any:
        return self.classes_[activated.argmax(1)]

    def _check_targets(self, y: list, name: str) -> None:
        self._check_labels([label for labels in y for label in labels], name)

    def _scores(self, y: Sequence, predicted: Sequence) -> dict[str, float]:
        pairs = zip(y, predicted, strict=True)
        right = [a == b for one in pairs for a, b in zip(*one, strict=True)]
        scores = {"accuracy": float(np.mean(right))}
        scheme = self._scheme
        if scheme is not None:
            scores["chunk F1"] = scheme.f1(y, predicted)
            scores["strict chunk F1"] = scheme.f1(y, predicted, strict=True)
        return scores
