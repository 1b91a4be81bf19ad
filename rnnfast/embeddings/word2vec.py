"""The two file formats of word2vec, text and binary, as gensim reads them."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

Words = tuple[list[bytes], np.ndarray]  # V words, which may repeat, and vectors float32 (V, D)


@np.errstate(over="ignore")  # a number too large for float32 becomes infinity, which is refused
def read_lines(blocks: Iterable[bytes]) -> Words:
    """Read word2vec's text format, one line at a time.

    The whole file as words and numbers would take ten times the memory of its vectors.

    Raises:
        ValueError: The file is not of this format. The message names the line.
    """
    lines: Iterator[tuple[int, bytes]] = enumerate(_lines(blocks), 1)
    number, first = next(lines, (1, b""))
    if len(first.split()) > 2:  # the first line is a vector already, as in files of GloVe
        V, D, lines = None, _size(first), itertools.chain([(number, first)], lines)
    else:
        V, D = _header(first)
    words, vectors = [], []
    for number, line in lines:
        if not line.strip():
            continue
        word, numbers = _vector(line, D, any_word=V is None)
        if len(numbers) != D:
            raise ValueError(f"line {number}: {_shown(word)} has {len(numbers)} numbers, not {D}")
        words.append(word)
        try:
            vectors.append(np.array(numbers, dtype=np.float32))
        except ValueError as error:
            raise ValueError(f"line {number}, {_shown(word)}: {error}") from error
    if V not in (None, len(words)):
        raise ValueError(f"{len(words)} words, not {V} as the first line says")
    return words, np.array(vectors, dtype=np.float32).reshape(-1, D)


def read_binary(blocks: Iterable[bytes]) -> Words:
    """Read word2vec's binary format.

    Raises:
        ValueError: The file is not of this format.
    """
    data = bytearray()
    for block in blocks:  # without a second copy of them, as b"".join would make
        data += block
    end = data.index(b"\n")
    V, D = _header(bytes(data[:end]).removeprefix(codecs.BOM_UTF8))
    if len(data) < V * D * 4:
        raise ValueError("the file is too short for what its first line says")
    words, matrix, at = [], np.empty((V, D), np.float32), end + 1
    for i in range(V):
        space = data.index(b" ", at)
        # Some writers put a newline after a vector, others do not.
        words.append(bytes(data[at:space].lstrip(b"\n")))
        at = space + 1 + 4 * D
        if at > len(data):
            raise ValueError("the last vector is cut short")
        matrix[i] = np.frombuffer(data, "<f4", D, space + 1)
    if data[at:].strip(b"\n"):
        raise ValueError(f"there is more after the {V} words of size {D} of the first line")
    return words, matrix


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut blocks at the ends of lines, without a byte order mark."""
    kept, mark = b"", codecs.BOM_UTF8
    for block in blocks:
        *lines, kept = (kept + block).split(b"\n")
        for line in lines:
            yield line.removeprefix(mark)
            mark = b""
    if kept:
        yield kept.removeprefix(mark)


def _header(line: bytes) -> tuple[int, int]:
    """Return V and D from the first line of a word2vec file."""
    words = line.split()
    if len(words) != 2:
        raise ValueError("the first line is not the number of words and their size")
    V, D = map(int, words)
    if V < 0 or D < 1:
        raise ValueError(f"{V} words of size {D}")
    return V, D


def _size(line: bytes) -> int:
    """Return how many numbers follow the word in a line."""
    _, *numbers = line.rstrip().split(b" ")
    return len(numbers) if numbers and all(numbers) else len(line.split()) - 1


def _vector(line: bytes, D: int, any_word: bool) -> tuple[bytes, list[bytes]]:
    """Return the word and the numbers of a line.

    For gensim, one space comes before each number. The word may then be empty or a tab, and here it
    may also be of spaces. In the files of other programs, tabs or several blanks may come before a
    number. With `any_word`, the word may contain spaces, as ". . ." in GloVe's glove.840B.300d.
    """
    word, *numbers = line.rstrip().split(b" ")
    if len(numbers) == D and all(numbers):
        return word, numbers
    fields = line.split()
    blanks = len(line) - len(line.lstrip())
    if len(fields) == D and blanks:
        return line[: blanks - 1], fields
    word, *numbers = line.strip().rsplit(None, D) if any_word else fields
    return word, numbers


def _shown(word: bytes) -> str:
    return repr(word.decode(errors="replace"))
