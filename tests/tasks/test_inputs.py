"""Features of tokens, sequences of numbers, and sequences from other containers."""

from array import array

import numpy as np
import pytest
import torch

from rnnfast.lm import UserError
from rnnfast.tasks import SequenceClassifier, SequenceRegressor
from rnnfast.tasks.inputs import Numbers, Tokens, extractor, is_numeric, shape

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


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.tolist(),
        lambda x: tuple(x.tolist()),
        lambda x: list(x),
        lambda x: [[value] for value in x.tolist()],
        lambda x: [(value,) for value in x],
        lambda x: [np.array([value]) for value in x],
        lambda x: array("d", x),
        lambda x: [float(value) if value % 1 else int(value) for value in x],
        lambda x: x[::-1][::-1],
        lambda x: np.flip(x[::-1]),
        lambda x: torch.from_numpy(x),
    ],
)
def test_lists_of_numbers_are_sequences_of_numbers(make):
    """A list of T numbers is T steps of one feature, like an array (T,) and an array (T, 1)."""
    rng = np.random.default_rng(0)
    arrays = [np.round(rng.normal(size=T), 1) for T in (3, 1, 7, 2, 4)]
    y = [0.0, 1.0, 2.0, 3.0, 4.0]
    model = SequenceRegressor(**FROZEN).fit([x[:, None] for x in arrays], y)
    lists = [make(x) for x in arrays]
    assert is_numeric(lists) and is_numeric([[], *lists])
    fitted = SequenceRegressor(**FROZEN).fit(lists, y)
    assert np.array_equal(fitted.predict(lists), model.predict(arrays))
    assert np.array_equal(model.predict(lists[:1]), model.predict(arrays[:1]))
    steps = SequenceRegressor(**{**FROZEN, "every_step": True}).fit(lists, arrays)
    assert [len(one) for one in steps.predict(lists)] == [3, 1, 7, 2, 4]


def test_lists_of_vectors():
    """A list of T lists of I numbers is an array (T, I)."""
    pairs = [[[1, 2], [3, 4.5]], [[5, 6]], [(7, 8), (9, 10), (11, 12)]]
    encoded = Numbers.fit([[], *pairs]).encode(pairs)
    assert [x.tolist() for x in encoded] == [[list(map(float, v)) for v in x] for x in pairs]
    for wrong, message in (
        ([[1, 2], [3]], r"X\[3\] must be numbers of shape \(T, I\) or \(T,\)"),
        ([1, 2], r"X\[3\] must be finite numbers of shape \(T, 2\)"),
        ([[1, "a"]], r"X\[3\] must be numbers"),
        ([], r"X\[3\] must be finite numbers of shape \(T, 2\)"),
    ):
        with pytest.raises(UserError, match=message):
            SequenceRegressor(**FROZEN).fit([*pairs, wrong], [1.0, 2.0, 3.0, 4.0])
    for tokens in (
        [["a", 1.0]],
        [["a"]],
        [[("a", "b")]],
        ["1 2"],
        [[]],
        [[], ["1"]],
        [[[]]],
        [1.0],
    ):
        assert not is_numeric(tokens)
    with pytest.raises(UserError, match=r"X\[0\] must be a text, .* or numbers of shape"):
        SequenceClassifier(**FROZEN).fit([[0.5, "a"], ["b"]], [0, 1])


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
