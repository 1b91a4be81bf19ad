"""The output of a command: text for people, progress, and JSON for other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from rich.console import Console

from .._common.files import check_writable, finite, write_atomic

LONGEST_LINE = 1000


class Output:
    """Text for people on standard output, progress on standard error, JSON where `--json` says.

    JSON has no number for infinity and NaN, so null stands for them.

    With `--json -` standard output has the JSON and nothing else, and the text goes to standard
    error.

    Attributes:
        stream: the file that the text goes to.
        text: a rich console that writes to `stream`.
        progress: a rich console that writes to standard error.
        target: the value of `--json`: a path, "-", or None if no JSON is asked for.

    Raises:
        UserError: the file `target` cannot be written.
    """

    def __init__(self, target: str | None):
        self.target = target
        self.stream = sys.stderr if target == "-" else sys.stdout
        # In a file a line may be as long as its table is wide.
        width = None if self.stream.isatty() else LONGEST_LINE
        self.text = Console(file=self.stream, width=width, highlight=False, soft_wrap=True)
        self.progress = Console(stderr=True, highlight=False, soft_wrap=True)
        if target not in (None, "-"):
            check_writable(target, "--json")

    def json(self, data: object) -> None:
        """Write `data` as one JSON object, if `--json` asks for it."""
        if self.target is None:
            return
        text = json.dumps(finite(data), indent=1) + "\n"
        if self.target == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            write_atomic(self.target, text.encode())

    def json_lines(self, records: Iterable) -> None:
        """Go through `records`, and write one JSON object a line if `--json` asks for it.

        Standard output gets each line at once. A file is written when all records are there.
        """
        lines = (json.dumps(finite(record)) + "\n" for record in records)
        if self.target not in (None, "-"):
            write_atomic(self.target, (line.encode() for line in lines))
            return
        for line in lines:
            if self.target == "-":
                sys.stdout.write(line)
                sys.stdout.flush()


def printable(token: str) -> str:
    """Return the token itself, or its Python literal if it has spaces or control characters."""
    return token if token.isprintable() and token.strip() == token else repr(token)
