"""Count n-grams, and estimate their probabilities with smoothing. All data are arrays.

Every model has the form of a back-off model, so that one look-up serves all of them. It has
p(w | h) for the n-grams that were seen, and a weight for each context h. For all other w, p(w | h)
is this weight times p(w | h without its first token). An interpolated model has this form too: p is
the result of the interpolation, and the weight is that of the shorter context in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

_Array: TypeAlias = np.ndarray

ALPHA = 0.4  # the back-off weight of stupid backoff (Brants et al. 2007)
GOOD_TURING_MAX = 5  # Katz's k: larger counts are not discounted
FIXED_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])  # used if discounts cannot be estimated


@dataclass(frozen=True)
class NgramCounts:
    """The G n-grams of one length in a text, sorted by key. All arrays are int64 (G,).

    Those of length 1 are all V tokens, whether the text has them or not, so that the number of a
    1-gram is the number of the token.

    Attributes:
        keys: The number of the first n - 1 tokens among the (n-1)-grams, times V, plus the last
            token.
        suffixes: The number of the last n - 1 tokens among the (n-1)-grams.
        counts: The number of occurrences.
        starts: The number of occurrences at the start of a context, with nothing before them.
    """

    keys: np.ndarray
    suffixes: np.ndarray
    counts: np.ndarray
    starts: np.ndarray


def context_lengths(ids: np.ndarray, boundary: int, stream: bool) -> np.ndarray:
    """Return the length of the context of each token, int64 (n,).

    The boundary with which a context begins counts. It is the boundary before the first token, and,
    unless `stream` is given, every boundary in `ids`.
    """
    at = np.arange(1, len(ids) + 1)
    if stream:
        return at
    start = np.zeros(len(ids), dtype=np.int64)
    start[1:] = np.where(ids[:-1] == boundary, at[:-1], 0)
    return at - np.maximum.accumulate(start)


def count(
    ids: np.ndarray, size: int, boundary: int, order: int, stream: bool = False
) -> list[NgramCounts]:
    """Count the n-grams of `ids`, int64 (n,), for n from 1 to `order`.

    `size` is the size of the vocabulary. A boundary stands before the first token. It is context
    and is not counted as a token. An n-gram may begin and end with a boundary, and has no boundary
    in between unless `stream` is given.
    """
    nothing = np.zeros(size, dtype=np.int64)
    levels = [NgramCounts(np.arange(size), nothing, np.bincount(ids, minlength=size), nothing)]
    lengths = context_lengths(ids, boundary, stream)
    # For each token, the number of the n-gram that ends with it, and of the n-gram that ends with
    # the token before it.
    here, before = ids, np.concatenate(([boundary], ids[:-1]))
    for n in range(2, order + 1):
        at = np.flatnonzero(lengths >= n - 1)
        keys, numbers, counts = np.unique(
            before[at] * size + ids[at], return_inverse=True, return_counts=True
        )
        suffixes = np.empty_like(keys)
        suffixes[numbers] = here[at]
        starts = np.bincount(numbers[lengths[at] == n - 1], minlength=len(keys))
        levels.append(NgramCounts(keys, suffixes, counts, starts))
        here = np.full(len(ids), -1)
        here[at] = numbers
        before = np.concatenate(([-1], here[:-1]))
    return levels


def adjusted_counts(levels: list[NgramCounts]) -> list[np.ndarray]:
    """Return the counts of Kneser & Ney (1995) for each length.

    Below the highest order, the count of an n-gram is the number of different tokens before it. An
    occurrence with nothing before it counts as one more.
    """
    return [
        np.bincount(longer.suffixes, minlength=len(level.keys)) + level.starts
        for level, longer in itertools.pairwise(levels)
    ] + [levels[-1].counts]


def discounts(counts: np.ndarray, modified: bool) -> np.ndarray:
    """Return what is subtracted from a count of 0, of 1, of 2, and of 3 or more: float64 (4,).

    With `modified` these are D1, D2 and D3+ of modified Kneser-Ney (Chen & Goodman 1999, equation
    26), otherwise the single D of Ney, Essen & Kneser (1994). Small or artificial texts may have a
    count of counts that is zero, or give a discount that is out of range. Then the single D is
    used, and if it cannot be estimated either, fixed discounts are used.
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
    levels: list[NgramCounts], smoothing: str, k: float, stream: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each length n, p of the n-grams, float64 (G,), and the weights of their contexts.

    The contexts are the n-grams of length n - 1. For n = 1 the shorter model is the uniform
    distribution. In every context p sums to 1 over the tokens, except for "stupid".

    Args:
        levels: What `count` returned.
        smoothing: A name in SMOOTHINGS.
        k: The number that "add-k" adds.
        stream: As for `count`.
    """
    rule = SMOOTHINGS[smoothing]
    counts = [level.counts for level in levels]
    if smoothing in ("kn", "mkn"):
        counts = adjusted_counts(levels)
    elif smoothing == "add-k":
        # Only complete contexts are counted. The context at the start of a sentence is complete. A
        # stream has a single start, which cannot be distinguished from a shortened context.
        counts[:-1] = [level.starts * (not stream) for level in levels[:-1]]
    size = len(levels[0].keys)
    below = np.array([1 / size])
    for level, c in zip(levels, counts, strict=True):
        context = level.keys // size
        total = _sums(c, context, len(below))
        below, weight = rule(c, context, total, below[level.suffixes], size, k)
        yield below, weight


# Each rule returns p and the weights of the contexts. Its arguments are the counts c, the number of
# the context of each n-gram, the sum of c in each context (0 if nothing follows it), p in the
# shorter context, V, and k.


def _sums(values: _Array, context: _Array, contexts: int) -> _Array:
    """Return the sum of the values in each context, float64, also if there are no values."""
    return np.bincount(context, values, contexts).astype(float, copy=False)


def _interpolated(
    c: _Array, context: _Array, total: _Array, shorter: _Array, taken: _Array
) -> tuple[_Array, _Array]:
    """Apply absolute discounting. What is taken is distributed as in the shorter context."""
    weight = _sums(taken, context, len(total))
    weight = np.divide(weight, total, out=np.ones_like(total), where=total > 0)
    return (c - taken) / total[context] + weight[context] * shorter, weight


def _maximum_likelihood(
    c: _Array, context: _Array, total: _Array, shorter: _Array, size: int, k: float
) -> tuple[_Array, _Array]:
    """Estimate relative frequencies."""
    return _interpolated(c, context, total, shorter, np.zeros(len(c)))


def _kneser_ney(
    c: _Array, context: _Array, total: _Array, shorter: _Array, size: int, k: float
) -> tuple[_Array, _Array]:
    """Estimate with interpolated Kneser-Ney (Chen & Goodman 1999, section 3)."""
    return _interpolated(c, context, total, shorter, discounts(c, False)[np.minimum(c, 3)])


def _modified_kneser_ney(
    c: _Array, context: _Array, total: _Array, shorter: _Array, size: int, k: float
) -> tuple[_Array, _Array]:
    """Estimate with modified Kneser-Ney (Chen & Goodman 1999, section 3)."""
    return _interpolated(c, context, total, shorter, discounts(c, True)[np.minimum(c, 3)])


def _add_k(
    c: _Array, context: _Array, total: _Array, shorter: _Array, size: int, k: float
) -> tuple[_Array, _Array]:
    """Estimate (c + k) / (total + k V). It is uniform in a context that was never seen."""
    weight = k * size / (total + k * size)
    return c / (total + k * size)[context] + weight[context] / size, weight


def _stupid_backoff(
    c: _Array, context: _Array, total: _Array, shorter: _Array, size: int, k: float
) -> tuple[_Array, _Array]:
    """Estimate with stupid backoff (Brants et al. 2007).

    p is the relative frequency, times 0.4 for each token that the context is shorter.
    """
    p = np.where(c > 0, c / total[context], ALPHA * shorter)
    return p, np.full(len(total), ALPHA)


def _katz(
    c: _Array, context: _Array, total: _Array, shorter: _Array, size: int, k: float
) -> tuple[_Array, _Array]:
    """Estimate discounted frequencies; unseen tokens get what is left over (Katz 1987)."""
    seen = c > 0
    full = _sums(seen, context, len(total)) == size  # every token was seen: nothing is discounted
    kept = np.where(full[context], c, _good_turing(c))
    # This sum of differences is exactly zero if no count was small enough for a discount. Unseen
    # tokens then get what one more occurrence would have.
    left = _sums(c - kept, context, len(total))
    nothing = (left == 0) & (total > 0) & ~full
    left, total = left + nothing, total + nothing
    # The probability of the unseen tokens in the shorter context. Rounding must not make it zero.
    rest = np.maximum(1 - _sums(seen * shorter, context, len(total)), 1e-15)
    share = np.divide(left, total, out=rest.copy(), where=(total > 0) & ~full)
    weight = share / rest
    return np.where(seen, kept / total[context], weight[context] * shorter), weight


def _good_turing(c: _Array) -> _Array:
    """Return Katz's discounted counts, or absolute discounting if they cannot be estimated."""
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
