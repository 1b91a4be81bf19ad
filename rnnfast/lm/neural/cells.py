"""Layers of recurrent models: torch's LSTM and GRU like FastRNN, and locked dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ... import functional


class LockedDropout(nn.Dropout):
    """Dropout with one mask for all time steps (Gal & Ghahramani 2016). Time is dimension 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, (T, ...), with dropped elements in training."""
        if not (self.training and self.p):
            return x
        return x * F.dropout(x.new_ones(x.shape[1:]), self.p)


class _Gated(nn.RNNBase):
    """The base class that stands before nn.LSTM or nn.GRU in the bases of a class.

    It adds variational dropout and DropConnect on the recurrent weights; see `FastRNN`. The state
    is one tensor: h_n, (L, B, H), for a GRU; h_n and then c_n, (2L, B, H), for an LSTM.
    """

    weight_ih_l0: torch.Tensor

    def __init__(
        self,
        *args: Any,
        variational_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.variational_dropout, self.weight_dropout = variational_dropout, weight_dropout

    def forward(
        self, input: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, (T, B, H), for an input (T, B, I), and the last state."""
        if self.training and (self.variational_dropout or self.weight_dropout):
            return self._layer_by_layer(input, state)
        is_lstm = isinstance(self, nn.LSTM)
        hx = state.chunk(2) if is_lstm and state is not None else state
        output, last = super().forward(input, hx)
        return output, torch.cat(last) if is_lstm else last

    def _layer_by_layer(
        self, x: torch.Tensor, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_lstm = isinstance(self, nn.LSTM)
        if state is None:
            shape = ((1 + is_lstm) * self.num_layers, x.shape[1], self.hidden_size)
            state = x.new_zeros(shape)
        options = (True, 1, 0.0, True, False, False)  # those of this module, for a single layer
        states = []
        for layer, (w_ih, w_hh, *biases) in enumerate(self.all_weights):
            if layer:
                x = functional.dropout(x, self.dropout)
                x = x * F.dropout(x.new_ones(x.shape[1:]), self.variational_dropout)
            weights = [w_ih, functional.dropout(w_hh, self.weight_dropout), *biases]
            h, *c = (part.contiguous() for part in state[layer :: self.num_layers].split(1))
            if is_lstm:
                x, *new = torch.lstm(x, (h, *c), weights, *options)
            else:
                x, *new = torch.gru(x, h, weights, *options)
            states.append(torch.cat(new))  # (1, B, H) for a GRU, (2, B, H) for an LSTM
        return x, torch.stack(states, 1).flatten(0, 1)


class LSTM(_Gated, nn.LSTM):  # type: ignore[misc]  # the state of forward is one tensor
    """nn.LSTM with variational dropout and DropConnect."""


class GRU(_Gated, nn.GRU):  # type: ignore[misc]  # the state of forward is one tensor
    """nn.GRU with variational dropout and DropConnect."""


CELLS: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}
