"""Train word vectors with GloVe (Pennington, Socher & Manning, "GloVe: Global Vectors for Word
Representation", 2014).

The co-occurrences are cut into P x P blocks, by word and by context. The kernel goes through P
blocks at a time, none of which share a word or a context, so no two threads write to one vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from .. import _ops
from .._common.errors import ArgumentError, UserError, check_seed
from ..lm.data.vocabulary import Vocabulary
from .cooccurrence import cooccurrences
from .vectors import Vectors, check_positive

ALPHA = 0.75  # an entry x has the weight min(1, x / x_max) ** ALPHA
BLOCK_BYTES = 1 << 19  # size of the vectors of a block: half of a common L2 cache
LEAST_BLOCKS = 64  # the largest number of threads that all have work


class Glove:
    """Train word vectors, one epoch at a time.

    Args:
        row: words of the co-occurrences, int64 (N,).
        column: contexts of the co-occurrences, int64 (N,).
        x: the co-occurrences, float64 (N,), positive.
        vocab_size: V.
        dim: D, the size of a vector.
        lr: learning rate of AdaGrad.
        x_max: the co-occurrences from which on an entry has the full weight.
        seed: seed of the initial vectors and of the order. The results do not depend on the number
            of threads.

    Attributes:
        words: vectors of words with their biases, and AdaGrad's sums of squares, float32
            (V, 2, D + 1).
        contexts: the same for contexts.
        blocks: P, the number of blocks that words, and contexts, are cut into.

    Raises:
        UserError: a setting is out of range, or there are no co-occurrences.
    """

    def __init__(
        self,
        row: np.ndarray,
        column: np.ndarray,
        x: np.ndarray,
        vocab_size: int,
        dim: int,
        lr: float = 0.05,
        x_max: float = 10.0,
        seed: int = 1,
    ):
        check_positive(dim=dim, lr=lr, x_max=x_max)
        check_seed(seed)
        if not len(x):
            raise UserError("there are no words near one another in a line: give more text")
        self.lr = lr
        self._random = np.random.default_rng(seed)
        V, D = vocab_size, dim
        self.blocks = P = min(V, max(LEAST_BLOCKS, -(-V * 16 * (D + 1) // BLOCK_BYTES)))
        order = self._random.permutation(len(x))
        block = (row % P * P + column % P)[order]
        by_block = np.argsort(block, kind="stable")
        order, block = order[by_block], block[by_block]
        self._starts = torch.from_numpy(np.searchsorted(block, np.arange(P * P + 1)))
        self._row, self._column = (torch.from_numpy(a[order]) for a in (row, column))
        x = x[order]
        self._log_x = torch.from_numpy(np.log(x).astype(np.float32))
        self._weight = torch.from_numpy(np.minimum(1, x / x_max).astype(np.float32) ** ALPHA)
        # Vectors and biases, then the sums of squares, which start at 1 as in the authors' code.
        tables = self._random.uniform(-0.5 / D, 0.5 / D, (2, V, 2, D + 1)).astype(np.float32)
        tables[:, :, 1] = 1.0
        self.words, self.contexts = map(torch.from_numpy, tables)

    def epoch(self) -> float:
        """Go over all co-occurrences once and return the mean of the weighted squared errors.

        Each error is taken before the vectors of its entry change.

        Raises:
            UserError: the errors are no longer finite.
        """
        shifts = torch.from_numpy(self._random.permutation(self.blocks))
        entries = (self._row, self._column, self._log_x, self._weight)
        tables = (self.words, self.contexts)
        cost = _ops.glove_epoch(self._starts, shifts, *entries, *tables, self.lr)
        if not np.isfinite(cost):
            raise ArgumentError(f"GloVe diverged with lr {self.lr}: give a lower lr", "lr")
        return cost / len(self._row)

    def matrix(self) -> np.ndarray:
        """Return the sum of each word's vector and its vector as a context, float32 (V, D)."""
        return (self.words[:, 0, :-1] + self.contexts[:, 0, :-1]).numpy()


def glove(
    text: str,
    vocab: Vocabulary,
    dim: int = 100,
    window: int = 10,
    epochs: int = 25,
    lr: float = 0.05,
    x_max: float = 10.0,
    seed: int = 1,
    progress: Callable[[dict], None] | None = None,
) -> Vectors:
    """Train word vectors with GloVe, on as many threads as torch uses.

    Args:
        text: one sentence a line.
        vocab: the words that get a vector.
        dim: D, the size of a vector.
        window: the largest distance, in words, at which two words of a line are near one another.
        epochs: passes over the co-occurrences.
        lr: learning rate of AdaGrad.
        x_max: the co-occurrences from which on a pair has the full weight. The paper uses 100 for
            texts that are much larger.
        seed: seed of the initial vectors and of the order. The vectors do not depend on the number
            of threads.
        progress: called after each epoch with a dict: `epoch`, `loss` (the mean of the weighted
            squared errors), `cooccurrences` (their number), `cooccurrences_per_second`.

    Raises:
        UserError: a setting is out of range, the text has no words near one another, or training
            diverged.

    Example:
        >>> from rnnfast import embeddings, lm
        >>> text = "the cat sat\\nthe dog sat\\n" * 20
        >>> vocab = lm.Vocabulary.build("word", [text])
        >>> vectors = embeddings.glove(text, vocab, dim=8, epochs=2)
        >>> vectors["cat"].shape, vectors["cat"].dtype
        ((8,), dtype('float32'))
    """
    if epochs < 1:
        raise ArgumentError(f"epochs must be at least 1, not {epochs}")
    entries = cooccurrences(vocab.encode_stream(text), vocab, window)
    model = Glove(*entries, len(vocab), dim, lr, x_max, seed)
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        loss = model.epoch()
        if progress:
            count = len(entries[0])
            rate = count / (time.perf_counter() - began)
            record = {"epoch": epoch, "loss": loss, "cooccurrences": count}
            progress({**record, "cooccurrences_per_second": rate})
    return Vectors.of(vocab, model.matrix())
