"""Streams of token numbers, and their batches for truncated back-propagation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from ..._common.errors import UserError
from ..._common.files import writing
from ..._common.text import Text, counted
from .vocabulary import Vocabulary


def shifted(ids: np.ndarray, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and the targets of a stream, both (n,).

    Every token is predicted once. The input for the first token is the boundary.
    """
    return np.concatenate(([boundary], ids))[:-1], ids


def memory_map(vocab: Vocabulary, text: str | Text, folder: Path | None) -> np.ndarray:
    """Return `vocab.encode_stream(text)` as a memory map, (n,), of the smallest unsigned integers.

    The text is read once. The file is in `folder`, or where temporary files are if that is None. It
    has no name, so nothing is left of it when it is no longer used, however the process ends.
    Raises UserError if the file cannot be written.
    """
    dtype = np.min_scalar_type(len(vocab) - 1)
    folder = Path(tempfile.gettempdir()) if folder is None else folder
    with writing(folder / "the tokens"), tempfile.TemporaryFile(dir=folder) as file:
        for ids in vocab.encode_parts(text):
            file.write(ids.astype(dtype).data)
        file.flush()
        return np.memmap(file, dtype, mode="r")


class Batches:
    """A stream of n tokens, cut into B contiguous sequences that are read side by side.

    `batches[i]` is the i-th chunk of all sequences: inputs and targets, each int64 (T, B). T is
    `bptt`, except in the last chunk, which may be shorter. Column b of chunk i + 1 goes on where
    column b of chunk i ended, so the hidden state carries over (Williams & Peng 1990; Mikolov et
    al. 2010). The last n % B tokens are left out. `shape` is (n // B, B): the tokens of a sequence
    and the number of sequences. Raises UserError if the stream has fewer than B x bptt tokens.
    """

    def __init__(self, ids: np.ndarray, boundary: int, batch_size: int, bptt: int):
        if len(ids) < batch_size * bptt:
            raise UserError(
                f"the training text has {counted(len(ids), 'token')}, fewer than one batch "
                f"(batch-size {batch_size} x bptt {bptt}): lower --batch-size or --bptt, or give "
                "more text"
            )
        length = len(ids) // batch_size
        self.shape, self.bptt = (length, batch_size), bptt
        self._sequences = ids[: batch_size * length].reshape(batch_size, length)
        # The token before each sequence is the last token of the sequence before it.
        self._before = np.concatenate(([boundary], self._sequences[:-1, -1]))[:, None]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return -(-self.shape[0] // self.bptt)

    def tokens(self, steps: int) -> int:
        """Return the number of tokens in `steps` chunks, the text being read again and again."""
        epochs, rest = divmod(steps, len(self))
        length, batch_size = self.shape
        return (epochs * length + min(rest * self.bptt, length)) * batch_size

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start, stop = i * self.bptt, min((i + 1) * self.bptt, self.shape[0])
        before = self._sequences[:, start - 1 : start] if i else self._before
        tokens = np.concatenate((before, self._sequences[:, start:stop]), axis=1, dtype=np.int64)
        chunk = torch.from_numpy(np.ascontiguousarray(tokens.T))
        return chunk[:-1], chunk[1:]
