"""Vectors of words: in memory, in files, near one another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from .._common.errors import UserError
from .._common.files import write_atomic
from .._common.storage import read_tensors
from ..lm.data.vocabulary import Vocabulary

SUFFIXES = (".txt", ".vec", ".bin", ".safetensors")


class Vectors:
    """Words and their vectors.

    Args:
        tokens: V different words.
        matrix: float32 (V, D), finite.

    Raises UserError for anything else.
    """

    def __init__(self, tokens: list[str], matrix: np.ndarray):
        matrix = np.ascontiguousarray(matrix, np.float32)  # as safetensors needs it
        self.index = {token: i for i, token in enumerate(tokens)}
        if matrix.ndim != 2 or len(self.index) != len(tokens) or len(matrix) != len(tokens):
            raise UserError(
                f"vectors need words that differ and a row for each, not {len(tokens)} words, "
                f"{len(self.index)} of them different, and {matrix.shape}"
            )
        if not all(isinstance(token, str) for token in tokens):
            raise UserError("the words of vectors must be strings")
        finite = np.isfinite(matrix).all(1)
        if not finite.all():
            raise UserError(f"vectors must be finite, not that of {tokens[finite.argmin()]!r}")
        self.tokens, self.matrix = list(tokens), matrix

    @classmethod
    def of(cls, vocab: Vocabulary, matrix: np.ndarray) -> Vectors:
        """Those of a vocabulary's words, (V, D), without its boundary, which is no word."""
        kept = [i for i in range(len(vocab)) if i != vocab.boundary]
        return cls([vocab.tokens[i] for i in kept], matrix[kept])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, token: str) -> np.ndarray:
        """The vector, (D,). Raises UserError for a word that has none."""
        if token not in self.index:
            raise UserError(f"there is no vector of {token!r} among {len(self)}")
        return self.matrix[self.index[token]]

    # ---- near one another

    def neighbours(self, token: str, n: int = 10) -> list[tuple[str, float]]:
        """The n words of the largest cosine with a word, the largest first. Raises UserError."""
        return self._nearest(self[token], [token], n)

    def analogy(self, a: str, b: str, c: str, n: int = 10) -> list[tuple[str, float]]:
        """a is to b as c is to what: the n words of the largest cosine with b - a + c, of vectors
        of length 1 (3CosAdd; Mikolov et al. 2013), the three left out. Raises UserError."""
        unit = {token: self[token] / _length(self[token]) for token in (a, b, c)}
        return self._nearest(unit[b] - unit[a] + unit[c], [a, b, c], n)

    def _nearest(self, vector, without, n):
        if n < 1:
            raise UserError(f"n must be at least 1, not {n}")
        cosines = self.matrix @ vector / (_length(self.matrix) * _length(vector))
        cosines[[self.index[token] for token in without]] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(n, len(self) - len(set(without)))]
        return [(self.tokens[i], float(cosines[i])) for i in best]

    def initialise(self, weight: torch.Tensor, tokens: Sequence[str]) -> float:
        """Copy the vectors into an embedding's rows, (len(tokens), D), in place.

        They are scaled to the root mean square of the embedding's elements, whose start fits the
        layers after it. Rows of other words stay. Returns the scale; raises UserError for vectors
        of another size, of none of the `tokens`, or of nothing but zeros.
        """
        if weight.shape != (len(tokens), self.matrix.shape[1]):
            raise UserError(
                f"vectors of size {self.matrix.shape[1]} cannot begin embeddings of size "
                f"{weight.shape[1]}"
            )
        rows = [(i, self.index[t]) for i, t in enumerate(tokens) if t in self.index]
        if not rows:
            raise UserError(f"none of the {len(tokens)} tokens is among those that have vectors")
        to, of = zip(*rows, strict=True)
        new = torch.from_numpy(self.matrix[list(of)]).to(weight)
        if not new.any():
            raise UserError("the vectors of these tokens are all 0")
        with torch.no_grad():
            scale = float(weight.square().mean().sqrt() / new.square().mean().sqrt())
            weight[list(to)] = scale * new
        return scale

    # ---- files

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all, in the format that its name ends with.

        .txt or .vec: word2vec's text; .bin: word2vec's binary; .safetensors: `vectors` (V, D), and
        `tokens`, a list in JSON, in the metadata. Raises UserError.
        """
        suffix = check_suffix(path)
        if suffix == ".safetensors":
            metadata = {"tokens": json.dumps(self.tokens)}
            write_atomic(path, to_bytes({"vectors": torch.from_numpy(self.matrix)}, metadata))
            return
        for token in self.tokens:
            if not token or token.split() != [token]:
                raise UserError(
                    f"word2vec's formats cannot hold the word {token!r}: give a .safetensors"
                )
        write_atomic(path, self._word2vec(suffix == ".bin"))

    def _word2vec(self, binary: bool):
        yield f"{len(self)} {self.matrix.shape[1]}\n".encode()
        for token, vector in zip(self.tokens, self.matrix, strict=True):
            if binary:
                yield token.encode() + b" " + vector.astype("<f4").tobytes() + b"\n"
            else:
                # str of a float32 is the shortest that reads back as the same number.
                yield f"{token} {' '.join(map(str, vector))}\n".encode()

    @classmethod
    def load(cls, path: str | Path) -> Vectors:
        """Read a file such as `save` writes, or word2vec, gensim and, as .txt, Stanford's GloVe,
        whose files lack the first line. Raises UserError."""
        suffix, path = check_suffix(path), Path(path)
        if not path.is_file():
            raise UserError(f"cannot read {path}: there is no such file")
        if suffix == ".safetensors":
            tensors, metadata = read_tensors(path)
            try:
                return cls(json.loads(metadata["tokens"]), tensors["vectors"].float().numpy())
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{path} has no vectors with their tokens ({error})") from error
        try:
            if suffix == ".bin":
                return cls(*_read_binary(path.read_bytes()))
            with open(path, "rb") as file:
                return cls(*_read_text(file))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, IndexError) as error:
            kind = "binary" if suffix == ".bin" else "text"
            raise UserError(f"{path} is not word2vec's {kind} format: {error}") from error

    @classmethod
    def load_of_size(cls, path: str | Path, size: int, setting: str) -> Vectors:
        """As `load`, for embeddings whose size is a `setting`. Raises UserError for others."""
        vectors = cls.load(path)
        found = vectors.matrix.shape[1]
        if found != size:
            raise UserError(f"embeddings: {path} has vectors of size {found}, not {setting} {size}")
        return vectors


def check_positive(**settings: float) -> None:
    """Raise UserError for one that is not, or not finite."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} must be positive, not {value}")


