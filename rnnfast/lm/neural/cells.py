"""Layers of recurrent models: FastLSTM with one tensor as its state, and locked dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ... import functional
from ...nn import FastGRU, FastLSTM, FastRNN


class LockedDropout(nn.Dropout):
    """Dropout with one mask for all time steps (Gal & Ghahramani 2016). Time is dimension 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, (T, ...), with dropped elements in training."""
        if not (self.training and self.p):
            return x
        return x * F.dropout(x.new_ones(x.shape[1:]), self.p)


class LSTM(FastLSTM):
    """A `FastLSTM` for unpacked input whose state is one tensor: h_n and then c_n, (2L, B, H)."""

    def forward(  # type: ignore[override]  # the state is one tensor
        self, input: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, (T, B, H), for an input (T, B, I), and the last state."""
        output, last = super().forward(input, _pair(state))
        return output, torch.cat(last)


GATED: dict[str, type[LSTM] | type[FastGRU]] = {"lstm": LSTM, "gru": FastGRU}


def run_on_tokens(
    rnn: FastRNN | FastGRU | LSTM,
    ids: torch.Tensor,
    state: torch.Tensor | None,
    weights: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the layers of `rnn`, with these weights, on one-hot vectors given as tokens, (T, B)."""
    options: dict[str, Any] = {
        "num_layers": rnn.num_layers,
        "dropout": rnn.dropout,
        "training": rnn.training,
    }
    if isinstance(rnn, LSTM):
        output, last = functional.lstm(ids, _pair(state), weights, **options)
        return output, torch.cat(last)
    if isinstance(rnn, FastGRU):
        return functional.gru(ids, state, weights, **options)
    return functional.rnn(ids, state, weights, nonlinearity=rnn.nonlinearity, **options)


def _pair(state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return h and c of the state of an LSTM."""
    if state is None:
        return None
    h, c = state.chunk(2)
    return h, c
