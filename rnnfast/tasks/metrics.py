"""Chunks of IOB tags and their F1, as conlleval computes them (Tjong Kim Sang & Buchholz 2000)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

IOB = re.compile(r"O|[BI]-.+")


def is_iob(labels: Iterable) -> bool:
    """Return whether all labels are "O", "B-TYPE" or "I-TYPE", and one of them is not "O"."""
    labels = list(labels)
    tags = all(isinstance(label, str) and IOB.fullmatch(label) for label in labels)
    return tags and any(label != "O" for label in labels)


def chunks(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return the chunks of a sequence of tags as triples (first index, end index, type).

    The end index is one past the last tag. A chunk begins at "B-TYPE", and at an "I-TYPE" that does
    not continue a chunk of its type.

    Example:
        >>> sorted(chunks(["B-NP", "I-NP", "O", "I-VP"]))
        [(0, 2, 'NP'), (3, 4, 'VP')]
    """
    found, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, here = tag.partition("-")
        if kind is not None and (prefix != "I" or here != kind):
            found.add((start, i, kind))
            kind = None
        if kind is None and prefix != "O":
            start, kind = i, here
    return found


def chunk_f1(y: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the F1 of the predicted chunks of all sequences together.

    F1 is 2 * correct / (true + predicted), where each term is a number of chunks. A chunk is
    correct if its place and its type are. Without any chunks the result is 0.

    Args:
        y: The true tags, one list for each sequence.
        predicted: The predicted tags, as many for each sequence.

    Example:
        >>> chunk_f1([["B-NP", "I-NP", "O"]], [["B-NP", "I-NP", "B-NP"]])
        0.6666666666666666
    """
    right = total = 0
    for true, guess in zip(y, predicted, strict=True):
        true, guess = chunks(true), chunks(guess)
        right += len(true & guess)
        total += len(true) + len(guess)
    return 2 * right / total if total else 0.0
