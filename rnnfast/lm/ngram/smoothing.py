"""n-gram counts, and the probabilities that smoothing makes of them: arrays in, arrays out.

Everything is a back-off model, so that one look-up serves all: p(w | h) of the n-grams that were
seen, and for each context h a weight, the factor between p(w | h) and p(w | h without its first
token) for all other w. Interpolated models have this form too: p is what the interpolation gives
and the weight is that of the shorter context in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ALPHA = 0.4  # of stupid backoff, as Brants et al. (2007) have it
GOOD_TURING_MAX = 5  # Katz's k: larger counts are reliable
FIXED_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])  # where counts of counts say nothing


@dataclass(frozen=True)
class Level:
    """The n-grams of one length that a text has, sorted by key; all arrays are int64 (G,).

    The level of length 1 holds all V tokens, seen or not, so that its numbers are the tokens'.
    """

    keys: np.ndarray  # number of the first n-1 tokens in the level below * V + the last token
    suffixes: np.ndarray  # number of the last n-1 tokens in the level below
    counts: np.ndarray  # how often it was seen
    starts: np.ndarray  # and how often of these at the start of a context, with nothing before it


def context_lengths(ids: np.ndarray, boundary: int, stream: bool) -> np.ndarray:
    """How many tokens stand before each, int64 (n,), with the boundary that contexts begin with.

    That is the one before the first token; unless `stream`, also every boundary in `ids`.
    """
    at = np.arange(1, len(ids) + 1)
    if stream:
        return at
    start = np.zeros(len(ids), dtype=np.int64)
    start[1:] = np.where(ids[:-1] == boundary, at[:-1], 0)
    return at - np.maximum.accumulate(start)


def count(
    ids: np.ndarray, size: int, boundary: int, order: int, stream: bool = False
) -> list[Level]:
    """The n-grams of tokens `ids`, int64 (n,) below `size`, for n = 1 up to `order`.

    A boundary stands before the first token; it is context and not counted as a token. An n-gram
    may begin with a boundary and end with one, and unless `stream` has none between.
    """
    nothing = np.zeros(size, dtype=np.int64)
    levels = [Level(np.arange(size), nothing, np.bincount(ids, minlength=size), nothing)]
    lengths = context_lengths(ids, boundary, stream)
    # The numbers of the n-gram that ends with each token, and of the one that ends before it.
    here, before = ids, np.concatenate(([boundary], ids[:-1]))
    for n in range(2, order + 1):
        at = np.flatnonzero(lengths >= n - 1)
        keys, numbers, counts = np.unique(
            before[at] * size + ids[at], return_inverse=True, return_counts=True
        )
        suffixes = np.empty_like(keys)
        suffixes[numbers] = here[at]
        starts = np.bincount(numbers[lengths[at] == n - 1], minlength=len(keys))
        levels.append(Level(keys, suffixes, counts, starts))
        here = np.full(len(ids), -1)
        here[at] = numbers
        before = np.concatenate(([-1], here[:-1]))
    return levels


def adjusted_counts(levels: list[Level]) -> list[np.ndarray]:
    """The counts of Kneser & Ney (1995): below the highest order, how many tokens stand before.

    An n-gram with nothing before it keeps its count for these.
    """
    return [
        np.bincount(longer.suffixes, minlength=len(level.keys)) + level.starts
        for level, longer in itertools.pairwise(levels)
    ] + [levels[-1].counts]


def discounts(counts: np.ndarray, modified: bool) -> np.ndarray:
    """What is taken from a count of 0, 1, 2 and of 3 or more: float64 (4,).

    Modified Kneser-Ney's D1, D2, D3+ (Chen & Goodman 1999, equation 26) or the single D of Ney,
    Essen & Kneser (1994), which also stands in where a count of counts is zero, or a discount out
    of range, as with few types or artificial text; and where it has none, fixed ones.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=5).astype(float)
    if n[1] == 0 or n[2] == 0:
        return FIXED_DISCOUNTS if modified else np.minimum(FIXED_DISCOUNTS, FIXED_DISCOUNTS[1])
    single = n[1] / (n[1] + 2 * n[2])
    if modified and n[3] > 0:
        c = np.arange(1, 4)
        result = c - (c + 1) * single * n[2:5] / n[1:4]
        if (result > 0).all():
            return np.concatenate(([0.0], result))
    return np.array([0.0, single, single, single])


