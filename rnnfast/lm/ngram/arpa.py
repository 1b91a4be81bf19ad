"""Read and write ARPA files, the text format that n-gram tools exchange.

A line has log10 p, an n-gram and the log10 of its back-off weight.

The boundary of a vocabulary stands for both marks of a sentence: it is written `<s>` at the start
of an n-gram and `</s>` at the end. A model with `stream` also has the boundary inside n-grams. In
such a file it has the name that it has in the vocabulary, and the two marks are listed but never
used. A word of the file cannot contain blanks of ASCII, so at the levels other than word a space is
written `<U+0020>`. Comments at the top of the file hold what the format has no place for, such as
the level and the merges of BPE. A file without these comments has words and sentences.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..._common.errors import MissingPackage, UserError
from ..._common.files import write_atomic
from ..._common.text import BLANKS, byte_lines, compressed
from ..data.vocabulary import BOUNDARY, BPE, CHAR, LEVELS, UNK, WORD, Vocabulary
from .model import LOG_ZERO, NgramLM, Ngrams, find
from .smoothing import SMOOTHINGS

START, END = "<s>", "</s>"
CHUNK_LINES = 1 << 16  # the number of lines that are read or written at a time
LOG10 = math.log(10)
TOKENIZER = "# tokenizer "  # the start of the comment that has the tokenizer as JSON
CONVERT = "convert it, e.g. with iconv"
MISSING_UNK = -100 * LOG10  # log p of `<unk>` if a file has none, as in KenLM


def write(model: NgramLM, path: str | Path) -> None:
    """Write a model as an ARPA file. The file appears under its name when it is complete.

    A name that ends with .gz, .bz2, .xz or .zst makes a compressed file.

    Other programs read the same model, except for stupid backoff: the format has no place for the
    weight of contexts that were never seen. `lm.load` and `read` read the file.

    Raises:
        UserError: The vocabulary has the word `<s>` or `</s>`, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from rnnfast import lm
        >>> vocab = lm.Vocabulary.build("word", ["the cat sat\\n"])
        >>> model = lm.NgramLM.fit(vocab, vocab.encode_stream("the cat sat\\n"), order=2)
        >>> with tempfile.NamedTemporaryFile(suffix=".arpa") as file:
        ...     lm.arpa.write(model, file.name)
        ...     lm.load(file.name).order
        2
    """
    for mark in (START, END):
        if mark in model.vocab.tokens:
            raise UserError(f"the text has the word {mark}, which ARPA files keep for themselves")
    texts = (text.encode("utf-8", "surrogatepass") for text in _texts(model))
    write_atomic(path, compressed(path, texts))


def _texts(model: NgramLM) -> Iterator[str]:
    """Yield the file piece by piece."""
    vocab, stream = model.vocab, model.stream
    yield f"# rnnfast level={vocab.level} stream={stream} smoothing={model.smoothing}\n"
    if vocab.level == BPE:
        yield f"{TOKENIZER}{json.dumps(vocab.to_json()['tokenizer'])}\n"
    yield "\\data\\\n"
    marks = [START, END] if stream else [START]
    for n, ngrams in enumerate(model.ngrams, 1):
        yield f"ngram {n}={len(ngrams.keys) + (len(marks) if n == 1 else 0)}\n"
    tokens = vocab.tokens if vocab.level == WORD else list(map(_written, vocab.tokens))
    first = np.array(tokens, dtype=object)
    last = first.copy()
    if not stream:
        first[vocab.boundary], last[vocab.boundary] = START, END
    for n, ngrams in enumerate(model.ngrams, 1):
        yield f"\n\\{n}-grams:\n"
        backoffs = ngrams.backoffs
        if n == 1:
            weights = np.zeros(len(marks))
            if not stream:
                # As a context the boundary is `<s>`, as a word `</s>`.
                backoffs = backoffs.copy()
                weights[0], backoffs[vocab.boundary] = backoffs[vocab.boundary], 0
            yield _lines(np.full(len(marks), LOG_ZERO), [marks], weights, model.order > 1)
        for start in range(0, len(ngrams.keys), CHUNK_LINES):
            part = slice(start, start + CHUNK_LINES)
            *context, word = _tokens(model.ngrams[:n], part, len(vocab))
            columns = [*(first[w] for w in context), last[word]]
            yield _lines(ngrams.logprobs[part], columns, backoffs[part], model.order > n)
    yield "\n\\end\\\n"


def _tokens(ngrams: list[Ngrams], part: slice, size: int) -> list[np.ndarray]:
    """Return the tokens of the n-grams `part` of the longest length, from the first to the last."""
    result = []
    number: slice | np.ndarray = part
    for entries in ngrams[:0:-1]:
        number, token = np.divmod(entries.keys[number], size)
        result.append(token)
    return [ngrams[0].keys[number], *result[::-1]]


def _lines(logprobs: np.ndarray, columns: list, backoffs: np.ndarray, with_backoff: bool) -> str:
    """Return the lines of some n-grams. `columns` has the words at each place of the n-gram."""
    form = "%.9g\t" + " ".join(["%s"] * len(columns)) + ("\t%.9g\n" if with_backoff else "\n")
    numbers = [(logprobs / LOG10).tolist(), *columns]
    if with_backoff:
        numbers.append((backoffs / LOG10).tolist())
    return "".join(map(form.__mod__, zip(*numbers, strict=True)))


def _written(token: str) -> str:
    """Return a token without blanks, as the file has it. Older files have all white space so."""
    return re.sub(f"[{BLANKS}\0]", lambda match: f"<U+{ord(match[0]):04X}>", token)


def _token(word: str) -> str:
    """Return the token of a word in the file: the inverse of `_written`."""
    return re.sub(r"<U\+([0-9A-F]{4,6})>", lambda match: chr(int(match[1], 16)), word)


# ---- reading


def read(path: str | Path) -> NgramLM:
    """Read the model in an ARPA file, which may be compressed with gzip, bzip2, xz or zstd.

    If a file of words has no `<unk>`, log10 p of `<unk>` is -100, as in KenLM. Evaluations take
    this, and a log10 p of -99 in the file, for probability zero. An n-gram that has `<s>` or
    `</s>` at a place where no sentence has it is dropped.

    Raises:
        UserError: The file cannot be read, is not an ARPA file in UTF-8, or is damaged. The message
            names the line.
    """
    return _Reader(path).model()


class _Reader:
    """Reads one file from top to bottom and knows the line for error messages."""

    def __init__(self, path: str | Path):
        self.path, self.lines = path, byte_lines(path)
        self.number = 0  # the number of the line that was read last

    def error(self, message: object) -> UserError:
        """Return an error that names the file and the line."""
        return UserError(f"{self.path}, line {self.number}: {message}")

    def next(self, end: str = "the file ends here, but not with \\end\\") -> bytes:
        """Return the next line that is not blank, without the white space around it."""
        for line in self.lines:
            self.number += 1
            line = line.strip()
            if self.number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line:
                return line
        raise self.error(end)

    def model(self) -> NgramLM:
        """Read the whole file."""
        level, self.stream, smoothing, self.tokenizer = self.header()
        counts, line = self.counts()
        self.ngrams: list[Ngrams] = []
        for n, count in enumerate(counts, 1):
            self.expect(f"\\{n}-grams:", line)
            self.ngrams.append(self.unigrams(count, level) if n == 1 else self.longer(n, count))
            line = self.next()
        self.expect("\\end\\", line)
        return NgramLM(self.vocab, self.ngrams, smoothing, self.stream)

    def header(self) -> tuple[str, bool, str | None, object]:
        """Return level, `stream`, smoothing and tokenizer from the comments before \\data\\."""
        about, tokenizer = {}, None
        while (line := self.next("not an ARPA file, it has no \\data\\")) != b"\\data\\":
            if b"\0" in line and b"\\data\\" in line.replace(b"\0", b""):
                raise self.error(f"the file is UTF-16 or UTF-32, not UTF-8: {CONVERT}")
            if line.startswith(b"# rnnfast "):
                about = dict(re.findall(r"(\w+)=(\S+)", line.decode("utf-8", "replace")))
            elif line.startswith(TOKENIZER.encode()):
                try:
                    tokenizer = json.loads(line[len(TOKENIZER) :])
                except ValueError as error:
                    raise self.error("the tokenizer is not JSON") from error
        level, stream = about.get("level", WORD), about.get("stream", "False")
        if level not in LEVELS or stream not in ("True", "False"):
            raise self.error(f"level={level} stream={stream} at the top is unknown")
        smoothing = about.get("smoothing")
        smoothing = smoothing if smoothing in SMOOTHINGS else None
        return level, stream == "True", smoothing, tokenizer

    def counts(self) -> tuple[list[int], bytes]:
        """Return the number of n-grams of each length, and the line after these lines."""
        counts: list[int] = []
        while (line := self.next()).startswith(b"ngram"):
            match = re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", line)
            if not match or int(match[1]) != len(counts) + 1:
                raise self.error(f"ngram {len(counts) + 1}=COUNT should be here")
            counts.append(int(match[2]))
        if not counts:
            raise self.error("ngram 1=COUNT should be here")
        return counts, line

    def expect(self, wanted: str, line: bytes) -> None:
        """Raise UserError if `line` is not `wanted`."""
        if line != wanted.encode():
            raise self.error(f"{wanted} should be here, by the counts at the top")

    def chunks(self, n: int, count: int, parse: Callable) -> tuple:
        """Read `count` lines. Return log p, the log weights and what `parse` makes of the words."""

        def parts(lines: list[bytes]) -> tuple:
            first, *words, last = _columns(lines, n)
            return *_numbers(first, last), parse(*words)

        chunks = [parts([])]
        while count > 0:
            lines = list(itertools.islice(self.lines, min(count, CHUNK_LINES)))
            if not lines:
                self.next()  # raises the error for the end of the file
            try:
                chunks.append(parts(lines))
            except ValueError:
                for line in lines:  # find the line with the error
                    self.number += 1
                    try:
                        parts([line])
                    except ValueError as error:
                        raise self.error(error) from None
                raise
            self.number += len(lines)
            count -= len(lines)
        return tuple(map(np.concatenate, zip(*chunks, strict=True)))

    def unigrams(self, count: int, level: str) -> Ngrams:
        """Read the 1-grams. Set the vocabulary, and the index of the words as they are written."""

        def parse(words: list[bytes]) -> np.ndarray:
            for word in words:
                try:
                    word.decode("utf-8", "surrogatepass")
                except UnicodeDecodeError as error:
                    raise ValueError(f"not UTF-8 text: {CONVERT} ({error})") from error
            return np.array(words, dtype=object)

        logprobs, backoffs, words = self.chunks(1, count, parse)
        index = {word: i for i, word in enumerate(words)}
        if len(index) < len(words):
            raise self.error("a word stands twice among the 1-grams")
        names = [word.decode("utf-8", "surrogatepass") for word in words]
        if level != WORD:
            names = list(map(_token, names))
        try:
            start, end = index[START.encode()], index[END.encode()]
        except KeyError as error:
            raise self.error(f"the 1-grams have no {error.args[0].decode()}") from None
        if not self.stream:
            # As a context the boundary is `<s>`, as a word `</s>`.
            names[end] = BOUNDARY[level]
            backoffs[end] = backoffs[start]
        if level in (CHAR, WORD) and UNK not in names and "<UNK>" in names:
            names[names.index("<UNK>")] = UNK
        tokens = [i for i in range(len(names)) if i != start and not (self.stream and i == end)]
        logprobs, backoffs, words = logprobs[tokens], backoffs[tokens], words[tokens]
        names = [names[i] for i in tokens]
        if level == WORD and UNK not in names:
            names.append(UNK)
            logprobs, backoffs = np.append(logprobs, MISSING_UNK), np.append(backoffs, 0)
        try:
            about = {"level": level, "tokens": names, "tokenizer": self.tokenizer}
            self.vocab = Vocabulary.from_json(about)
        except MissingPackage:
            raise
        except UserError as error:
            raise self.error(error) from error
        self.index = {word: i for i, word in enumerate(words)}
        # In longer n-grams `<s>` and `</s>` have numbers of their own. `longer` checks the places
        # at which they may stand.
        self.index[START.encode()] = len(names)
        self.index[END.encode()] = len(names) + 1
        return Ngrams(np.arange(len(names)), logprobs, backoffs)

    def longer(self, n: int, count: int) -> Ngrams:
        """Read the n-grams of n > 1 words."""
        size = len(self.vocab)

        def parse(*words: list[bytes]) -> np.ndarray:
            numbers = (map(self.index.get, column, itertools.repeat(-1)) for column in words)
            ids = np.array([np.fromiter(column, np.int64) for column in numbers])
            if (ids < 0).any():
                raise ValueError("a word is not among the 1-grams")
            possible = (ids[1:] != size).all(0) & (ids[:-1] != size + 1).all(0)
            if self.stream:
                possible = (ids < size).all(0)
            ids[ids >= size] = self.vocab.boundary
            context = ids[0]
            for shorter, word in zip(self.ngrams[1:], ids[1:-1], strict=True):
                context = find(shorter.keys, context, word, size)
            if (context[possible] < 0).any():
                raise ValueError(f"its first {n - 1} words are not among the {n - 1}-grams")
            return np.where(possible, context * size + ids[-1], -1)

        logprobs, backoffs, keys = self.chunks(n, count, parse)
        order = np.argsort(keys, kind="stable")
        order = order[np.searchsorted(keys[order], 0) :]  # drop the impossible n-grams
        keys = keys[order]
        if (keys[1:] == keys[:-1]).any():
            raise self.error(f"an n-gram stands twice among the {n}-grams")
        return Ngrams(keys, logprobs[order], backoffs[order])


def _columns(lines: list[bytes], n: int) -> list[list[bytes]]:
    """Return the n + 2 columns of lines with log10 p, n words and perhaps a log10 weight."""
    # One flat list is faster than a list for each line, because Python's garbage collector visits
    # every list.
    flat = []
    for line in lines:
        fields = line.split()
        if len(fields) == n + 1:
            fields.append(b"0")
        if len(fields) != n + 2:
            raise ValueError(f"log10 p, {n} words and at most a back-off weight should be here")
        flat += fields
    return [flat[i :: n + 2] for i in range(n + 2)]


def _numbers(*columns: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return log p and log weights in nats from columns of log10."""
    logprobs, backoffs = (np.fromiter(map(float, column), float) for column in columns)
    if not ((logprobs <= 0).all() and (backoffs < math.inf).all()):
        raise ValueError("log10 p must be at most 0, and a back-off weight a number")
    for array in (logprobs, backoffs):
        array[array == -math.inf] = LOG_ZERO / LOG10
        array *= LOG10
    return logprobs, backoffs
