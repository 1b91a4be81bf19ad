"""Vocabularies: characters, words, bytes or pieces of words as integers, and back."""

from __future__ import annotations

import codecs
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from ..._common.errors import ArgumentError, MissingPackage, UserError
from ..._common.text import Text, parts, words

CHAR = "char"
WORD = "word"
BYTE = "byte"
BPE = "bpe"
LEVELS = (CHAR, BYTE, WORD, BPE)

EOS = "<eos>"
UNK = "<unk>"
BOUNDARY = {CHAR: "\n", WORD: EOS, BYTE: "\n", BPE: "\n"}


class Vocabulary:
    """The V tokens of a model, numbered from 0 to V - 1. `Vocabulary.build` makes one of texts.

    One token is the boundary. It stands before the first token of every text and closes every line:
    `<eos>` at word level, "\\n" at the other levels. A newline in a text is therefore the boundary
    at every level.

    At word level, words are separated by the blanks of ASCII, as in KenLM. A no-break space is a
    part of a word. A word that is not in the vocabulary becomes `<unk>`. At char level, a character
    that is not in the vocabulary becomes `<unk>` if the vocabulary has this token, and is an error
    if not. At byte level, whose tokens are the bytes of UTF-8, and at BPE level, whose tokens are
    made of bytes, every text can be encoded. A token of bytes is named by its text. If it is not
    whole characters, its name is `<0xE2>` for each byte.

    Attributes:
        level: "char", "word", "byte" or "bpe".
        letters: Whether tokens are characters or bytes, so that they are few and seen often.
        tokens: The names of the tokens in the order of their numbers.
        boundary: The number of the boundary.
        unk: The number of `<unk>`, or None if the vocabulary does not have it.

    Example:
        >>> from rnnfast import lm
        >>> vocab = lm.Vocabulary.build("word", ["the cat sat\\non the mat\\n"], max_vocab=5)
        >>> vocab.tokens
        ['<eos>', '<unk>', 'the', 'cat', 'mat']
        >>> vocab.encode("the cat flew\\n")
        array([2, 3, 1, 0])
        >>> vocab.decode([2, 3, 1, 0])
        'the cat <unk>\\n'
    """

    level: str
    letters: bool

    def __init__(self, tokens: Iterable[str]):
        self.tokens = list(tokens)
        self._index = {token: i for i, token in enumerate(self.tokens)}
        if len(self._index) != len(self.tokens):
            raise UserError("the tokens of a vocabulary must all differ")
        for token in [BOUNDARY[self.level]] + [UNK] * (self.level == WORD):
            if token not in self._index:
                raise UserError(f"a {self.level} vocabulary needs the token {token!r}")
        self.boundary: int = self._index[BOUNDARY[self.level]]
        self.unk: int | None = self._index.get(UNK) if self.level in (CHAR, WORD) else None

    @staticmethod
    def build(
        level: str,
        texts: Iterable[str],
        min_count: int = 1,
        max_vocab: int | None = None,
        unk: bool = False,
    ) -> Vocabulary:
        """Build the vocabulary of texts.

        - At char level it has every character of the texts in the order of code points, "\\n", and
          then `<unk>` if `unk` is given.
        - At word level it has `<eos>`, `<unk>`, and then the words, the most frequent first.
        - At byte level it has the 256 bytes.
        - At BPE level it has the 256 bytes and the merges that byte pair encoding (Sennrich et al.
          2016) learns from the texts.

        Args:
            level: "char", "word", "byte" or "bpe".
            texts: Several texts. A word must not extend over two of them.
            min_count: At word level, words seen less often are left out.
            max_vocab: The largest number of tokens, at word and BPE level. None means any number at
                word level. BPE needs a number of at least 256.
            unk: Add `<unk>` at char level.

        Raises:
            UserError: An argument is out of range, `texts` is a single string, or the level is
                "bpe" and the package tokenizers is not installed.
        """
        check_level(level)
        if isinstance(texts, str):
            raise UserError(f"texts must be several texts, not one, {reprlib.repr(texts)}")
        if min_count < 1:
            raise ArgumentError(f"min_count must be at least 1, not {min_count}")
        if max_vocab is not None and max_vocab < 2:
            raise ArgumentError(f"max_vocab must be at least 2, not {max_vocab}")
        if level == CHAR:
            return CharVocabulary(sorted({"\n"}.union(*map(set, texts))) + [UNK] * unk)
        if level == BYTE:
            return ByteVocabulary(_name(bytes([i])) for i in range(256))
        if level == BPE:
            return BPEVocabulary.learn(texts, max_vocab)
        counts = Counter(word for text in texts for word in words(text))
        del counts[EOS], counts[UNK]
        kept = [word for word, count in counts.items() if count >= min_count]
        kept.sort(key=lambda word: (-counts[word], word))
        return WordVocabulary([EOS, UNK, *kept][:max_vocab])

    def __len__(self) -> int:
        """Return the number of tokens V."""
        return len(self.tokens)

    def encode(self, text: str, close: bool = False) -> np.ndarray:
        """Return the token numbers of a text, int64 (n,).

        `close` ends the last line if the text does not end with a newline. Raises UserError for a
        character that is not in a vocabulary without `<unk>`.
        """
        return self._encode(text if not close or text.endswith("\n") else text + "\n")

    def _encode(self, text: str, at: int = 0) -> np.ndarray:
        """Encode a text. `at` is its position in a longer text, which messages mention."""
        raise NotImplementedError

    def encode_parts(self, text: str | Text) -> Iterator[np.ndarray]:
        """Yield the token numbers of a text part by part, int64.

        At word level `<eos>` closes the last line, whether the text ends with a newline or not.
        """
        at, part = 0, "\n"
        for part in parts(text):
            yield self._encode(part, at)
            at += len(part)
        if self.level == WORD and not part.endswith("\n"):
            yield np.array([self.boundary])

    def encode_stream(self, text: str | Text) -> np.ndarray:
        """Return the token numbers of a text as one stream, int64 (n,); see `encode_parts`."""
        return np.concatenate([np.empty(0, np.int64), *self.encode_parts(text)])

    def pieces(self, ids: Iterable[int], previous: int | None = None) -> Iterator[str]:
        """Yield the text that each token adds to a text that ends with the token `previous`.

        None stands for the boundary. Tokens of bytes add "" until a character is complete, and
        there is one more piece for what is left at the end.
        """
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token numbers.

        This is the inverse of `encode`, except that at word level the amount of white space between
        words is lost. Bytes that are not UTF-8 become U+FFFD.
        """
        return "".join(self.pieces(map(int, ids)))

    def to_json(self) -> dict:
        """Return the vocabulary as a dict that `json` can write."""
        return {"level": self.level, "tokens": self.tokens}

    @staticmethod
    def from_json(data: dict) -> Vocabulary:
        """Return the vocabulary that `to_json` wrote.

        Raises UserError if `data` is something else.
        """
        tokens = data.get("tokens") if isinstance(data, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(t, str) and t for t in tokens):
            raise UserError("a vocabulary needs a list of tokens")
        level: Any = data.get("level")
        check_level(level)
        if level == BPE:
            return BPEVocabulary(tokens, data.get("tokenizer"))
        return VOCABULARIES[level](tokens)


class WordVocabulary(Vocabulary):
    """Tokens are words, which the blanks of ASCII separate."""

    level, letters = WORD, False

    def _encode(self, text: str, at: int = 0) -> np.ndarray:
        tokens = words(text.replace("\n", f" {EOS} "))
        get = self._index.get
        return np.fromiter((get(token, self.unk) for token in tokens), np.int64, len(tokens))

    def pieces(self, ids: Iterable[int], previous: int | None = None) -> Iterator[str]:
        """Yield the text that each token adds; see `Vocabulary.pieces`."""
        previous = self.boundary if previous is None else previous
        for token in ids:
            if token == self.boundary:
                yield "\n"
            else:
                yield self.tokens[token] if previous == self.boundary else " " + self.tokens[token]
            previous = token


class CharVocabulary(Vocabulary):
    """Tokens are characters."""

    level, letters = CHAR, True

    def __init__(self, tokens: Iterable[str]):
        super().__init__(tokens)
        if any(len(token) != 1 and token != UNK for token in self.tokens):
            raise UserError("the tokens of a char vocabulary must be single characters")
        points = {ord(token): i for token, i in self._index.items() if token != UNK}
        self._lookup = np.full(max(points) + 1, -1, dtype=np.int32)
        self._lookup[list(points)] = list(points.values())

    def _encode(self, text: str, at: int = 0) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        known = points < len(self._lookup)
        ids = self._lookup[np.where(known, points, 0)].astype(np.int64)
        known &= ids >= 0
        if self.unk is not None:
            ids[~known] = self.unk
        elif not known.all():
            first = int(known.argmin())
            raise UserError(
                f"character {text[first]!a} (position {at + first}) is not in the model's "
                f"vocabulary of {len(self)} characters: leave it out, or train on text that has it"
            )
        return ids

    def pieces(self, ids: Iterable[int], previous: int | None = None) -> Iterator[str]:
        """Yield the text that each token adds; see `Vocabulary.pieces`."""
        return (self.tokens[token] for token in ids)


class ByteVocabulary(Vocabulary):
    """Tokens are the bytes of UTF-8."""

    level, letters = BYTE, True

    def __init__(self, tokens: Iterable[str]):
        super().__init__(tokens)
        self._bytes = [_bytes(token) for token in self.tokens]
        if {token for token in self._bytes if len(token) == 1} != {bytes([i]) for i in range(256)}:
            raise UserError(f"a {self.level} vocabulary needs the 256 bytes")
        if self.level == BYTE:
            if len(self) != 256:
                raise UserError("the tokens of a byte vocabulary must be the 256 bytes")
            self._lookup = np.empty(256, dtype=np.int64)
            self._lookup[list(b"".join(self._bytes))] = np.arange(256)

    def _encode(self, text: str, at: int = 0) -> np.ndarray:
        return self._lookup[np.frombuffer(_utf8(text), dtype=np.uint8)]

    def pieces(self, ids: Iterable[int], previous: int | None = None) -> Iterator[str]:
        """Yield the text that each token adds; see `Vocabulary.pieces`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in ids:
            yield decoder.decode(self._bytes[token])
        if rest := decoder.decode(b"", final=True):
            yield rest