def estimate(
    levels: list[Level], smoothing: str, k: float, stream: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each level p, float64 (G,), and the weights of its contexts, those of the level below.

    `smoothing` is one of SMOOTHINGS, `k` what add-k adds, `stream` as for `count`. Below length 1
    is the uniform distribution. In every context p sums to 1 over the tokens, but for "stupid".
    """
    rule = SMOOTHINGS[smoothing]
    counts = [level.counts for level in levels]
    if smoothing in ("kn", "mkn"):
        counts = adjusted_counts(levels)
    elif smoothing == "add-k":
        # Nothing is learnt of a context cut short. One that a sentence starts with is whole; of a
        # stream there is one start, and it cannot be told from a context cut short.
        counts[:-1] = [level.starts * (not stream) for level in levels[:-1]]
    size = len(levels[0].keys)
    below = np.array([1 / size])
    for level, c in zip(levels, counts, strict=True):
        context = level.keys // size
        total = _sums(c, context, len(below))
        below, weight = rule(c, context, total, below[level.suffixes], size, k)
        yield below, weight


# The rules: p and the weights of the contexts from counts c, the number of the context of each,
# the sum of c in each context (zero for one that nothing follows), p in the shorter context, V, k.


def _sums(values, context, contexts):
    """Of the values in each context. (Where there are none at all, bincount makes integers.)"""
    return np.bincount(context, values, contexts).astype(float, copy=False)


def _interpolated(c, context, total, shorter, taken):
    """Absolute discounting, what is taken shared out as in the shorter context."""
    weight = _sums(taken, context, len(total))
    weight = np.divide(weight, total, out=np.ones_like(total), where=total > 0)
    return (c - taken) / total[context] + weight[context] * shorter, weight


def _maximum_likelihood(c, context, total, shorter, size, k):
    return _interpolated(c, context, total, shorter, np.zeros(len(c)))


def _kneser_ney(c, context, total, shorter, size, k):
    """Interpolated Kneser-Ney (Chen & Goodman 1999, section 3)."""
    return _interpolated(c, context, total, shorter, discounts(c, False)[np.minimum(c, 3)])


def _modified_kneser_ney(c, context, total, shorter, size, k):
    return _interpolated(c, context, total, shorter, discounts(c, True)[np.minimum(c, 3)])


def _add_k(c, context, total, shorter, size, k):
    """(c + k) / (total + k V), which is uniform where the context is new."""
    weight = k * size / (total + k * size)
    return c / (total + k * size)[context] + weight[context] / size, weight


def _stupid_backoff(c, context, total, shorter, size, k):
    """Relative frequencies, 0.4 for every token of context less (Brants et al. 2007)."""
    p = np.where(c > 0, c / total[context], ALPHA * shorter)
    return p, np.full(len(total), ALPHA)


def _katz(c, context, total, shorter, size, k):
    """Discounted frequencies; what is left over goes to the tokens not seen (Katz 1987)."""
    seen = c > 0
    full = _sums(seen, context, len(total)) == size  # no token to leave anything to
    kept = np.where(full[context], c, _good_turing(c))
    # A sum of differences: it is exactly zero where no count was small enough for a discount.
    # Tokens not seen then get what one more occurrence would have had.
    left = _sums(c - kept, context, len(total))
    nothing = (left == 0) & (total > 0) & ~full
    left, total = left + nothing, total + nothing
    # What the shorter context gives to the tokens not seen; rounding must not make it zero.
    rest = np.maximum(1 - _sums(seen * shorter, context, len(total)), 1e-15)
    share = np.divide(left, total, out=rest.copy(), where=(total > 0) & ~full)
    weight = share / rest
    return np.where(seen, kept / total[context], weight[context] * shorter), weight


def _good_turing(c):
    """Katz's discounted counts; where counts of counts do not allow them, absolute discounting."""
    top = GOOD_TURING_MAX + 1
    n = np.bincount(np.minimum(c, top + 1), minlength=top + 1)[: top + 1]
    if (n[1:] > 0).all() and top * n[top] < n[1]:
        r = np.arange(1, top)
        beyond = top * n[top] / n[1]
        factor = ((r + 1) * n[r + 1] / (r * n[r]) - beyond) / (1 - beyond)
        if ((factor > 0) & (factor <= 1)).all():
            return c * np.concatenate(([0.0], factor, [1.0]))[np.minimum(c, top)]
    return c - discounts(c, False)[np.minimum(c, 3)]


SMOOTHINGS = {
    "mle": _maximum_likelihood,
    "add-k": _add_k,
    "stupid": _stupid_backoff,
    "katz": _katz,
    "kn": _kneser_ney,
    "mkn": _modified_kneser_ney,
}
