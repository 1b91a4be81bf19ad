"""Files of labelled texts: tab-separated lines, one file for each class, and CoNLL columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._common.errors import UserError
from .._common.text import read_text


def read_texts(path: str | Path) -> list[str]:
    """Return the lines of a file that are not blank.

    Raises:
        UserError: The file cannot be read.
    """
    return [line for line in read_text(path).split("\n") if line.strip()]


def read_labelled(paths: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """Return texts and their labels.

    Args:
        paths: One file whose lines are label<TAB>text, or several files, one for each class, whose
            lines are texts. The class is then the name of the file without its ending. Blank lines
            are left out.

    Returns:
        The texts and their labels, two lists of one length.

    Raises:
        UserError: A file cannot be read, a line of a single file has no tab or no label, or two
            classes have the same name.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     print("good", "a fine film", sep="\\t", file=file)
        ...     print("bad", "a dull film", sep="\\t", file=file, flush=True)
        ...     read_labelled([file.name])
        (['a fine film', 'a dull film'], ['good', 'bad'])
    """
    X, y = [], []
    if len(paths) == 1:
        for number, line in enumerate(read_text(paths[0]).split("\n"), 1):
            if not line.strip():
                continue
            label, tab, text = line.partition("\t")
            if not tab or not label.strip():
                raise UserError(
                    f"{paths[0]}, line {number}: want label<TAB>text, or one file for each class"
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
    """Return the sentences of a file in CoNLL's format.

    The format has a token on each line, whitespace between the columns of a token, and a blank line
    after each sentence.

    Returns:
        A list of sentences, each a list of tokens, each a tuple with one string for each column.

    Raises:
        UserError: The file cannot be read, or its lines have different numbers of columns.
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
    """Return the sentences of a file in CoNLL's format, and the tags in their last column.

    Returns:
        Sentences as `read_columns` returns them, without the last column, and for each sentence the
        list of its tags.

    Raises:
        UserError: The file cannot be read, its lines have different numbers of columns, or they
            have only one column.
    """
    sentences = read_columns(path)
    if len(sentences[0][0]) < 2:
        raise UserError(
            f"{path}: want a word, other columns if there are any, and the tag in the last column"
        )
    X = [[token[:-1] for token in sentence] for sentence in sentences]
    return X, [[token[-1] for token in sentence] for sentence in sentences]
