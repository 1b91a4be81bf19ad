"""The loss of the estimators of labels."""

import numpy as np
import pytest

from rnnfast.tasks import SequenceClassifier

from .helpers import QUICK

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_first_loss_is_the_cross_entropy_by_hand():
    """The loss is the binary cross-entropy for 2 classes, and for 3 that of the softmax."""
    X, y = [["a"], ["b"], ["c"], ["a", "b"]], [0, 1, 2, 1]
    for labels, weight in ((y, {1: 3.0}), ([0, 1, 0, 1], None), (y, "balanced")):
        model = SequenceClassifier(
            **{**QUICK, "epochs": 1, "batch_size": 4, "lr": 1e-30}, class_weight=weight
        )
        model.fit(X, labels)
        p = model.predict_proba(X)[range(4), labels]
        w = np.ones(4)
        if weight == "balanced":
            w = np.array([4 / (3 * labels.count(label)) for label in labels])
        elif weight:
            w = np.array([weight.get(label, 1.0) for label in labels])
        expected = -(w * np.log(p)).sum() / w.sum()
        assert model.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-5)
