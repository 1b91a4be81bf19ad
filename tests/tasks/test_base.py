"""Wrong arguments are refused with a message that names them."""

import numpy as np
import pytest

from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier, SequenceRegressor, SequenceTagger

from .helpers import FILMS, FROZEN, ORDER, QUICK, SIDES, TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "settings, X, y, message",
    [
        ({}, TEXTS[:3], ORDER[:2], "X and y must be of one length, not 3 and 2"),
        ({}, [], [], "X must be sequences"),
        ({}, "a b", ["x"], "X must be sequences"),
        ({}, ["a", "b"], ["x", "x"], "y must have at least 2 classes"),
        ({}, ["a", "b"], ["x", 1], "y must have labels of one kind"),
        ({}, [1, 2], ["x", "y"], r"X\[0\] must be a text"),
        ({"hidden_size": 0}, TEXTS, ORDER, "hidden_size must be a whole number"),
        ({"hidden_size": True}, TEXTS, ORDER, "hidden_size must be a whole number"),
        ({"dropout": 1.0}, TEXTS, ORDER, r"dropout must be in \[0, 1\)"),
        ({"pooling": "sum"}, TEXTS, ORDER, "pooling must be"),
        ({"features": ("sound",)}, TEXTS, ORDER, "features must be"),
        ({"features": ()}, TEXTS, ORDER, "features must name at least one"),
        ({"class_weight": {"zz": 1}}, TEXTS, ORDER, "class_weight must"),
        ({"class_weight": "even"}, TEXTS, ORDER, "class_weight must"),
        ({"patience": 1}, ["a"], ["x"], "at least 2"),
        ({"device": "gpu"}, TEXTS, ORDER, "device 'gpu' is not available"),
    ],
)
def test_bad_input_names_the_argument(settings, X, y, message):
    with pytest.raises(UserError, match=message):
        SequenceClassifier(**{**QUICK, **settings}).fit(X, y)


def test_other_bad_input(classifier):
    with pytest.raises(UserError, match="call fit first"):
        SequenceClassifier().predict(["a"])
    with pytest.raises(UserError, match="call fit first"):
        SequenceTagger().score(["a"], [["b"]])
    with pytest.raises(UserError, match="tokens or numbers"):
        classifier.predict([np.ones((2, 1))])
    with pytest.raises(UserError, match="has no setting 'size'"):
        classifier.set_params(size=3)
    with pytest.raises(UserError, match=r"y\[1\] must have one target for each of the 2 steps"):
        SequenceTagger().fit([["a"], ["a", "b"]], [["X"], ["X"]])
    with pytest.raises(UserError, match=r"valid\[0\] and valid\[1\] must be of one length"):
        SequenceClassifier(**QUICK).fit(TEXTS, ORDER, valid=(TEXTS, ORDER[:2]))
    with pytest.raises(UserError, match=r"y\[1\] must be finite"):
        SequenceRegressor(**QUICK).fit([np.ones(2), np.ones(3)], [1.0, np.nan])
    with pytest.raises(UserError, match="y must have as many numbers"):
        SequenceRegressor(**QUICK).fit([np.ones(2), np.ones(3)], [[1.0], [1.0, 2.0]])
    with pytest.raises(UserError, match="X must be sequences, in a list, not 'a b'"):
        classifier.predict("a b")
    with pytest.raises(UserError, match="y must be sequences, in a list, not 3"):
        classifier.score(["a b"], 3)


def test_targets_to_score(classifier):
    """A label that the training data lacks counts as wrong. A label of another type is refused."""
    assert classifier.score(["a b", "b a"], ["ab", "zz"]) == 0.5
    with pytest.raises(UserError, match=r"y must have labels of the kind .* str, not 1"):
        classifier.score(["a b", "b a"], ["ab", 1])
    tagger = SequenceTagger(**FROZEN).fit([["a", "b"]], [["B-X", "O"]])
    assert tagger.score([["a"], ["b"]], [["B-Y"], ["O"]]) < 1
    with pytest.raises(UserError, match="y must have labels of the kind"):
        tagger.score([["a"]], [[1]])
    X = [np.ones(2), np.zeros(3)]
    regressor = SequenceRegressor(**FROZEN).fit(X, [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(UserError, match=r"y\[1\] must have 2 numbers, as in training, not 1"):
        regressor.score(X, [[1.0, 2.0], 3.0])
    with pytest.raises(UserError, match=r"y\[0\] must be a number or several numbers, not 'x'"):
        regressor.score(X, ["x", "y"])


@pytest.mark.parametrize(
    "valid, message",
    [
        ((FILMS, [1] * len(FILMS)), r"valid\[1\] must have labels of the kind"),
        (([[("a", "DT")]], ["pos"]), r"valid\[0\]\[0\] has tokens of 2 columns, not 1"),
        ((FILMS, SIDES, None), "valid must be a pair"),
        (([], []), r"valid\[0\] must be sequences, at least one"),
    ],
)
def test_bad_validation_data_is_found_before_training(valid, message):
    records = []
    with pytest.raises(UserError, match=message):
        SequenceClassifier(**QUICK).fit(FILMS, SIDES, valid, records.append)
    assert records == []
