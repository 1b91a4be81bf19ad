"""Texts to train, validate and test on, and the corpus that every Python carries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..._common.errors import UserError
from ..._common.runtime import world_size
from ..._common.text import BLOCK, Text, is_pipe, open_split, open_text, read_text, utf8

TRAIN_FRACTION = 0.9


@dataclass(frozen=True)
class Corpus:
    """The texts of a run.

    A `Text` need not fit in memory. Its tokens are mapped from the disk if it is the training text.
    The tokens of the other texts are kept in memory.

    Attributes:
        train: The text to train on.
        valid: The text to validate on.
        test: The text to test on, or None.
        source: Where the texts came from, so that a resumed run can read them again.
        vocab: The text whose words make the vocabulary; None for `train`.

    Example:
        >>> from rnnfast import lm
        >>> corpus = lm.corpus.split("0123456789")
        >>> corpus.train, corpus.valid, corpus.test
        ('012345678', '9', None)
    """

    train: str | Text
    valid: str | Text
    test: str | None = None
    source: dict = field(default_factory=dict)
    vocab: str | Text | None = None

    def fingerprint(self) -> str:
        """Return the SHA-256 of the three texts, 64 hexadecimal digits.

        A resumed run must have the fingerprint of the run that it resumes.
        """
        fingerprint = Fingerprint()
        for text in (self.train, self.valid, self.test or ""):
            text = fingerprint.reading(text)
            if isinstance(text, Text):
                for _ in text.pieces():
                    pass
        return fingerprint.hexdigest()


class Fingerprint:
    """The SHA-256 of several texts, each after its size in bytes, taken while they are read."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def reading(self, text: str | Text) -> str | Text:
        """Add a text, and return the text to read.

        A str is hashed at once. The returned `Text` is hashed while it is read, so it must be read
        once and to its end before the next text is added.
        """
        if isinstance(text, Text):
            self._digest.update(text.utf8_size().to_bytes(8, "little"))
            return text.watched(lambda piece: self._digest.update(utf8(piece)))
        # One part at a time is encoded, because a copy of the text may need as much memory again.
        parts = [slice(at, at + BLOCK) for at in range(0, len(text), BLOCK)]
        size = sum(len(utf8(text[part])) for part in parts)
        self._digest.update(size.to_bytes(8, "little"))
        for part in parts:
            self._digest.update(utf8(text[part]))
        return text

    def hexdigest(self) -> str:
        """Return the fingerprint of the texts so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def split(text: str | Text, source: dict | None = None) -> Corpus:
    """Split a text: the first 90 % of the characters to train on, the rest to validate on.

    Args:
        text: The text.
        source: Where the text came from; see `Corpus`.

    Raises:
        UserError: The text is empty.

    Example:
        >>> from rnnfast import lm
        >>> corpus = lm.corpus.split("a1b2" * 100)
        >>> len(corpus.train), len(corpus.valid)
        (360, 40)
    """
    if not len(text):
        raise UserError("there is no text to split: give some text")
    cut = int(TRAIN_FRACTION * len(text))
    return Corpus(text[:cut], text[cut:], None, source or {})


def builtin() -> Corpus:
    """Return Python's language reference, which the standard library has for `help()`, as `split`.

    It has 465,048 characters in Python 3.11. Other versions differ a little.
    """
    from pydoc_data.topics import topics

    return split("\n".join(topics.values()), {"builtin": "pydoc_data.topics"})


def read(
    data: str | None = None,
    train: str | None = None,
    valid: str | None = None,
    test: str | None = None,
    vocab: str | None = None,
) -> Corpus:
    """Read a corpus. Without arguments it is the built-in one.

    A text is named as for `lm.read_text`: a file, a directory or "-" for standard input. A long
    text to train on stays where it is; see `lm.open_text`.

    Args:
        data: One text, of which the first 90 % are to train on and the rest to validate on.
        train: A text to train on. Give `valid` with it.
        valid: A text to validate on.
        test: A text to test on.
        vocab: A text whose words make the vocabulary.

    Raises:
        UserError: A text cannot be read, or the combination of texts makes no sense.
    """
    paths = {"data": data, "train": train, "valid": valid, "test": test}
    given = {name: path for name, path in paths.items() if path}
    source = {name: str(Path(path).resolve()) for name, path in given.items()}
    for name, path in (*given.items(), ("vocab", vocab)):
        if path and world_size() > 1 and is_pipe(path):
            raise UserError(
                f"--{name} {path} can be read once, and all {world_size()} processes "
                "read it: give a file"
            )
    if any(map(is_pipe, given.values())):
        source = {}  # a pipe cannot be read again
    if data and (train or valid):
        raise UserError("give --data TEXT or --train TEXT --valid TEXT, not both")
    if data:
        corpus = Corpus(*open_split(data, TRAIN_FRACTION), None, source)
    elif not given:
        corpus = builtin()
    elif not (train and valid):
        raise UserError("--train TEXT and --valid TEXT go together (or give --data TEXT alone)")
    else:
        corpus = Corpus(open_text(train), read_text(valid), None, source)
    if test:
        corpus = replace(corpus, test=read_text(test))
    return replace(corpus, vocab=open_text(vocab)) if vocab else corpus
