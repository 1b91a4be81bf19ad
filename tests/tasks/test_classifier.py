"""The classifier learns, whatever the labels and the pooling."""

import numpy as np
import pytest

from rnnfast.tasks import SequenceClassifier

from .helpers import ORDER, QUICK, TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_classifier_learns_the_order_of_words(classifier):
    assert classifier.score(TEXTS, ORDER) == 1.0
    assert classifier.classes_.tolist() == ["ab", "ba"]
    assert classifier.predict(["b a", "a b"]).tolist() == ["ba", "ab"]
    proba = classifier.predict_proba(TEXTS[:5])
    assert proba.shape == (5, 2) and np.allclose(proba.sum(1), 1)
    assert classifier.classes_[proba.argmax(1)].tolist() == ORDER[:5]
    losses = [record["train_loss"] for record in classifier.history_]
    assert len(losses) == 20 and losses[-1] < 0.2 * losses[0]


def test_predictions_do_not_depend_on_what_else_is_predicted(classifier):
    together = classifier.predict_proba([*TEXTS[:9], ""])
    alone = [classifier.predict_proba([text])[0] for text in [*TEXTS[:9], ""]]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert classifier.predict([]).shape == (0,)
    assert classifier.predict_proba([]).shape == (0, 2)


def test_multi_class_with_integers_and_all_poolings():
    X = [word.split() for word in ("a x", "b x", "c x", "x a", "x b", "x c")] * 10
    y = np.array([7, 8, 9] * 20)
    for pooling in ("last", "mean", "max"):
        model = SequenceClassifier(**QUICK, pooling=pooling).fit(X, y)
        assert model.score(X, y) == 1.0 and model.predict(X[:2]).tolist() == [7, 8]
