"""Sampling in Python, for the models that have no native sampler."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from .data.vocabulary import Vocabulary


class ContextModel(Protocol):
    """A model that sees only the last tokens of a text: an n-gram model or a window."""

    vocab: Vocabulary

    @property
    def order(self) -> int:
        """The number of tokens that the model spans, the predicted token included."""

    def next_logprobs(self, context: np.ndarray) -> np.ndarray:
        """Return log p of every token after `context`; see `LanguageModel.next_logprobs`."""


class SamplerBase:
    """Draw tokens as the native sampler does; see `rnnfast._ops.sampler` for the options.

    Subclasses read the tokens and give the probabilities of the next token.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        temperature: float,
        top_k: int,
        top_p: float,
        stop: int | None,
        seed: int,
    ):
        self.unk, self.stop = vocab.unk, stop
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.random = np.random.default_rng(seed)

    def feed(self, tokens: list[int]) -> None:
        """Read tokens. The first token of all must be a boundary."""
        raise NotImplementedError

    def next_logprobs(self) -> np.ndarray:
        """Return log p of every token after those read, up to a constant: float64 (V,)."""
        raise NotImplementedError

    def generate(self, n: int) -> list[int]:
        """Draw and read up to `n` tokens. There are fewer if the last token is `stop`.

        Raises OverflowError if the probabilities of the next token are not finite.
        """
        drawn: list[int] = []
        while len(drawn) < n and (not drawn or drawn[-1] != self.stop):
            drawn.append(self._draw())
            self.feed(drawn[-1:])
        return drawn

    def _draw(self) -> int:
        logprobs = self.next_logprobs()
        if np.isnan(logprobs).any():
            raise OverflowError(
                "the logits of the next token are not finite: the hidden state has overflowed, or "
                "the weights are not finite"
            )
        if self.unk is not None:
            logprobs[self.unk] = -math.inf
        if self.temperature == 0:
            return int(logprobs.argmax())
        tokens = np.arange(len(logprobs))
        if self.top_k < len(tokens) or self.top_p < 1:
            tokens = np.argsort(-logprobs, kind="stable")[: self.top_k]
        with np.errstate(over="ignore"):  # a tiny temperature makes the quotient infinite
            sums = np.exp((logprobs[tokens] - logprobs.max()) / self.temperature).cumsum()
        last = np.searchsorted(sums, self.top_p * sums[-1])
        point = self.random.random() * sums[last]
        return int(tokens[min(np.searchsorted(sums, point, "right"), last)])


class ContextSampler(SamplerBase):
    """Draw tokens from a model that sees only the last tokens of a text."""

    def __init__(self, model: ContextModel, **options: Any):
        super().__init__(model.vocab, **options)
        self.model = model
        self.tokens: list[int] = []

    def feed(self, tokens: list[int]) -> None:
        """Read tokens. The first token of all must be a boundary."""
        # A context has order - 1 tokens. One more, so that the slice is right for order 1 as well.
        self.tokens = (self.tokens + tokens)[-self.model.order :]

    def next_logprobs(self) -> np.ndarray:
        """Return log p of every token after those read: float64 (V,)."""
        return self.model.next_logprobs(np.array(self.tokens))
