"""Features of tokens, sequences of numbers, and sequences from other containers."""

import numpy as np
import pytest

from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier
from rnnfast.tasks.inputs import Numbers, Tokens, extractor, shape

from .helpers import FILMS, FROZEN, SIDES

pytestmark = pytest.mark.usefixtures("one_thread")


def test_features():
    words = ["McCoy-90s", "a", "U.S."]
    assert extractor("word")(words) == ["mccoy-90s", "a", "u.s."]
    assert extractor("form")(words) == words
    assert extractor("bigram")(words) == [" mccoy-90s", "mccoy-90s a", "a u.s."]
    assert extractor("shape")(words) == ["AaAa-0a", "a", "A.A."]
    assert extractor("prefix2")(words) == ["mc", "a", "u."]
    assert extractor("suffix3")(words) == ["90s", "a", ".s."]
    assert shape("") == ""
    for name in ("suffix0", "affix2", "", 3):
        with pytest.raises(UserError, match="features must be"):
            extractor(name)


def test_tokens():
    X = [[("The", "DT"), ("cat", "NN")], [("the", "DT"), ("dog", "NN")], []]
    tokens = Tokens.fit(X, ["word", "suffix1"], min_count=2)
    assert tokens.tables == [["", "the"], ["", "e"], ["", "DT", "NN"]]
    assert tokens.unknown.tolist() == [0, 2, 4]
    first, second, empty = tokens.encode([X[0], [("THE", "XX")], []])
    assert first.tolist() == [[1, 3, 5], [0, 2, 6]]
    assert second.tolist() == [[1, 3, 4]]
    assert empty.tolist() == [[0, 2, 4]]
    with pytest.raises(UserError, match=r"X\[1\] has tokens of 1 columns, not 2"):
        tokens.encode([X[0], ["the", "cat"]])
    with pytest.raises(UserError, match=r"X\[0\] must be a text, a list of words"):
        tokens.encode([[("a", "b"), ("c",)]])


def test_numbers():
    assert [len(x) for x in Numbers.fit([np.ones(3)]).encode([np.ones(3), np.ones((2, 1))])] == [
        3,
        2,
    ]
    assert Numbers(2).encode([np.ones((0, 2))])[0].shape == (0, 2)
    for wrong in (np.ones((2, 2)), np.ones((0, 2)), np.array([np.nan]), np.ones((1, 1, 1))):
        with pytest.raises(UserError, match=r"X\[1\] must be"):
            Numbers(1).encode([np.ones(3), wrong])


def test_sequences_need_not_be_numbered_from_0():
    """A pandas Series that is a part of another one keeps the numbers of its rows."""

    class Series:
        def __init__(self, values):
            self.by_label = dict(enumerate(values, 7))

        def __len__(self):
            return len(self.by_label)

        def __iter__(self):
            return iter(self.by_label.values())

        def __getitem__(self, label):
            return self.by_label[label]

    model = SequenceClassifier(**FROZEN).fit(Series(FILMS), Series(SIDES))
    expected = SequenceClassifier(**FROZEN).fit(FILMS, SIDES)
    assert np.array_equal(model.predict_proba(Series(FILMS)), expected.predict_proba(FILMS))
    assert model.score(Series(FILMS), Series(SIDES)) == expected.score(FILMS, SIDES)
