"""Text cut into train, valid and test, and the corpus every Python carries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..._common.errors import UserError
from ..._common.runtime import world_size
from ..._common.text import Text, is_pipe, open_split, open_text, read_text, utf8

TRAIN_FRACTION = 0.9


@dataclass(frozen=True)
class Corpus:
    """Train, valid and (or None) test text. `source` says where they came from, for a resume.

    `vocab` is the text whose words make the vocabulary (None: train). A `Text` is one that need
    not fit in memory; as tokens valid and test have to, and train is mapped from the disk.
    """

    train: str | Text
    valid: str | Text
    test: str | None = None
    source: dict = field(default_factory=dict)
    vocab: str | Text | None = None

    def fingerprint(self) -> str:
        """SHA-256 of the three texts: a resumed run must go on with what it began with."""
        fingerprint = Fingerprint()
        for text in (self.train, self.valid, self.test or ""):
            text = fingerprint.reading(text)
            if isinstance(text, Text):
                for _ in text.pieces():
                    pass
        return fingerprint.hexdigest()


class Fingerprint:
    """SHA-256 of texts, each after its size in bytes, in passing: while others read them."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def reading(self, text: str | Text) -> str | Text:
        """Add a text, and return it to be read.

        A str is hashed at once. A `Text` is hashed while it is read, which must happen once, to its
        end, and before the next text is added.
        """
        if isinstance(text, Text):
            self._digest.update(text.utf8_size().to_bytes(8, "little"))
            return text.watched(lambda piece: self._digest.update(utf8(piece)))
        encoded = utf8(text)
        self._digest.update(len(encoded).to_bytes(8, "little"))
        self._digest.update(encoded)
        return text

    def hexdigest(self) -> str:
        """Return the fingerprint of the texts so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def split(text: str | Text, source: dict | None = None) -> Corpus:
    """The first 90 % of the characters as train, the rest as valid; both contiguous."""
    cut = int(TRAIN_FRACTION * len(text))
    return Corpus(text[:cut], text[cut:], None, source or {})


def builtin() -> Corpus:
    """Python's language reference as the standard library carries it for `help()`, split 90/10.

    465,048 characters in Python 3.11; other versions differ a little.
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
    """A corpus from one text (`data`, split 90/10), from one a split, or the built-in one.

    Texts are named as for `read_text`; long ones stay where they are, see `open_text`.
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
        source = {}  # that cannot be read again
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