def check_suffix(path: str | Path) -> str:
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{path} must end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return suffix


def _length(vectors: np.ndarray) -> np.ndarray:
    """Never 0: the cosine with a vector of zeros is 0."""
    return np.maximum(np.linalg.norm(vectors, axis=-1), np.finfo(np.float32).tiny)


def _header(line: bytes) -> tuple[int, int]:
    words = line.split()
    if len(words) != 2:
        raise ValueError("the first line is not the number of words and their size")
    V, D = map(int, words)
    if V < 0 or D < 1:
        raise ValueError(f"{V} words of size {D}")
    return V, D


@np.errstate(over="ignore")  # what is too large for float32 is refused with infinity
def _read_text(lines: Iterable[bytes]) -> tuple[list[str], np.ndarray]:
    """A line at a time: as words and numbers a file takes ten times the memory of its vectors."""
    lines = iter(lines)
    first = next(lines, b"")
    if len(first.split()) > 2:  # a vector already
        V, D, lines = None, len(first.split()) - 1, itertools.chain([first], lines)
    else:
        V, D = _header(first)
    tokens, vectors = [], []
    for line in lines:
        if not line.strip():
            continue
        # A word of GloVe's may have spaces in it, such as ". . ." of glove.840B.300d.
        word, *numbers = line.split() if V is not None else line.strip().rsplit(None, D)
        if len(numbers) != D:
            raise ValueError(f"{word!r} has {len(numbers)} numbers, not {D}")
        tokens.append(word.decode())
        vectors.append(np.array(numbers, dtype=np.float32))
    if V not in (None, len(tokens)):
        raise ValueError(f"{len(tokens)} words, not {V} as the first line says")
    return tokens, np.array(vectors, dtype=np.float32).reshape(-1, D)


def _read_binary(data: bytes) -> tuple[list[str], np.ndarray]:
    end = data.index(b"\n")
    V, D = _header(data[:end])
    if len(data) < V * D * 4:
        raise ValueError("the file is too short for what its first line says")
    tokens, matrix, at = [], np.empty((V, D), np.float32), end + 1
    for i in range(V):
        space = data.index(b" ", at)
        # Some writers put a newline after a vector, others do not.
        tokens.append(data[at:space].lstrip(b"\n").decode())
        at = space + 1 + 4 * D
        if at > len(data):
            raise ValueError("the last vector is cut short")
        matrix[i] = np.frombuffer(data, "<f4", D, space + 1)
    if data[at:].strip(b"\n"):
        raise ValueError(f"it goes on after the {V} words of size {D} of its first line")
    return tokens, matrix
