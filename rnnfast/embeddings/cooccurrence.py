"""Count how often words stand near one another."""

from __future__ import annotations

import numpy as np

from .._common.errors import ArgumentError
from ..lm.data.vocabulary import Vocabulary


def cooccurrences(
    ids: np.ndarray, vocab: Vocabulary, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count co-occurrences, weighted by the inverse of the distance.

    X_ij is the sum of 1 / distance over all places where the words i and j stand in the same line,
    at a distance of at most `window`. X is symmetric. A pair of equal words counts twice, once in
    each direction, as in the authors' implementation of GloVe.

    Args:
        ids: the tokens of a text, int64 (n,), as `vocab.encode_stream` returns them. Lines end at
            `vocab.boundary`, which has no co-occurrences itself.
        vocab: the vocabulary of `ids`.
        window: the largest distance, in tokens.

    Returns:
        `(row, column, x)`: the N entries of X that are not zero, row by row, as int64, int64 and
        float64 arrays of shape (N,).

    Raises:
        UserError: `window` is below 1.

    Example:
        >>> from rnnfast import embeddings, lm
        >>> vocab = lm.Vocabulary.build("word", ["a b a"])
        >>> row, column, x = embeddings.cooccurrences(vocab.encode_stream("a b a"), vocab, 2)
        >>> {(vocab.tokens[i], vocab.tokens[j]): float(v) for i, j, v in zip(row, column, x)}
        {('a', 'a'): 1.0, ('a', 'b'): 2.0, ('b', 'a'): 2.0}
    """
    if window < 1:
        raise ArgumentError(f"window must be at least 1, not {window}")
    V, line = len(vocab), np.cumsum(ids == vocab.boundary)
    found: list[np.ndarray] = []
    each: list[np.ndarray] = []
    for distance in range(1, min(window, len(ids) - 1) + 1):
        first, second = ids[:-distance], ids[distance:]
        near = (line[:-distance] == line[distance:]) & (first != vocab.boundary)
        pairs, counts = np.unique(first[near] * V + second[near], return_counts=True)
        found += [pairs, pairs % V * V + pairs // V]
        each += [counts / distance] * 2
    keys = np.concatenate([np.empty(0, np.int64), *found])
    order = np.argsort(keys, kind="stable")
    keys, starts = np.unique(keys[order], return_index=True)
    weights = np.concatenate([np.empty(0), *each])[order]
    x = np.add.reduceat(weights, starts) if len(keys) else weights
    return keys // V, keys % V, x
