"""Characters or words to integers and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from .config import CHAR, WORD
from .errors import UserError

EOS = "<eos>"
UNK = "<unk>"
BOUNDARY = {CHAR: "\n", WORD: EOS}


class Vocabulary:
    """The tokens of a model, numbered 0..V-1.

    One of them is the boundary, which stands before the first token of every text and closes
    every line: "\\n" at char level, `<eos>` at word level. So a newline in a text is the boundary
    at both levels, and words are what whitespace separates. A word outside the vocabulary becomes
    `<unk>`; a character outside it does so if the vocabulary has `<unk>`, and else is an error.
    """

    def __init__(self, level: str, tokens: Iterable[str]):
        self.level = level
        self.tokens = list(tokens)
        self._index = {token: i for i, token in enumerate(self.tokens)}
        if level not in BOUNDARY or len(self._index) != len(self.tokens):
            raise UserError("a vocabulary needs level char or word and tokens that all differ")
        for token in [BOUNDARY[level]] + [UNK] * (level == WORD):
            if token not in self._index:
                raise UserError(f"a {level} vocabulary needs the token {token!r}")
        self.boundary: int = self._index[BOUNDARY[level]]
        self.unk: int | None = self._index.get(UNK)
        if level == CHAR:
            points = {ord(token): i for token, i in self._index.items() if token != UNK}
            self._lookup = np.full(max(points) + 1, -1, dtype=np.int32)
            self._lookup[list(points)] = list(points.values())

    @classmethod
    def build(
        cls,
        level: str,
        texts: Iterable[str],
        min_count: int = 1,
        max_vocab: int | None = None,
        unk: bool = False,
    ) -> Vocabulary:
        """Char level: every character of the texts, in code-point order, and "\\n"; with `unk`
        then `<unk>`.

        Word level: `<eos>`, `<unk>`, then the words seen at least `min_count` times, the most
        frequent first, at most `max_vocab` tokens in all. Raises UserError for less than 1 and 2.
        """
        if min_count < 1:
            raise UserError(f"min_count must be at least 1, not {min_count}")
        if max_vocab is not None and max_vocab < 2:
            raise UserError(f"max_vocab must be at least 2, not {max_vocab}")
        if level == CHAR:
            return cls(CHAR, sorted({"\n"}.union(*map(set, texts))) + [UNK] * unk)
        counts = Counter(word for text in texts for word in text.split())
        del counts[EOS], counts[UNK]
        words = [word for word, count in counts.items() if count >= min_count]
        words.sort(key=lambda word: (-counts[word], word))
        return cls(WORD, [EOS, UNK, *words][:max_vocab])

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, close: bool = False) -> np.ndarray:
        """Token numbers of a text, int64 (n,). `close` ends the last line if it is open.

        Raises UserError for a character that is not in the vocabulary, if that has no `<unk>`.
        """
        if close and not text.endswith("\n"):
            text += "\n"
        if self.level == WORD:
            words = text.replace("\n", f" {EOS} ").split()
            get = self._index.get
            return np.fromiter((get(word, self.unk) for word in words), np.int64, len(words))
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        known = points < len(self._lookup)
        ids = self._lookup[np.where(known, points, 0)].astype(np.int64)
        known &= ids >= 0
        if self.unk is not None:
            ids[~known] = self.unk
        elif not known.all():
            at = int(known.argmin())
            raise UserError(
                f"character {text[at]!a} (position {at}) is not in the model's vocabulary of "
                f"{len(self)} characters: leave it out, or train on text that has it"
            )
        return ids

    def encode_stream(self, text: str) -> np.ndarray:
        """A whole file: its exact characters, or its words with `<eos>` after every line."""
        return self.encode(text, close=self.level == WORD)

    def piece(self, token: int, previous: int) -> str:
        """What `token` adds to a text that ends in `previous`: words are set apart by a space."""
        if token == self.boundary:
            return "\n"
        apart = self.level == WORD and previous != self.boundary
        return " " + self.tokens[token] if apart else self.tokens[token]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers: the inverse of `encode` up to runs of spaces."""
        previous, pieces = self.boundary, []
        for token in ids:
            pieces.append(self.piece(int(token), previous))
            previous = int(token)
        return "".join(pieces)

    def to_json(self) -> dict:
        return {"level": self.level, "tokens": self.tokens}

    @classmethod
    def from_json(cls, data: dict) -> Vocabulary:
        """Raises UserError where `data` is not what `to_json` makes."""
        tokens = data.get("tokens") if isinstance(data, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(t, str) and t for t in tokens):
            raise UserError("a vocabulary needs a list of tokens")
        if data.get("level") == CHAR and any(len(t) != 1 and t != UNK for t in tokens):
            raise UserError("the tokens of a char vocabulary must be single characters")
        return cls(data.get("level"), tokens)
