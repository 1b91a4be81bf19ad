"""Labelled text in files: TSV, one file a class, CoNLL columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._common.errors import UserError
from .._common.text import read_text


def read_texts(path: str | Path) -> list[str]:
    """The lines of a file that are not empty. Raises UserError."""
    return [line for line in read_text(path).split("\n") if line.strip()]


def read_labelled(paths: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """Texts and labels: of one file the lines label<TAB>text, of several one file a class.

    A file of a class has a text a line, and the class is the file's name without its ending. Empty
    lines are left out. Raises UserError for a file that cannot be read and for a line with no tab.
    """
    X, y = [], []
    if len(paths) == 1:
        for number, line in enumerate(read_text(paths[0]).split("\n"), 1):
            if not line.strip():
                continue
            label, tab, text = line.partition("\t")
            if not tab or not label.strip():
                raise UserError(
                    f"{paths[0]}, line {number}: want label<TAB>text (or give a file a class)"
                )
            X.append(text)
            y.append(label.strip())
        return X, y
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"files of classes must have names that differ, not {', '.join(names)}")
    for path, name in zip(paths, names, strict=True):
        texts = read_texts(path)
        X += texts
        y += [name] * len(texts)
    return X, y


def read_columns(path: str | Path) -> list[list[tuple[str, ...]]]:
    """Sentences of a file in CoNLL's format: a token a line, its columns set apart by blanks, and
    an empty line after a sentence. Raises UserError where lines have different numbers of columns.
    """
    sentences: list[list[tuple[str, ...]]] = [[]]
    columns = None
    for number, line in enumerate(read_text(path).split("\n"), 1):
        token = tuple(line.split())
        if not token:
            if sentences[-1]:
                sentences.append([])
            continue
        columns = columns or len(token)
        if len(token) != columns:
            raise UserError(f"{path}, line {number}: {len(token)} columns, not {columns} as above")
        sentences[-1].append(token)
    return sentences if sentences[-1] else sentences[:-1]


def read_tagged(path: str | Path) -> tuple[list[list[tuple[str, ...]]], list[list[str]]]:
    """Sentences without the last of their columns, and that column. Raises UserError."""
    sentences = read_columns(path)
    if len(sentences[0][0]) < 2:
        raise UserError(f"{path}: want a word, other columns if any, and last the tag")
    X = [[token[:-1] for token in sentence] for sentence in sentences]
    return X, [[token[-1] for token in sentence] for sentence in sentences]
