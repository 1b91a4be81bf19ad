"""Word vectors: in memory and in files, with their neighbours and analogies."""

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
        matrix: their vectors, (V, D), finite. Other dtypes are converted to float32.

    Attributes:
        tokens: the words, a list of length V.
        matrix: the vectors, float32 (V, D).
        index: the row of each word in `matrix`, a dict.

    Raises:
        UserError: the words are not different strings, or `matrix` has a different shape or is not
            finite.

    Example:
        >>> from rnnfast.embeddings import Vectors
        >>> vectors = Vectors(["cat", "dog", "red"], [[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
        >>> vectors.neighbours("cat", 1)[0][0]
        'dog'
        >>> len(vectors), "cat" in vectors.index
        (3, True)
    """

    def __init__(self, tokens: list[str], matrix: np.ndarray):
        matrix = np.ascontiguousarray(matrix, np.float32)  # as safetensors needs it
        self.index = {token: i for i, token in enumerate(tokens)}
        if matrix.ndim != 2 or len(self.index) != len(tokens) or len(matrix) != len(tokens):
            raise UserError(
                "vectors need words that differ and one row for each: got a matrix of shape "
                f"{matrix.shape} and {len(tokens)} words, {len(self.index)} of them different"
            )
        if not all(isinstance(token, str) for token in tokens):
            kind = next(type(token) for token in tokens if not isinstance(token, str))
            raise UserError(f"the words of vectors must be strings, not {kind.__name__}")
        finite = np.isfinite(matrix).all(1)
        if not finite.all():
            raise UserError(f"vectors must be finite, not that of {tokens[finite.argmin()]!r}")
        self.tokens, self.matrix = list(tokens), matrix

    @classmethod
    def of(cls, vocab: Vocabulary, matrix: np.ndarray) -> Vectors:
        """Return the vectors of a vocabulary's tokens, without its boundary, which is no word.

        Args:
            vocab: a vocabulary of n tokens.
            matrix: a vector for each token, (n, D).
        """
        kept = [i for i in range(len(vocab)) if i != vocab.boundary]
        return cls([vocab.tokens[i] for i in kept], matrix[kept])

    def __len__(self) -> int:
        """Return V, the number of words."""
        return len(self.tokens)

    def __getitem__(self, token: str) -> np.ndarray:
        """Return the vector of a word, float32 (D,). Raise UserError for a word that has none."""
        if token not in self.index:
            raise UserError(f"there is no vector of {token!r} among {len(self)}")
        return self.matrix[self.index[token]]

    def neighbours(self, token: str, n: int = 10) -> list[tuple[str, float]]:
        """Return the words whose vectors have the largest cosine with that of `token`.

        Args:
            token: a word that has a vector.
            n: number of words to return.

        Returns:
            Up to `n` pairs of a word and its cosine, the largest first, without `token`.

        Raises:
            UserError: `token` has no vector, or `n` is below 1.
        """
        return self._nearest(self[token], [token], n)

    def analogy(self, a: str, b: str, c: str, n: int = 10) -> list[tuple[str, float]]:
        """Answer "`a` is to `b` as `c` is to which word?".

        The answer has the largest cosine with b - a + c, where the three vectors are scaled to
        length 1 (3CosAdd; Mikolov, Yih & Zweig, "Linguistic Regularities in Continuous Space Word
        Representations", 2013).

        Args:
            a: a word that has a vector.
            b: a word that has a vector.
            c: a word that has a vector.
            n: number of words to return.

        Returns:
            Up to `n` pairs of a word and its cosine, the largest first, without the three words.

        Raises:
            UserError: one of the words has no vector, or `n` is below 1.

        Example:
            >>> from rnnfast.embeddings import Vectors
            >>> words = ["man", "king", "woman", "queen"]
            >>> vectors = Vectors(words, [[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]])
            >>> vectors.analogy("man", "king", "woman", 1)[0][0]
            'queen'
        """
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
        """Copy the vectors into the rows of an embedding, in place.

        The vectors are scaled so that their root mean square is that of the embedding's elements,
        which were initialised to fit the layers after them. Rows of words that have no vector do
        not change.

        Args:
            weight: the embedding, (len(tokens), D).
            tokens: the word of each row.

        Returns:
            The scale.

        Raises:
            UserError: the vectors have a different size, there is none for any of the `tokens`, or
                all of them are zero.
        """
        if weight.shape != (len(tokens), self.matrix.shape[1]):
            raise UserError(
                f"vectors of size {self.matrix.shape[1]} cannot initialise embeddings of size "
                f"{weight.shape[1]}"
            )
        rows = [(i, self.index[t]) for i, t in enumerate(tokens) if t in self.index]
        if not rows:
            raise UserError(f"none of the {len(tokens)} tokens is among those that have vectors")
        targets, sources = zip(*rows, strict=True)
        new = torch.from_numpy(self.matrix[list(sources)]).to(weight)
        if not new.any():
            raise UserError("the vectors of these tokens are all 0")
        with torch.no_grad():
            scale = float(weight.square().mean().sqrt() / new.square().mean().sqrt())
            weight[list(targets)] = scale * new
        return scale

    def save(self, path: str | Path) -> None:
        """Write a file completely or not at all.

        Args:
            path: the name of the file, whose end says the format: `.txt` or `.vec` for word2vec's
                text format; `.bin` for word2vec's binary format; `.safetensors` for a file with the
                tensor `vectors`, (V, D), and with `tokens`, a JSON list, in its metadata.

        Raises:
            UserError: the name has a different end, the format cannot hold a word, or the file
                cannot be written.
        """
        suffix = check_suffix(path)
        if suffix == ".safetensors":
            metadata = {"tokens": json.dumps(self.tokens)}
            write_atomic(path, to_bytes({"vectors": torch.from_numpy(self.matrix)}, metadata))
            return
        for token in self.tokens:
            if not token or token.split() != [token]:
                raise UserError(
                    f"word2vec's formats cannot hold the word {token!r}: use .safetensors"
                )
        write_atomic(path, self._word2vec(suffix == ".bin"))

    def _word2vec(self, binary: bool):
        yield f"{len(self)} {self.matrix.shape[1]}\n".encode()
        for token, vector in zip(self.tokens, self.matrix, strict=True):
            if binary:
                yield token.encode() + b" " + vector.astype("<f4").tobytes() + b"\n"
            else:
                # str() of a float32 is the shortest text that reads back as the same number.
                yield f"{token} {' '.join(map(str, vector))}\n".encode()

    @classmethod
    def load(cls, path: str | Path) -> Vectors:
        """Read a file that `save`, word2vec or gensim wrote.

        A `.txt` file may also be one of Stanford's GloVe, which has no first line with the sizes.

        Args:
            path: the file. Its name ends as `save` says.

        Raises:
            UserError: there is no such file, its name has a different end, or its content is not
                of the format.
        """
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
        """Read a file as `load` does, and raise UserError unless its vectors are of size `size`.

        `setting` is the name of the setting that gives the size, for the message.
        """
        vectors = cls.load(path)
        found = vectors.matrix.shape[1]
        if found != size:
            raise UserError(f"embeddings: {path} has vectors of size {found}, not {setting} {size}")
        return vectors


def check_positive(**settings: float) -> None:
    """Raise UserError for a setting that is not positive and finite."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} must be positive, not {value}")


def check_suffix(path: str | Path) -> str:
    """Return the end of a file's name. Raise UserError if it stands for no format of vectors."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{path} must end with {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return suffix


def _length(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths of vectors, but never 0, so that a vector of zeros has the cosine 0."""
    return np.maximum(np.linalg.norm(vectors, axis=-1), np.finfo(np.float32).tiny)


def _header(line: bytes) -> tuple[int, int]:
    """Return V and D from the first line of a word2vec file."""
    words = line.split()
    if len(words) != 2:
        raise ValueError("the first line is not the number of words and their size")
    V, D = map(int, words)
    if V < 0 or D < 1:
        raise ValueError(f"{V} words of size {D}")
    return V, D


@np.errstate(over="ignore")  # a number too large for float32 becomes infinity, which is refused
def _read_text(lines: Iterable[bytes]) -> tuple[list[str], np.ndarray]:
    """Read word2vec's text format, one line at a time.

    The whole file as words and numbers would take ten times the memory of its vectors.
    """
    lines = iter(lines)
    first = next(lines, b"")
    if len(first.split()) > 2:  # the first line is a vector already, as in files of GloVe
        V, D, lines = None, len(first.split()) - 1, itertools.chain([first], lines)
    else:
        V, D = _header(first)
    tokens, vectors = [], []
    for line in lines:
        if not line.strip():
            continue
        # A word of GloVe may contain spaces, such as ". . ." in glove.840B.300d.
        word, *numbers = line.split() if V is not None else line.strip().rsplit(None, D)
        if len(numbers) != D:
            raise ValueError(f"{word!r} has {len(numbers)} numbers, not {D}")
        tokens.append(word.decode())
        vectors.append(np.array(numbers, dtype=np.float32))
    if V not in (None, len(tokens)):
        raise ValueError(f"{len(tokens)} words, not {V} as the first line says")
    return tokens, np.array(vectors, dtype=np.float32).reshape(-1, D)


def _read_binary(data: bytes) -> tuple[list[str], np.ndarray]:
    """Read word2vec's binary format."""
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
        raise ValueError(f"there is more after the {V} words of size {D} of the first line")
    return tokens, matrix
