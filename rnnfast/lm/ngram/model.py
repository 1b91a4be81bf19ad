"""n-gram language models: sorted arrays in which the tokens of a text are found by bisection."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._common.errors import ArgumentError, UserError
from ..data.batches import shifted
from ..data.vocabulary import Vocabulary
from ..language_model import LanguageModel
from ..sampling import ContextSampler
from .smoothing import ALPHA, SMOOTHINGS, context_lengths, count, estimate

LOG_ZERO = -99 * math.log(10)  # stands for log 0, as in ARPA files
# Back-off weights above 1 may lift a sum that has LOG_ZERO in it. No smoothing gives 1e-90.
MAX_LOG_ZERO = -90 * math.log(10)


@dataclass(frozen=True)
class Ngrams:
    """The G n-grams of one length that a model has, in the order of their keys.

    For n = 1 these are all V tokens, and the keys are the numbers of the tokens.

    Attributes:
        keys: int64 (G,). A key is the number of the first n - 1 tokens among the (n-1)-grams,
            times V, plus the last token.
        logprobs: float64 (G,), log p of the last token after the others, in nats.
        backoffs: float64 (G,), the logarithm of the back-off weight of the n-gram as a context. It
            is 0 in the highest order.
    """

    keys: np.ndarray
    logprobs: np.ndarray
    backoffs: np.ndarray


class NgramLM(LanguageModel):
    """An n-gram model in back-off form: p(w | the order - 1 tokens before it).

    `NgramLM.fit` makes a model from a text, `lm.load` reads one from an ARPA file.

    p(w | context) is the probability of the longest n-gram that ends with w. For each token of the
    context that this n-gram leaves out, it is multiplied by the back-off weight of the context that
    starts with this token.

    Every line is a sentence. The boundary that closes it is predicted like a word (`</s>`), and a
    context reaches back to the boundary before the line (`<s>`) and no further. With `stream`,
    contexts go on across the ends of lines, as in an RNN. In both cases every token of a text is
    predicted once, so perplexities can be compared with one another and with those of an `RNNLM`.

    `<unk>` is a token like the others. If the training text has none, it gets its share of what
    smoothing keeps for tokens that were never seen. p sums to 1 over the vocabulary in every
    context, except for stupid backoff.

    Maximum likelihood gives probability zero to what it has not seen. In `logprobs` and scores this
    is 1e-99, as in ARPA files. Evaluations count such tokens apart, and their perplexity is
    infinite.

    Attributes:
        vocab: The vocabulary.
        ngrams: The n-grams of each length; `ngrams[n - 1]` has those of n tokens.
        smoothing: The name of the smoothing, or None if it is not known.
        stream: Whether contexts go on across the ends of lines.

    Example:
        >>> from rnnfast import lm
        >>> text = "the cat sat on the mat\\n" * 50
        >>> vocab = lm.Vocabulary.build("word", [text])
        >>> model = lm.NgramLM.fit(vocab, vocab.encode_stream(text), order=3)
        >>> model.order, model.generate("the cat", length=3, temperature=0)
        (3, 'the cat sat on the')
    """

    log_zero = MAX_LOG_ZERO

    def __init__(
        self,
        vocab: Vocabulary,
        ngrams: list[Ngrams],
        smoothing: str | None = None,
        stream: bool = False,
    ):
        """Make a model from its n-grams; see the attributes."""
        self.vocab, self.ngrams, self.smoothing, self.stream = vocab, ngrams, smoothing, stream
        # In stupid backoff a context that was never seen has the same weight as any other. In the
        # other models its weight is 1.
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
        """Count the n-grams of a text, and estimate their probabilities.

        Args:
            vocab: The vocabulary.
            ids: Token numbers as `vocab.encode_stream` returns them, integers (n,).
            order: The length of the longest n-grams.
            smoothing: "mle" (maximum likelihood), "add-k", "stupid" (stupid backoff; Brants et al.
                2007), "katz" (back-off with Good-Turing discounts; Katz 1987), "kn" (interpolated
                Kneser-Ney) or "mkn" (modified Kneser-Ney; both Chen & Goodman 1999). If the counts
                of a text do not allow to estimate discounts, simpler or fixed discounts are used.
            k: The number that "add-k" adds to each count.
            stream: Let contexts go on across the ends of lines.

        Raises:
            UserError: An argument is out of range, or `ids` is empty.
        """
        if order < 1:
            raise ArgumentError(f"order must be at least 1, not {order}")
        if smoothing not in SMOOTHINGS:
            raise ArgumentError(
                f"smoothing must be one of {', '.join(SMOOTHINGS)}, not {smoothing!r}"
            )
        if not 0 < k < math.inf:
            raise ArgumentError(f"k must be a positive number, not {k}")
        if len(ids) == 0:
            raise UserError("there is no token to count: give some text")
        ids = np.asarray(ids, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= len(vocab):
            raise UserError(
                f"ids must be in [0, {len(vocab)}): encode the text with this vocabulary"
            )
        levels = count(ids, len(vocab), vocab.boundary, order, stream)
        logprobs, backoffs = [], []
        for p, weight in estimate(levels, smoothing, k, stream):
            logprobs.append(np.minimum(_log(p), 0))  # rounding may make p larger than 1
            backoffs.append(_log(weight))
        backoffs = [*backoffs[1:], np.zeros(len(levels[-1].keys))]
        keys = [level.keys for level in levels]
        return cls(vocab, list(map(Ngrams, keys, logprobs, backoffs)), smoothing, stream)

    @property
    def order(self) -> int:
        """The length of the longest n-grams."""
        return len(self.ngrams)

    def logprobs(
        self, ids: np.ndarray, on_chunk: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return log p of every token of a stream; see `LanguageModel.logprobs`."""
        context, _ = shifted(ids, self.vocab.boundary)
        lengths = context_lengths(ids, self.vocab.boundary, self.stream)
        result = self.ngrams[0].logprobs[ids]
        for n, (shorter, longer) in enumerate(itertools.pairwise(self.ngrams), 2):
            # `context` has the number of the n - 1 tokens before each token among the (n-1)-grams,
            # or -1 if the model does not have them.
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
        """Return log p of every token after `context`; see `LanguageModel.next_logprobs`."""
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

    def sampler(self, **options: Any) -> tuple[ContextSampler, int]:
        """Return a sampler; see `LanguageModel.sampler`."""
        return ContextSampler(self, **options), 1


def find(keys: np.ndarray, context: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
    """Return the numbers of n-grams among sorted `keys`, or -1 for n-grams that are not there.

    `context` has the numbers of the contexts (-1 for a context that is not there), `last` has the
    last tokens, and `size` is the size of the vocabulary.
    """
    wanted = context * size + last
    if len(keys) == 0:
        return np.full(wanted.shape, -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(p), LOG_ZERO)
