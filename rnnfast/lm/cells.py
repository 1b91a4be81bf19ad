"""torch's LSTM and GRU, called as a FastRNN is."""

from __future__ import annotations

import torch
from torch import nn


class LSTM(nn.LSTM):
    """Its state is one tensor, (2L, B, H): h_n, then c_n."""

    def forward(
        self, input: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, state = super().forward(input, None if state is None else state.chunk(2))
        return output, torch.cat(state)


CELLS = {"lstm": LSTM, "gru": nn.GRU}
