"""n-gram language models: sorted arrays, looked up by bisection, all tokens of a text at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..._common.errors import UserError
from ..data.batches import shifted
from ..data.vocabulary import Vocabulary
from ..language_model import LanguageModel
from ..sampling import ContextSampler
from .smoothing import ALPHA, SMOOTHINGS, context_lengths, count, estimate

LOG_ZERO = -99 * math.log(10)  # log of a probability of zero, as ARPA files write it


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of one length that have an entry in a model, in the order of their keys.

    For n = 1 these are all V tokens, and their keys the tokens' numbers.
    """

    keys: np.ndarray  # int64 (G,): number of the first n-1 tokens among the (n-1)-grams * V + last
    logprobs: np.ndarray  # float64 (G,): log p of the last token after the others, nats
    backoffs: np.ndarray  # float64 (G,): log weight as a context, 0 in the highest order


class NgramLM(LanguageModel):
    """p(w | the order - 1 tokens before it) as a back-off model; `NgramLM.fit` makes one of text.

    The entry of the longest n-gram that ends in w counts; for each token of context it leaves out,
    p is multiplied by the weight of the context that this token began.

    Every line is a sentence: the boundary that closes it is predicted like a word (`</s>`), and a
    context reaches back to the boundary before the line (`<s>`) and no further. With `stream`
    contexts run on over the ends of lines, as an RNN's does. Either way every token of a text is
    predicted once, so the perplexities of both can be compared with each other and an `RNNLM`'s.

    `<unk>` is a token like the others; where the training text has none, it has its share of what
    smoothing keeps for tokens never seen. No probability is zero: where maximum likelihood would
    have it so, it is 1e-99. p sums to 1 over the vocabulary in every context, but for stupid
    backoff, whose scores do not.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        ngrams: list[Ngrams],
        smoothing: str | None = None,
        stream: bool = False,
    ):
        """`ngrams[n-1]` are those of n tokens; `smoothing` is where they are from, if known."""
        self.vocab, self.ngrams, self.smoothing, self.stream = vocab, ngrams, smoothing, stream
        # For stupid backoff a context never seen costs as much as any other, else nothing.
        self._unseen = math.log(ALPHA) if smoothing == "stupid" else 0.0

    @classmethod
    def fit(
        cls,
        vocab: Vocabulary,
        ids: np.ndarray,
        order: int = 5,
        smoothing: str = "mkn",
        k: float = 1.0,
        stream: bool = False,
    ) -> NgramLM:
        """Count and estimate on tokens as `vocab.encode_stream` gives them, integers (n,).

        `smoothing` is "mle" (maximum likelihood), "add-k", "stupid" (stupid backoff; Brants et al.
        2007), "katz" (back-off with Good-Turing discounts; Katz 1987), "kn" or "mkn" (interpolated
        and modified Kneser-Ney; Chen & Goodman 1999); `k` is what "add-k" adds. Where a text has
        too few n-grams, or too many, for discounts to be estimated, simpler or fixed ones stand in.
        Raises UserError.
        """
        if order < 1:
            raise UserError(f"order must be at least 1, not {order}")
        if smoothing not in SMOOTHINGS:
            raise UserError(f"smoothing must be one of {', '.join(SMOOTHINGS)}, not {smoothing!r}")
        if not 0 < k < math.inf:
            raise UserError(f"k must be a positive number, not {k}")
        if len(ids) == 0:
            raise UserError("there is no token to count: give some text")
        ids = np.asarray(ids, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= len(vocab):
            raise UserError(f"ids must be in [0, {len(vocab)}): are they of this vocabulary?")
        levels = count(ids, len(vocab), vocab.boundary, order, stream)
        logprobs, backoffs = [], []
        for p, weight in estimate(levels, smoothing, k, stream):
            logprobs.append(np.minimum(_log(p), 0))  # not a rounding above 1
            backoffs.append(_log(weight))
        backoffs = [*backoffs[1:], np.zeros(len(levels[-1].keys))]
        keys = [level.keys for level in levels]
        return cls(vocab, list(map(Ngrams, keys, logprobs, backoffs)), smoothing, stream)

    @property
    def order(self) -> int:
        return len(self.ngrams)

    def logprobs(
        self, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """log p of every token of a text, as `fit` takes it, float64 (n,), nats.

        `on_chunk` is called with the number of tokens done.
        """
        context, _ = shifted(ids, self.vocab.boundary)
        lengths = context_lengths(ids, self.vocab.boundary, self.stream)
        result = self.ngrams[0].logprobs[ids]
        for n, (shorter, longer) in enumerate(itertools.pairwise(self.ngrams), 2):
            # `context` has the numbers of the n-1 tokens before each, -1 where there is no entry.
            reached = lengths >= n - 1
            context[~reached] = -1
            known = context >= 0
            result[reached & ~known] += self._unseen
            result[known] += shorter.backoffs[context[known]]
            number = find(longer.keys, context, ids, len(self.vocab))
            found = number >= 0
            result[found] = longer.logprobs[number[found]]
            context = np.concatenate(([-1], number))[:-1]
        if on_chunk:
            on_chunk(len(ids))
        return result

    def next_logprobs(self, context: np.ndarray) -> np.ndarray:
        size = len(self.vocab)
        if not self.stream:
            context = context[np.append(0, np.flatnonzero(context == self.vocab.boundary))[-1] :]
        result = self.ngrams[0].logprobs.copy()
        for n in range(1, min(len(context), self.order - 1) + 1):
            number = context[-n]
            for entries, token in zip(
                self.ngrams[1:n], context[len(context) - n + 1 :], strict=True
            ):
                number = find(entries.keys, number, token, size)
            if number < 0:
                result += self._unseen
                continue
            result += self.ngrams[n - 1].backoffs[number]
            longer = self.ngrams[n]
            part = slice(*np.searchsorted(longer.keys, [number * size, (number + 1) * size]))
            result[longer.keys[part] % size] = longer.logprobs[part]
        return result

    def sampler(self, **options) -> tuple[ContextSampler, int]:
        """A sampler, and the tokens to ask of it a time; `options` as in `rnnfast._ops.sampler`."""
        return ContextSampler(self, **options), 1


def find(keys: np.ndarray, context: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
    """Numbers of n-grams from those of their contexts (-1: none) and last tokens; -1 for none."""
    wanted = context * size + last
    if len(keys) == 0:
        return np.full(wanted.shape, -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(p), LOG_ZERO)
