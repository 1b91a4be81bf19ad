"""Estimators of sequences over a FastRNN encoder: classes, numbers and tags.

from rnnfast.tasks import SequenceClassifier

model = SequenceClassifier().fit(["a fine film", "a dull film"] * 50, ["pos", "neg"] * 50)
print(model.predict(["fine"]), model.predict_proba(["fine"]))
model.save("my-classifier")
"""

from .base import SequenceEstimator
from .classifier import SequenceClassifier
from .regressor import SequenceRegressor
from .tagger import SequenceTagger

load = SequenceEstimator.load

__all__ = ["SequenceClassifier", "SequenceRegressor", "SequenceTagger", "load"]
