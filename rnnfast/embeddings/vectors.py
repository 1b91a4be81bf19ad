"""Word vectors: in memory and in files, with their neighbours and analogies."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from .._common.errors import ArgumentError, DataWarning, UserError
from .._common.files import write_atomic
from .._common.storage import read_tensors
from .._common.text import COMPRESSORS, compressed, read_bytes
from ..lm.data.vocabulary import Vocabulary
from .word2vec import read_binary, read_lines

SUFFIXES = (".txt", ".vec", ".bin", ".safetensors")


@dataclass(frozen=True)
class Coverage:
    """How many words of a text have a vector. `str` gives it as a sentence.

    Args:
        words: the number of different words.
        known: the words that have a vector.
        lower_case: the words that have none, while their lower-case forms have one.
        capitals: the words that have none, while the same words with capitals have one.
    """

    words: int
    known: int
    lower_case: int
    capitals: int

    @property
    def hint(self) -> str:
        """Which words would have a vector if they were written differently, or ""."""
        ways = ((self.lower_case, "in lower case"), (self.capitals, "with capitals"))
        return "".join(f"; {n:,} of the others would have one {how}" for n, how in ways if n)

    def __str__(self) -> str:
        return f"{self.known:,} of {self.words:,} words have a vector{self.hint}"


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

    def _nearest(self, vector: np.ndarray, without: list[str], n: int) -> list[tuple[str, float]]:
        if n < 1:
            raise UserError(f"n must be at least 1, not {n}")
        cosines = self.matrix @ vector / (_length(self.matrix) * _length(vector))
        cosines[[self.index[token] for token in without]] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(n, len(self) - len(set(without)))]
        return [(self.tokens[i], float(cosines[i])) for i in best]

    def coverage(self, words: Iterable[str]) -> Coverage:
        """Return how many of these words have a vector, and how many would in another case.

        Example:
            >>> from rnnfast.embeddings import Vectors
            >>> vectors = Vectors(["the", "cat", "sat"], [[1.0], [2.0], [3.0]])
            >>> print(vectors.coverage(["The", "cat"]))
            1 of 2 words have a vector; 1 of the others would have one in lower case
        """
        words = set(words)
        missing = words - self.index.keys()
        lower_case = {word for word in missing if word.lower() in self.index}
        capitals = missing.intersection(map(str.lower, self.tokens)) - lower_case
        return Coverage(len(words), len(words) - len(missing), len(lower_case), len(capitals))

    def initialise(self, weight: torch.Tensor, tokens: Sequence[str | None]) -> float:
        """Copy the vectors into the rows of an embedding, in place.

        The vectors are scaled so that their root mean square is that of the embedding's elements,
        which were initialised to fit the layers after them. Rows of words that have no vector do
        not change.

        Args:
            weight: the embedding, (len(tokens), D).
            tokens: the word of each row, or None for a row that is of no word.

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
            hint = self.coverage(token for token in tokens if token is not None).hint
            raise UserError(
                f"none of the {len(tokens)} tokens is among those that have vectors{hint}"
            )
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
                tensor `vectors`, (V, D), and with `tokens`, a JSON list, in its metadata. A file of
                word2vec's formats is compressed if its name also ends with `.gz`, `.bz2`, `.xz` or
                `.zst`.

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
            if " " in token or "\n" in token:
                raise UserError(
                    f"word2vec's formats cannot hold the word {token!r}: use .safetensors"
                )
        write_atomic(path, compressed(path, self._word2vec(suffix == ".bin")))

    def _word2vec(self, binary: bool) -> Iterator[bytes]:
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

        A `.txt` file may also be one of Stanford's GloVe, which has no first line with the sizes. A
        file of word2vec's formats may be compressed with gzip, bzip2, xz or zstd. As in gensim, the
        first vector of a word counts. Its later vectors are dropped, and so are those of words that
        are not UTF-8, which gensim refuses. A warning (DataWarning) counts them.

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
            words, matrix = (read_binary if suffix == ".bin" else read_lines)(read_bytes(path))
            tokens, kept = _distinct(path, words)
        except UserError:  # the file cannot be read
            raise
        except (ValueError, IndexError) as error:
            kind = "binary" if suffix == ".bin" else "text"
            raise UserError(f"{path} is not word2vec's {kind} format: {error}") from error
        try:
            return cls(tokens, matrix if len(kept) == len(words) else matrix[kept])
        except UserError as error:
            raise UserError(f"{path} cannot be used: {error}") from error

    @classmethod
    def load_of_size(cls, path: str | Path, size: int, setting: str) -> Vectors:
        """Read a file as `load` does, and raise UserError unless its vectors are of size `size`.

        `setting` is the name of the setting that gives the size, for the message.
        """
        vectors = cls.load(path)
        found = vectors.matrix.shape[1]
        if found != size:
            message = f"embeddings: {path} has vectors of size {found}, not {setting} {size}"
            raise ArgumentError(message, "embeddings", setting)
        return vectors


def check_positive(**settings: float) -> None:
    """Raise UserError for a setting that is not positive and finite."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise ArgumentError(f"{name} must be positive, not {value}")


def check_suffix(path: str | Path) -> str:
    """Return the end of a file's name that stands for the format of vectors, without that of gzip.

    Raise UserError if it stands for none.
    """
    path = Path(path)
    packed = path.suffix in COMPRESSORS
    suffix = Path(path.stem).suffix if packed else path.suffix
    if suffix not in SUFFIXES or (packed and suffix == ".safetensors"):
        raise UserError(
            f"{path} must end with {', '.join(SUFFIXES[:-1])}, after which there may be "
            f"{', '.join(COMPRESSORS)}, or with {SUFFIXES[-1]}"
        )
    return suffix


def _length(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths of vectors, but never 0, so that a vector of zeros has the cosine 0."""
    return np.maximum(np.linalg.norm(vectors, axis=-1), np.finfo(np.float32).tiny)


def _distinct(path: Path, words: list[bytes]) -> tuple[list[str], list[int]]:
    """Return the different words that are UTF-8, and their rows. Warn if others are dropped."""
    index: dict[str, int] = {}
    repeated, undecodable = [], []
    for row, word in enumerate(words):
        try:
            token = word.decode()
        except UnicodeDecodeError:
            undecodable.append(word)
            continue
        if index.setdefault(token, row) != row:
            repeated.append(token)
    if undecodable and not index:
        raise ValueError("none of its words is UTF-8")
    dropped = [
        f"{len(some)} of words that {why} (the first is {some[0]!r})"
        for some, why in ((repeated, "came before"), (undecodable, "are not UTF-8"))
        if some
    ]
    if dropped:
        count = len(repeated) + len(undecodable)
        message = f"{path}: dropped {count} of {len(words)} vectors: {' and '.join(dropped)}"
        warnings.warn(message, DataWarning, stacklevel=3)
    return list(index), list(index.values())
