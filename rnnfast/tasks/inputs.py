"""Encoding of sequences for the network: tokens with features, or vectors of numbers."""

from __future__ import annotations

import numbers
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._common.errors import ArgumentError, UserError
from .._common.text import words
from ..embeddings import Vectors

AFFIX = re.compile(r"(prefix|suffix)([1-9])")
WORDS = ("word", "form")  # the features whose values are whole words
EMPTY = ""  # the first entry of every feature's table, for values without an entry of their own


def shape(word: str) -> str:
    """Return the kinds of characters in a word, with each run of one kind as one character.

    Upper case becomes "A", other letters become "a", digits become "0". The rest is unchanged.

    Example:
        >>> shape("McCoy-90s")
        'AaAa-0a'
    """
    kinds = (
        "0" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in word
    )
    return "".join(kind for kind, _ in groupby(kinds))


def extractor(name: str) -> Callable[[list[str]], list[str]]:
    """Return the function that takes the words of a sequence to the values of a feature.

    Args:
        name: The name of the feature:

            - "word": the word in lower case,
            - "form": the word as it is,
            - "bigram": the previous word and the word itself, in lower case,
            - "shape": the kinds of its characters, see `shape`,
            - "prefixN", "suffixN": its first or last N characters in lower case, N from 1 to 9.

    Raises:
        UserError: There is no feature of this name.

    Example:
        >>> extractor("suffix3")(["The", "Reading"])
        ['the', 'ing']
    """
    if name == "word":
        return lambda words: [word.lower() for word in words]
    if name == "form":
        return list
    if name == "bigram":

        def bigrams(words: list[str]) -> list[str]:
            lower = [word.lower() for word in words]
            return [f"{a} {b}" for a, b in zip(["", *lower], lower, strict=False)]

        return bigrams
    if name == "shape":
        return lambda words: [shape(word) for word in words]
    affix = AFFIX.fullmatch(name) if isinstance(name, str) else None
    if affix is None:
        raise ArgumentError(
            f"features must be among word, form, bigram, shape, prefixN and suffixN, not {name!r}"
        )
    n = int(affix[2])
    cut = slice(n) if affix[1] == "prefix" else slice(-n, None)
    return lambda words: [word.lower()[cut] for word in words]


def as_list(sequences: Iterable, name: str = "X") -> list:
    """Return the elements of an iterable as a list.

    The indices of the iterable do not matter: those of a pandas Series need not begin at 0.

    Raises:
        UserError: The argument is not iterable, or it is a single text.
    """
    if isinstance(sequences, (str, bytes)) or not isinstance(sequences, Iterable):
        raise UserError(f"{name} must be sequences, in a list, not {sequences!r}")
    return list(sequences)


def is_numeric(sequences: list) -> bool:
    """Return whether these sequences, of which there is at least one, are numbers.

    The first sequence that is not an empty list decides.
    """
    first: object = next(
        (one for one in sequences if not (isinstance(one, (list, tuple)) and not one)), []
    )
    return _holds_numbers(first) or (
        isinstance(first, (list, tuple)) and len(first) > 0 and all(map(_holds_numbers, first))
    )


def _holds_numbers(values: object) -> bool:
    """Return whether the values are an array, or a list or another sequence of numbers alone."""
    if isinstance(values, (np.ndarray, torch.Tensor)):
        return True
    if hasattr(values, "__array__"):  # for example a Series of pandas, or a single number of NumPy
        values = np.asarray(values)
        return values.ndim > 0 and values.dtype.kind in "biuf"
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, array)):
        return False
    return len(values) > 0 and all(isinstance(value, numbers.Real) for value in values)


def steps(sequence: Sequence) -> int:
    """Return the number of time steps: words of a text, elements of a list, rows of an array."""
    return len(words(sequence)) if isinstance(sequence, str) else len(sequence)


def check_pairs(
    X: Iterable, y: Iterable, every_step: bool, name_x: str = "X", name_y: str = "y"
) -> tuple[list, list]:
    """Return sequences and targets as two lists of one length.

    Args:
        X: The sequences.
        y: The targets, one for each sequence or, with `every_step`, one for each time step.
        every_step: Whether sequences without time steps are left out. They have no targets, so
            nothing can be learned from them.
        name_x: The name of the sequences in error messages.
        name_y: The name of the targets in error messages.

    Raises:
        UserError: There are no sequences, or the numbers of targets do not fit.
    """
    X, y = as_list(X, name_x), as_list(y, name_y)
    if not X:
        raise UserError(f"{name_x} must be sequences, at least one")
    if len(X) != len(y):
        raise UserError(f"{name_x} and {name_y} must be of one length, not {len(X)} and {len(y)}")
    if not every_step:
        return X, y
    for i, (sequence, targets) in enumerate(zip(X, y, strict=True)):
        if np.ndim(targets) == 0 or len(targets) != steps(sequence):
            raise UserError(
                f"{name_y}[{i}] must have one target for each of the {steps(sequence)} steps of"
                f" {name_x}[{i}], not {targets!r}"
            )
    kept = [i for i in range(len(X)) if len(y[i])]
    if not kept:
        raise UserError(f"{name_x} must have a sequence that is not empty")
    return [X[i] for i in kept], [y[i] for i in kept]


