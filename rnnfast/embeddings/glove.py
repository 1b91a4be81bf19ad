"""GloVe (Pennington, Socher & Manning 2014) by blocks of co-occurrences; see csrc/glove.h."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from .. import _ops
from .._common.errors import UserError, check_seed
from ..lm.data.vocabulary import Vocabulary
from .cooccurrence import cooccurrences
from .vectors import Vectors, check_positive

ALPHA = 0.75  # f(x) = min(1, x / x_max)^alpha
BLOCK_BYTES = 1 << 19  # of vectors: half of a common L2
LEAST_BLOCKS = 64  # so many threads have something to do


class Glove:
    """Training, an epoch at a time.

    Args:
        row, column, x: the co-occurrences, (N,) each, x positive.
        vocab_size: V. dim: D, of a vector.
        lr: of AdaGrad. x_max: co-occurrences that count fully.
        seed: of the start and the order. Results depend on nothing else: not on the threads.
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
            raise UserError("there are no words near one another: give more text")
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
        # Vectors and biases, then the sums of squares, which begin at 1: the authors' choice.
        tables = self._random.uniform(-0.5 / D, 0.5 / D, (2, V, 2, D + 1)).astype(np.float32)
        tables[:, :, 1] = 1.0
        self.words, self.contexts = map(torch.from_numpy, tables)

    def epoch(self) -> float:
        """Go over all co-occurrences once; the mean of the weighted squared errors on the way."""
        shifts = torch.from_numpy(self._random.permutation(self.blocks))
        entries = (self._row, self._column, self._log_x, self._weight)
        tables = (self.words, self.contexts)
        cost = _ops.glove_epoch(self._starts, shifts, *entries, *tables, self.lr)
        if not np.isfinite(cost):
            raise UserError("GloVe diverged: lower lr")
        return cost / len(self._row)

    def matrix(self) -> np.ndarray:
        """The sum of a word's vector and its vector as a context, float32 (V, D)."""
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
    """Vectors of the words of `vocab` from a text, a sentence a line.

    `window` is the largest distance of words that count as near, `x_max` the co-occurrences from
    which a pair counts fully (100 in the paper, whose text is larger). `progress` is called after
    each epoch with a dict: epoch, loss, cooccurrences, cooccurrences_per_second. Threads are
    torch's; the vectors do not depend on them. Raises UserError for settings out of range.
    """
    if epochs < 1:
        raise UserError(f"epochs must be at least 1, not {epochs}")
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
