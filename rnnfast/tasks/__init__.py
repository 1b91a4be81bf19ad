"""Estimators that classify, tag and score sequences with an Elman RNN, in scikit-learn's manner.

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

from .base import SequenceEstimator
from .classifier import SequenceClassifier
from .regressor import SequenceRegressor
from .tagger import SequenceTagger

load = SequenceEstimator.load

__all__ = ["SequenceClassifier", "SequenceRegressor", "SequenceTagger", "load"]
