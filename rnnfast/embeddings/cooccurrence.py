"""How often words stand near one another."""

from __future__ import annotations

import numpy as np

from .._common.errors import UserError
from ..lm.data.vocabulary import Vocabulary


def cooccurrences(
    ids: np.ndarray, vocab: Vocabulary, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X_ij: over all places of i and j within a window of a line, the sum of 1 / distance.

    Args:
        ids: int64 (n,), as `vocab.encode_stream` has them. Lines end at `vocab.boundary`, which
            itself counts with nothing.
        window: the largest distance, in tokens.

    Returns:
        (row, column, x): int64, int64 and float64 (N,), the entries that are not 0, row by row.
        X is symmetric; a word with itself counts both ways, as in the authors' GloVe.

    Raises:
        UserError: a window of less than 1.
    """
    if window < 1:
        raise UserError(f"window must be at least 1, not {window}")
    V, line = len(vocab), np.cumsum(ids == vocab.boundary)
    keys, weights = [], []
    for distance in range(1, min(window, len(ids) - 1) + 1):
        first, second = ids[:-distance], ids[distance:]
        near = (line[:-distance] == line[distance:]) & (first != vocab.boundary)
        pairs, counts = np.unique(first[near] * V + second[near], return_counts=True)
        keys += [pairs, pairs % V * V + pairs // V]
        weights += [counts / distance] * 2
    keys = np.concatenate([np.empty(0, np.int64), *keys])
    order = np.argsort(keys, kind="stable")
    keys, starts = np.unique(keys[order], return_index=True)
    weights = np.concatenate([np.empty(0), *weights])[order]
    x = np.add.reduceat(weights, starts) if len(keys) else weights
    return keys // V, keys % V, x
