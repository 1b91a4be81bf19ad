"""The token stream cut into lanes and chunks for truncated back-propagation through time."""

from __future__ import annotations

import numpy as np
import torch

from .errors import UserError


def shifted(ids: np.ndarray, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a stream, both (n,): every token is predicted once, the first from
    the boundary token."""
    return np.concatenate(([boundary], ids))[:-1], ids


class Lanes:
    """A stream of n tokens as B contiguous lanes of n // B, read side by side in chunks of bptt.

    `lanes[i]` is the i-th chunk: inputs and targets, int64 (T, B), T = bptt but for a shorter
    last chunk. Column b of chunk i+1 goes on where column b of chunk i ended, so the hidden state
    carries over (Williams & Peng 1990; Mikolov et al. 2010). The n % B last tokens are left out.
    Raises UserError if the stream is shorter than one batch of B x bptt.
    """

    def __init__(self, ids: np.ndarray, boundary: int, batch_size: int, bptt: int):
        if len(ids) < batch_size * bptt:
            raise UserError(
                f"the training text has {len(ids)} tokens, fewer than one batch (batch-size "
                f"{batch_size} x bptt {bptt}): lower --batch-size or --bptt, or give more text"
            )
        length = len(ids) // batch_size

        def lanes(stream):
            cut = np.ascontiguousarray(stream[: batch_size * length].reshape(batch_size, -1).T)
            return torch.from_numpy(cut)

        self.inputs, self.targets = map(lanes, shifted(ids, boundary))
        self.bptt = bptt

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.bptt)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        chunk = slice(i * self.bptt, (i + 1) * self.bptt)
        return self.inputs[chunk], self.targets[chunk]
