"""Sampling from recurrent models in Python, with torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from ..._common.runtime import one_thread
from ..data.vocabulary import Vocabulary
from ..sampling import SamplerBase


class RecurrentModel(Protocol):
    """A model that carries a state from token to token; see `NeuralLM`."""

    vocab: Vocabulary

    @property
    def decoder(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function from what `features` returns to logits."""

    def features(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the decoder gets for `ids`, (T, B), and the state after them."""


class RecurrentSampler(SamplerBase):
    """Draw tokens from an RNN of any cell, which must be in eval mode on the CPU."""

    def __init__(self, model: RecurrentModel, **options: Any):
        super().__init__(model.vocab, **options)
        self.model = model
        self.state: torch.Tensor | None = None

    @torch.inference_mode()
    def feed(self, tokens: list[int]) -> None:
        """Read tokens. The first token of all must be a boundary."""
        with one_thread():
            # One token a call: the products of many rows at once would round differently.
            for token in tokens:
                self.output, self.state = self.model.features(torch.tensor([[token]]), self.state)

    @torch.inference_mode()
    def next_logprobs(self) -> np.ndarray:
        """Return log p of every token after those read: float64 (V,)."""
        with one_thread():
            return self.model.decoder(self.output)[0, 0].double().log_softmax(0).numpy()
