"""Estimators that classify, tag and score sequences with an RNN, in scikit-learn's manner.

Example:
    >>> from rnnfast.tasks import SequenceClassifier, load
    >>> X, y = ["a fine film", "a dull film"] * 50, ["good", "bad"] * 50
    >>> model = SequenceClassifier().fit(X, y)
    >>> model.predict(["fine"]).tolist()
    ['good']
    >>> model.save("my-classifier")  # doctest: +SKIP
    >>> load("my-classifier").predict(["dull"]).tolist()  # doctest: +SKIP
    ['bad']
"""

from __future__ import annotations

from pathlib import Path

from .base import SequenceEstimator
from .classifier import SequenceClassifier
from .echo_state import EchoState
from .regressor import SequenceRegressor
from .storage import read_settings
from .tagger import SequenceTagger


def load(path: str | Path, device: str = "cpu") -> SequenceEstimator | EchoState:
    """Return the estimator that its method `save` wrote to a folder.

    Args:
        path: The name of the folder.
        device: The torch device of the estimator. An `EchoState` runs on the CPU.

    Raises:
        UserError: The device is not available, or a file is missing or corrupted or does not match
            the other files.
    """
    if read_settings(Path(path))["estimator"] == "EchoState":
        return EchoState.load(path)
    return SequenceEstimator.load(path, device)


__all__ = ["EchoState", "SequenceClassifier", "SequenceRegressor", "SequenceTagger", "load"]
