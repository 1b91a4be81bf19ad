"""Text from the models that have no native sampler."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._common.runtime import one_thread

if TYPE_CHECKING:
    from .model import RNNLM, WindowLM
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
        """Up to n tokens, fewer if the last is `stop`; each is read as well.

        Raises OverflowError where the model has no probabilities.
        """
        drawn: list[int] = []
        while len(drawn) < n and (not drawn or drawn[-1] != self.stop):
            drawn.append(self._draw())
            self.feed(drawn[-1:])
        return drawn

    def _next_logprobs(self) -> np.ndarray:
        return self.model.next_logprobs(np.array(self.tokens))

    def _draw(self) -> int:
        logprobs = self._next_logprobs()
        if np.isnan(logprobs).any():
            raise OverflowError(
                "the logits of the next token are not finite: the hidden state has overflowed, or "
                "the weights are not finite"
            )
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


class RecurrentSampler(Sampler):
    """The same from an RNN of any cell, by a loop over torch's operators."""

    def __init__(self, model: RNNLM, **options):
        # A copy, because generated text is that of the weights at the time of the call.
        model = copy.deepcopy(model, {id(model.vocab): model.vocab})
        super().__init__(model.to("cpu", torch.float32).eval(), **options)
        self.state: torch.Tensor | None = None

    @torch.inference_mode()
    def feed(self, tokens: list[int]) -> None:
        with one_thread():
            # One by one: products of many rows at once would round otherwise.
            for token in tokens:
                self.output, self.state = self.model.features(torch.tensor([[token]]), self.state)

    @torch.inference_mode()
    def _next_logprobs(self) -> np.ndarray:
        with one_thread():
            return self.model.decoder(self.output)[0, 0].double().log_softmax(0).numpy()
