"""Unigram and bigram baselines: what a model has to beat before it has learnt anything."""

from __future__ import annotations

import numpy as np

from .batches import shifted


class Unigram:
    """p(w) = (c(w) + 1) / (N + V), counted on a stream of token numbers."""

    def __init__(self, ids: np.ndarray, vocab_size: int):
        counts = np.bincount(ids, minlength=vocab_size).astype(np.float64)
        self.probabilities = (counts + 1) / (len(ids) + vocab_size)

    def loss(self, ids: np.ndarray) -> float:
        """Mean negative log-likelihood of a stream, nats a token."""
        return float(-np.log(self.probabilities[ids]).mean())


class Bigram:
    """p(w | v) = (c(v, w) + t(v) p(w)) / (c(v) + t(v)), t(v) the number of words seen after v.

    Interpolation of Witten & Bell (1991, method C) with the unigram above. `boundary` stands
    before the first token.
    """

    def __init__(self, ids: np.ndarray, vocab_size: int, boundary: int):
        self.unigram = Unigram(ids, vocab_size)
        self.vocab_size, self.boundary = vocab_size, boundary
        previous, _ = shifted(ids, boundary)
        # A pair is one number, so that the counts are a sorted array and a look-up a bisection.
        self._pairs, self._counts = np.unique(previous * vocab_size + ids, return_counts=True)
        self._seen = np.bincount(previous, minlength=vocab_size)
        self._types = np.bincount(self._pairs // vocab_size, minlength=vocab_size)

    def probability(self, previous: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """p(ids | previous), elementwise, float64."""
        pairs = previous * self.vocab_size + ids
        at = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        counts = np.where(self._pairs[at] == pairs, self._counts[at], 0)
        types, seen = self._types[previous], self._seen[previous]
        # A context never seen has no followers either: all weight goes to the unigram.
        types = np.where(seen == 0, 1, types)
        return (counts + types * self.unigram.probabilities[ids]) / (seen + types)

    def loss(self, ids: np.ndarray) -> float:
        """Mean negative log-likelihood of a stream, nats a token."""
        return float(-np.log(self.probability(*shifted(ids, self.boundary))).mean())


def baselines(train: np.ndarray, valid: np.ndarray, vocab_size: int, boundary: int) -> dict:
    """Loss on `valid` (nats a token) of the unigram and the bigram model of `train`."""
    bigram = Bigram(train, vocab_size, boundary)
    return {"unigram": bigram.unigram.loss(valid), "bigram": bigram.loss(valid)}
