"""Text from the models that see only the last tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .model import WindowLM
    from .ngram import NgramLM


class Sampler:
    """Draws tokens from a model of the last tokens, as `rnnfast._ops.sampler` does from an RNN."""

    def __init__(
        self,
        model: NgramLM | WindowLM,
        temperature: float,
        top_k: int,
        top_p: float,
        stop: int | None,
        seed: int,
    ):
        self.model, self.stop = model, stop
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.random = np.random.default_rng(seed)
        self.tokens: list[int] = []

    def feed(self, tokens: list[int]) -> None:
        """Read tokens, the first of all a boundary."""
        self.tokens = (self.tokens + tokens)[-self.model.order :]  # as many as a context and more

    def generate(self, n: int) -> list[int]:
        """Up to n tokens, fewer if the last is `stop`; each is read as well."""
        drawn: list[int] = []
        while len(drawn) < n and (not drawn or drawn[-1] != self.stop):
            drawn.append(self._draw())
            self.feed(drawn[-1:])
        return drawn

    def _draw(self) -> int:
        logprobs = self.model.next_logprobs(np.array(self.tokens))
        if self.model.vocab.unk is not None:
            logprobs[self.model.vocab.unk] = -math.inf
        if self.temperature == 0:
            return int(logprobs.argmax())
        tokens = np.arange(len(logprobs))
        if self.top_k < len(tokens) or self.top_p < 1:
            tokens = np.argsort(-logprobs, kind="stable")[: self.top_k]
        with np.errstate(over="ignore"):  # of a tiny temperature
            sums = np.exp((logprobs[tokens] - logprobs.max()) / self.temperature).cumsum()
        last = np.searchsorted(sums, self.top_p * sums[-1])
        point = self.random.random() * sums[last]
        return int(tokens[min(np.searchsorted(sums, point, "right"), last)])