def load_vectors(path: str | Path, size: int, features: Sequence[str], X: list) -> Vectors:
    """Return the vectors of a file whose words are those of a feature of the sequences X.

    Raises:
        UserError: The sequences are numbers, no feature has words as its values, the file cannot
            be read, or its vectors do not have `size` elements.
    """
    if is_numeric(X):
        raise UserError("embeddings are of words, and X has numbers: set embeddings to None")
    if not set(WORDS) & set(features):
        message = "embeddings belong to the feature word or form: features must have one, not "
        raise ArgumentError(message + ", ".join(features), "embeddings", "features")
    return Vectors.load_of_size(path, size, "embedding_size")


class Tokens:
    """Encodes tokens as rows of one embedding table, in which F features have a block each.

    A sequence is a text, which is split at ASCII blanks, a list of words, or a list of tuples of
    strings: a word and further columns, such as its part of speech. Each further column is a
    feature. The first row of a block is for unknown values, which were not in the training data or
    too rare in it. A sequence without tokens is encoded as one unknown token.

    Args:
        features: The names of the features that are computed from the words.
        tables: The values of each feature, in the order of their rows. The first one is "".

    Attributes:
        word: The index of the first feature whose values are whole words, or None.
        rows: The number of rows of the embedding table.
        unknown: The row for unknown values of each feature, int64 (F,).
        columns: The number of columns of a token.

    Example:
        >>> tokens = Tokens.fit([["a", "cat"], ["a", "dog"]], ["word", "suffix1"], min_count=1)
        >>> tokens.tables
        [['', 'a', 'cat', 'dog'], ['', 'a', 'g', 't']]
        >>> tokens.encode([["a", "bird"]])[0].tolist()
        [[1, 5], [0, 4]]
    """

    def __init__(self, features: Sequence[str], tables: list[list[str]]):
        self.features = tuple(features)
        self.tables = tables
        self.columns = 1 + len(tables) - len(self.features)
        self.word = next((k for k, name in enumerate(self.features) if name in WORDS), None)
        self._extractors = [extractor(name) for name in self.features]
        starts = np.cumsum([0, *map(len, tables)])
        self.rows = int(starts[-1])
        self.unknown = torch.from_numpy(starts[:-1])  # (F,)
        self._index = [
            {value: start + i for i, value in enumerate(table)}
            for start, table in zip(starts.tolist(), tables, strict=False)
        ]

    @classmethod
    def fit(
        cls,
        sequences: Sequence,
        features: Sequence[str],
        min_count: int,
        known: Collection[str] = (),
    ) -> Tokens:
        """Return the encoder with the values in the training data, the most frequent ones first.

        Args:
            sequences: The sequences of the training data.
            features: The names of the features that are computed from the words.
            min_count: The number of times that a value must occur.
            known: Words that have an entry of the feature `word` even if they are rarer.

        Raises:
            UserError: A sequence is of another kind, tokens have different numbers of columns, or
                there are no features.
        """
        rows = [_columns(sequence, f"X[{i}]") for i, sequence in enumerate(sequences)]
        columns = next((len(row) for row in rows if row), 1)
        if not features and columns == 1:
            raise UserError("features must name at least one: the tokens have no other columns")
        blank = cls(features, [[EMPTY]] * (len(features) + columns - 1))
        counts: list[Counter[str]] = [Counter() for _ in blank.tables]
        for i, row in enumerate(rows):
            for count, values in zip(counts, blank._values(row, f"X[{i}]"), strict=True):
                count.update(values)
        tables = []
        for k, count in enumerate(counts):
            del count[EMPTY]
            also = known if k == blank.word else ()
            kept = [value for value, n in count.items() if n >= min_count or value in also]
            tables.append([EMPTY, *sorted(kept, key=lambda value: (-count[value], value))])
        return cls(features, tables)

    def with_words(self, words: Iterable[str]) -> Tokens:
        """Return an encoder with more words, whose rows come right after those of the others."""
        tables = list(self.tables)
        assert self.word is not None  # `load_vectors` has checked the features
        tables[self.word] = [*tables[self.word], *words]
        return Tokens(self.features, tables)

    @property
    def words(self) -> list[str]:
        """The values of the feature `word`."""
        assert self.word is not None  # `load_vectors` has checked the features
        return self.tables[self.word]

    @property
    def word_rows(self) -> slice:
        """The rows of the feature `word` in the embedding table."""
        start = int(self.unknown[self.word])
        return slice(start, start + len(self.words))

    def encode(self, sequences: Sequence, name: str = "X") -> list[torch.Tensor]:
        """Return the rows of the table for each sequence, int64 (T, F) with T at least 1.

        Args:
            sequences: The sequences.
            name: The name of the sequences in error messages.

        Raises:
            UserError: A sequence is of another kind, or its tokens have another number of columns
                than those of the training data.
        """
        encoded = []
        for i, sequence in enumerate(sequences):
            where = f"{name}[{i}]"
            values = self._values(_columns(sequence, where), where)
            if not values[0]:
                encoded.append(self.unknown[None])
                continue
            ids = [
                [index.get(value, start) for value in column]
                for index, start, column in zip(
                    self._index, self.unknown.tolist(), values, strict=True
                )
            ]
            encoded.append(torch.tensor(ids).t().contiguous())
        return encoded

    def _values(self, columns: list[list[str]], where: str) -> list[list[str]]:
        """Return a list of values for each feature, from the columns of a sequence."""
        columns = columns or [[]] * self.columns
        if len(columns) != self.columns:
            raise UserError(
                f"{where} has tokens of {len(columns)} columns, not {self.columns} as in training"
            )
        return [extract(columns[0]) for extract in self._extractors] + columns[1:]


