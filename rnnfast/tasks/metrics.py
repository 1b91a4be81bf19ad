"""Chunks of tags and their F1, as conlleval and seqeval compute them.

A tag such as "B-NP" says by its letter where in a chunk a token is, and then which type the chunk
has. The type may also come first, as in "NP-B", or be missing. "O" is outside of all chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

# The letters of each scheme besides "O", and those with which a whole chunk begins and ends. L is
# another name for E, and U for S.
SCHEMES = {
    "IOB2": ("BI", "B", "BI"),
    "IOE2": ("IE", "IE", "E"),
    "IOBES": ("BIES", "BS", "ES"),
    "BILOU": ("BILU", "BS", "ES"),
}
PREFIX = re.compile(r"(?P<letter>[BIESLU])(-.+)?")
SUFFIX = re.compile(r"(.+-)?(?P<letter>[BIESLU])")
# What people mean as tags although no scheme here has it, for example BMES and "B_NP".
RESEMBLING = re.compile(r"O|[BIESLUMW]([-_].+)?|.+[-_][BIESLUMW]", re.IGNORECASE)


@dataclass(frozen=True)
class Scheme:
    """How tags mark chunks.

    Args:
        name: A key of `SCHEMES`.
        suffix: Whether the letter comes after the type, as in "NP-B".
    """

    name: str
    suffix: bool = False

    @classmethod
    def of(cls, labels: Iterable) -> Scheme | None:
        """Return the scheme of which these labels are tags, or None if there is none.

        Letters alone may also be names of classes. They are tags if "I" is among them, or "O"
        together with "B" or "E".

        Example:
            >>> Scheme.of(["O", "B-NP", "I-NP"])
            Scheme(name='IOB2', suffix=False)
            >>> Scheme.of(["NP-B", "NP-L", "NP-U"])
            Scheme(name='BILOU', suffix=True)
            >>> Scheme.of(["NN", "VB"])
        """
        labels = set(labels)
        inside = labels - {"O"}
        if not inside or not all(isinstance(label, str) for label in inside):
            return None
        if all(len(label) == 1 for label in inside) and not (
            "I" in labels or {"O", "B"} <= labels or {"O", "E"} <= labels
        ):
            return None
        for pattern in (PREFIX, SUFFIX):
            found = [tag for label in inside if (tag := pattern.fullmatch(label))]
            if len(found) == len(inside):
                used = {tag["letter"] for tag in found}
                for name, (letters, _, _) in SCHEMES.items():
                    if used <= set(letters):
                        return cls(name, pattern is SUFFIX)
        return None

    def chunks(self, tags: Sequence[str], strict: bool = False) -> set[tuple[int, int, str]]:
        """Return the chunks of a sequence of tags as triples (first index, end index, type).

        The end index is one past the last tag. A chunk goes on from B or I to an I or E of its
        type, and any other tag except "O" begins a chunk. These are the chunks of seqeval's default
        mode, which does not know L and U: they are read as E and S.

        Args:
            tags: The tags of one sequence.
            strict: Whether to return only the chunks that begin and end as the scheme says. These
                are the chunks of seqeval's strict mode.

        Example:
            >>> tags = ["B-NP", "I-NP", "O", "I-VP"]
            >>> sorted(Scheme("IOB2").chunks(tags))
            [(0, 2, 'NP'), (3, 4, 'VP')]
            >>> sorted(Scheme("IOB2").chunks(tags, strict=True))
            [(0, 2, 'NP')]
        """
        parsed = [("O", ""), *map(self._parse, tags), ("O", "")]
        starts = [
            i
            for i, ((before, kind), (letter, here)) in enumerate(pairwise(parsed))
            if before not in ("B", "I") or letter not in ("I", "E") or kind != here
        ]
        _, begin, end = SCHEMES[self.name]
        found = set()
        for start, stop in pairwise(starts):
            (first, kind), (last, _) = parsed[start + 1], parsed[stop]
            if first != "O" and not (strict and (first not in begin or last not in end)):
                found.add((start, stop, kind))
        return found

    def _parse(self, tag: str) -> tuple[str, str]:
        """Return the letter of a tag, with E for L and S for U, and the type of its chunk."""
        letter, kind = (tag[-1:], tag[:-2]) if self.suffix else (tag[:1], tag[2:])
        return {"L": "E", "U": "S"}.get(letter, letter), kind

    def f1(
        self, y: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], strict: bool = False
    ) -> float:
        """Return the F1 of the predicted chunks of all sequences together.

        F1 is 2 * correct / (true + predicted), where each term is a number of chunks. A chunk is
        correct if its place and its type are. Without any chunks the result is 0.

        Args:
            y: The true tags, one list for each sequence.
            predicted: The predicted tags, as many for each sequence.
            strict: Whether to count only the chunks that begin and end as the scheme says.

        Example:
            >>> Scheme("IOB2").f1([["B-NP", "I-NP", "O"]], [["B-NP", "I-NP", "B-NP"]])
            0.6666666666666666
        """
        right = total = 0
        for tags, guessed in zip(y, predicted, strict=True):
            true, guess = self.chunks(tags, strict), self.chunks(guessed, strict)
            right += len(true & guess)
            total += len(true) + len(guess)
        return 2 * right / total if total else 0.0


def why_no_scheme(labels: Iterable) -> str | None:
    """Return why labels that look like tags are of no scheme, or None if they do not look so.

    Example:
        >>> why_no_scheme(["O", "PER"])
        "'PER' is not a tag such as 'B-NP' or 'NP-B'"
        >>> why_no_scheme(["NN", "VB"])
    """
    labels = {label for label in labels if isinstance(label, str)}
    alike = {label for label in labels if RESEMBLING.fullmatch(label)}
    if not alike or Scheme.of(labels) is not None:
        return None
    for label in sorted(labels - {"O"}):
        if not PREFIX.fullmatch(label) and not SUFFIX.fullmatch(label):
            return f"{label!r} is not a tag such as 'B-NP' or 'NP-B'"
    some = ", ".join(sorted(labels)[:6])
    return f"no scheme ({', '.join(SCHEMES)}) has all of its tags, among them {some}"
