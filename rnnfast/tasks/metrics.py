"""Chunks of IOB tags and their F1, as conlleval (Tjong Kim Sang & Buchholz 2000) counts them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

IOB = re.compile(r"O|[BI]-.+")


def is_iob(labels: Iterable) -> bool:
    """Whether all labels are "O", "B-type" or "I-type", and some chunk begins."""
    labels = list(labels)
    tags = all(isinstance(label, str) and IOB.fullmatch(label) for label in labels)
    return tags and any(label != "O" for label in labels)


def chunks(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The chunks of a sequence: (first, one past the last, type).

    A chunk begins at "B-type", and at an "I-type" that does not go on one of its type.
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
    """2 x right / (true + predicted) over the chunks of all sequences; 0 where there are none."""
    right = total = 0
    for true, guess in zip(y, predicted, strict=True):
        true, guess = chunks(true), chunks(guess)
        right += len(true & guess)
        total += len(true) + len(guess)
    return 2 * right / total if total else 0.0