def _columns(sequence: Any, where: str) -> list[list[str]]:
    """Return the columns of a sequence of tokens, or [] if it has no tokens."""
    tokens = words(sequence) if isinstance(sequence, str) else sequence
    tokens = list(tokens) if isinstance(tokens, Iterable) else [tokens]
    if all(isinstance(token, str) for token in tokens):
        return [tokens] if tokens else []
    rows = {len(token) for token in tokens if isinstance(token, (tuple, list))}
    if len(rows) == 1 and all(
        isinstance(token, (tuple, list)) and token and all(isinstance(v, str) for v in token)
        for token in tokens
    ):
        return [list(column) for column in zip(*tokens, strict=True)]
    raise UserError(
        f"{where} must be a text, a list of words, a list of tuples of strings that are of one "
        f"length, or numbers of shape (T, I) or (T,)"
    )


class Numbers:
    """Encodes sequences of vectors: arrays or lists of numbers, (T, I) or, if I is 1, (T,).

    T may be 0.

    Args:
        size: The size of the vectors, I.

    Example:
        >>> import numpy as np
        >>> Numbers(1).encode([np.zeros(3)])[0].shape
        torch.Size([3, 1])
    """

    def __init__(self, size: int):
        self.size = size

    @classmethod
    def fit(cls, sequences: Sequence) -> Numbers:
        """Return the encoder for vectors of the size that the first sequence with steps has."""
        for i, sequence in enumerate(sequences):
            vectors = _vectors(sequence, f"X[{i}]")
            if len(vectors):
                break
        return cls(vectors.shape[1])

    def encode(self, sequences: Sequence, name: str = "X") -> list[torch.Tensor]:
        """Return each sequence as a tensor, float32 (T, I).

        Args:
            sequences: The sequences.
            name: The name of the sequences in error messages.

        Raises:
            UserError: A sequence has vectors of another size, or values that are infinite or NaN.
        """
        encoded = [_vectors(sequence, f"{name}[{i}]") for i, sequence in enumerate(sequences)]
        for i, vectors in enumerate(encoded):
            if vectors.shape[1] != self.size or not vectors.isfinite().all():
                finite = "" if vectors.isfinite().all() else " with numbers that are not finite"
                raise UserError(
                    f"{name}[{i}] must be finite numbers of shape (T, {self.size}), not "
                    f"{tuple(vectors.shape)}{finite}"
                )
        return encoded


def _vectors(sequence: Any, where: str) -> torch.Tensor:
    """Return a sequence of vectors as a tensor, float32 (T, I). Raise UserError if it is none."""
    try:
        if not isinstance(sequence, torch.Tensor):
            sequence = np.asarray(sequence, order="C")  # torch takes no negative strides
        vectors = torch.as_tensor(sequence).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} must be numbers of shape (T, I) or (T,)") from error
    if vectors.dim() == 1:
        vectors = vectors[:, None]
    if vectors.dim() != 2:
        shape = tuple(vectors.shape)
        raise UserError(f"{where} must be numbers of shape (T, I) or (T,), not {shape}")
    return vectors