class BPEVocabulary(ByteVocabulary):
    """Tokens are pieces of words: byte-level BPE as in GPT-2 (Radford et al. 2019).

    The package tokenizers of Hugging Face does the work. No merge crosses a newline or the start of
    a word, a number or a run of other characters. `tokenizer` is a `tokenizers.Tokenizer` as JSON.
    """

    level, letters = BPE, False

    def __init__(self, tokens: Iterable[str], tokenizer: object):
        super().__init__(tokens)
        package = _tokenizers()
        try:
            self._tokenizer = package.Tokenizer.from_str(json.dumps(tokenizer))
            theirs = self._tokenizer.get_vocab(with_added_tokens=True).items()
            numbers = {i: self._index[_name(_of_symbols(symbols))] for symbols, i in theirs}
            self._numbers = np.array([numbers[i] for i in range(len(self))])
        except Exception as error:  # the package raises plain Exception for bad JSON
            raise UserError(f"the tokenizer is not one of these tokens ({error})") from error

    @classmethod
    def learn(cls, texts: Iterable[str], max_vocab: int | None) -> BPEVocabulary:
        """Learn the merges of texts; see `Vocabulary.build`."""
        if max_vocab is None or max_vocab < 256:
            raise ArgumentError(f"max_vocab must be at least 256 at bpe level, not {max_vocab}")
        package = _tokenizers()
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = package.Tokenizer(models.BPE())
        levels = [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(levels)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=max_vocab,
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((_checked(text) for text in texts), trainer)
        symbols = map(tokenizer.id_to_token, range(tokenizer.get_vocab_size()))
        return cls([_name(_of_symbols(s)) for s in symbols], json.loads(tokenizer.to_str()))

    def _encode(self, text: str, at: int = 0) -> np.ndarray:
        # No token crosses the end of a line, and the threads of the package share the lines.
        lines = re.findall("[^\n]*\n|[^\n]+", _checked(text))
        encodings = self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        ids = [i for encoding in encodings for i in encoding.ids]
        return self._numbers[np.array(ids, dtype=np.int64)]

    def to_json(self) -> dict:
        """Return the vocabulary, and its tokenizer, as a dict that `json` can write."""
        return {**super().to_json(), "tokenizer": json.loads(self._tokenizer.to_str())}


VOCABULARIES: dict[str, type[Vocabulary]] = {
    vocabulary.level: vocabulary
    for vocabulary in (CharVocabulary, WordVocabulary, ByteVocabulary, BPEVocabulary)
}


def check_level(level: object) -> None:
    """Raise UserError if there is no such level."""
    if not isinstance(level, str) or level not in VOCABULARIES:
        wanted = ", ".join(VOCABULARIES)
        raise UserError(f"level must be one of {wanted}, not {reprlib.repr(level)}")


def _utf8(text: str) -> bytes:
    """Return a text as UTF-8. Raise UserError if it has a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the text has {text[error.start]!a}, which is no character") from error


def _checked(text: str) -> str:
    """Return the text. Raise UserError if it is not characters only."""
    _utf8(text)
    return text


def _name(token: bytes) -> str:
    """Return the name of a token of bytes. Different tokens have different names."""
    try:
        name = token.decode("utf-8")
        # A token whose text looks like the name of a byte, here or in ARPA files, gets one too.
        if not re.search(r"<(0x|U\+)", name):
            return name
    except UnicodeDecodeError:
        pass
    return "".join(f"<0x{byte:02X}>" for byte in token)


def _bytes(name: str) -> bytes:
    """Return the bytes of a token: the inverse of `_name`."""
    if re.fullmatch(r"(<0x[0-9A-F]{2}>)+", name):
        return bytes(int(byte, 16) for byte in re.findall("<0x(..)>", name))
    return _utf8(name)


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackage("bpe level needs tokenizers: pip install 'rnnfast[bpe]'") from error
    return tokenizers


# GPT-2 writes bytes as characters that are not white space: the printable characters of Latin-1 as
# themselves, the other bytes as the characters from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SYMBOLS = {chr(byte): byte for byte in _PRINTABLE}
_SYMBOLS.update(
    (chr(256 + i), byte) for i, byte in enumerate(b for b in range(256) if b not in _PRINTABLE)
)


def _of_symbols(symbols: str) -> bytes:
    """Return the bytes that GPT-2 writes as `symbols`."""
    return bytes(_SYMBOLS[symbol] for symbol in symbols)
