"""Files of labelled texts: tab-separated lines, one file for each class, and CoNLL columns."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from .._common.errors import DataWarning, UserError
from .._common.text import read_text


def read_texts(path: str | Path) -> list[str]:
    """Return the lines of a file that are not blank.

    Raises:
        UserError: The file cannot be read.
    """
    return [line for line in read_text(path).split("\n") if line.strip()]


def read_labelled(paths: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """Return texts and their labels.

    A warning (DataWarning) says so if the first line of a file looks like a header, or if the two
    columns look swapped.

    Args:
        paths: One file whose lines are label<TAB>text, or several files, one for each class, whose
            lines are texts. The class is then the name of the file without its ending. Blank lines
            are left out. In a single file that Python's csv module can have written, a text in
            quotes may have tabs and line breaks.

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
        text = read_text(paths[0])
        for number, label, rest in _csv_rows(text) or _plain_rows(text):
            if rest is None or not label.strip():
                raise UserError(
                    f"{paths[0]}, line {number}: want label<TAB>text, or one file for each class"
                )
            X.append(rest)
            y.append(label.strip())
        _check_columns(paths[0], X, y)
        return X, y
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"files of classes must have names that differ, not {', '.join(names)}")
    parts = [read_texts(path) for path in paths]
    if len({texts[0] for texts in parts}) == 1:
        _warn(f"all files begin with {parts[0][0]!r}: delete this line if it is a header")
    for texts, name in zip(parts, names, strict=True):
        X += texts
        y += [name] * len(texts)
    return X, y


Rows = list[tuple[int, str, str | None]]  # number of the line, label, and text if there is a tab


def _plain_rows(text: str) -> Rows:
    """Return the lines of a text that are not blank, cut at their first tab."""
    rows: Rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            label, tab, rest = line.partition("\t")
            rows.append((number, label, rest if tab else None))
    return rows


# A cell with its separator. In quotes, a quote is doubled.
CSV_CELL = re.compile(r'(?:"(?P<quoted>[^"]*(?:""[^"]*)*)"|(?P<bare>(?!")[^\t\n]*))(\t|\n|\Z)')

NUMBER = re.compile(r"-?\d+(\.\d*)?(e-?\d+)?")


def _csv_rows(text: str) -> Rows | None:
    """Return the rows of a text with quotes as Python's csv module writes them, or None.

    The module puts into quotes only the cells that need it, because they have a tab, a line break
    or a quote, or all cells, or all that are not numbers. A quote at the beginning of a cell in
    any other text is a part of the cell. It could also begin a quotation that ends some lines
    later. Therefore no line of a cell in quotes may begin with one of the labels and a tab.
    """
    if not re.search(r'(?:^|[\t\n])"', text):
        return None
    rows: Rows = []
    cells: list[str] = []
    at, number, start = 0, 1, 1
    inside, needed, all_quoted = [], False, True
    while at < len(text):
        match = CSV_CELL.match(text, at)
        if match is None:
            return None
        at = match.end()
        number += match[0].count("\n")
        cell = match["bare"]
        if cell is None:
            cell = match["quoted"].replace('""', '"')
            needed = needed or any(c in cell for c in '\t\n"')
            inside += re.findall(r"\n([^\t\n]*)\t", cell)
        elif cell.strip():
            all_quoted = all_quoted and NUMBER.fullmatch(cell) is not None
        cells.append(cell)
        if match[3] != "\t":
            if any(cell.strip() for cell in cells):
                rows.append((start, cells[0], "\t".join(cells[1:]) if cells[1:] else None))
            cells, start = [], number
    if not (needed or all_quoted) or not {label for _, label, _ in rows}.isdisjoint(inside):
        return None
    return rows


def _check_columns(path: str | Path, X: list[str], y: list[str]) -> None:
    """Warn of a header and of swapped columns."""
    counts = Counter(y)
    first, *others = counts.values()  # in the order of their first lines
    if first == 1 and others and min(others) > 1 and len(X) > 4 and len(X[0].split()) <= 3:
        _warn(
            f"{path}: its first line, {y[0]!r} and {X[0]!r}, looks like a header: delete it if it "
            "is one"
        )
    texts = len(set(X))
    if 2 * len(counts) > len(y) and len(y) > 3 and (texts < len(counts) or len(y) > 9):
        _warn(
            f"{path} has {len(counts)} different labels and {texts} different texts in {len(y)} "
            "lines: swap the columns if they are not label<TAB>text"
        )


def _warn(message: str) -> None:
    """Warn the caller of `read_labelled`."""
    warnings.warn(message, DataWarning, stacklevel=4)


def read_columns(path: str | Path, columns: int | None = None) -> list[list[tuple[str, ...]]]:
    """Return the sentences of a file in CoNLL's format.

    The format has a token on each line and a blank line after each sentence. Tabs separate the
    columns of a token. A cell between tabs may be empty or have blanks in it. In a file without
    tabs, blanks separate the columns. A no-break space is always a part of a word. A line before a
    sentence that begins with "#" is a comment unless it has the columns of a token.

    Args:
        path: The name of the file.
        columns: The number of columns that the model wants, or None if any number will do.

    Returns:
        A list of sentences, each a list of tokens, each a tuple with one string for each column.

    Raises:
        UserError: The file cannot be read or has no token, its lines have different numbers of
            columns, or the number is not `columns`.
    """
    sentences = _numbered_sentences(path, columns)
    number, first = sentences[0][0]
    if columns not in (None, len(first)):
        hint = ": leave out the last one if it is the tag" if len(first) == columns + 1 else ""
        raise UserError(
            f"{path}, line {number}: {len(first)} columns, not {columns} as in the training data "
            f"without its tags{hint}"
        )
    return [[cells for _, cells in sentence] for sentence in sentences]


def read_tagged(
    path: str | Path, columns: int | None = None
) -> tuple[list[list[tuple[str, ...]]], list[list[str]]]:
    """Return the sentences of a file in CoNLL's format, and the tags in their last column.

    Args:
        path: The name of the file.
        columns: The number of columns before the tags that the model wants, or None if any number
            will do.

    Returns:
        Sentences as `read_columns` returns them, without the last column, and for each sentence the
        list of its tags.

    Raises:
        UserError: The file cannot be read or has no token, its lines have different numbers of
            columns or only one column, the number is not `columns` + 1, or a tag is empty.
    """
    sentences = _numbered_sentences(path, columns and columns + 1)
    number, first = sentences[0][0]
    if len(first) < 2:
        raise UserError(
            f"{path}: want a word, other columns if there are any, and the tag in the last column"
        )
    if columns not in (None, len(first) - 1):
        raise UserError(
            f"{path}, line {number}: {len(first) - 1} columns and the tag, not {columns} and the "
            "tag as in the training data"
        )
    for sentence in sentences:
        for number, cells in sentence:
            if not cells[-1]:
                raise UserError(f"{path}, line {number}: the last column, the tag, is empty")
    X = [[cells[:-1] for _, cells in sentence] for sentence in sentences]
    return X, [[cells[-1] for _, cells in sentence] for sentence in sentences]


# Words end at ASCII blanks only, because others, such as the no-break space, may be in a word.
CELL = re.compile(r"[^ \t\r\v\f]+")
# The comments of CoNLL-U and of CoNLL-2011, which may have as many words as a token has columns.
COMMENT = re.compile(r"# *\S+ += |# (newdoc|newpar)\b|#(begin|end) document\b")


def _numbered_sentences(
    path: str | Path, wanted: int | None
) -> list[list[tuple[int, tuple[str, ...]]]]:
    """Return the sentences of a file, of which there is at least one.

    Each sentence is a list of tokens, each a pair: the number of its line and its cells. Outer
    columns without any value are left out unless the file has the number of columns `wanted`.
    """
    lines = read_text(path).split("\n")
    filled = [line for line in lines if line.strip()]
    likely = [line for line in filled if not line.startswith("#")] or filled
    split: Callable[[str], list[str]] = CELL.findall
    if "\t" in likely[0]:
        tabs, blanks = ({len(cut(line)) for line in likely} for cut in (_cells, split))
        # Where only the cells between blanks are as many in each line, tabs align the columns.
        if len(tabs) == 1 or len(blanks) > 1:
            split = _cells
    columns = len(split(likely[0]))
    sentences: list[list[tuple[int, tuple[str, ...]]]] = [[]]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            if sentences[-1]:
                sentences.append([])
            continue
        cells = tuple(split(line))
        comment = len(cells) != columns or COMMENT.match(line)
        if line.startswith("#") and not sentences[-1] and comment:
            continue
        if len(cells) != columns:
            raise UserError(f"{path}, line {number}: {len(cells)} columns, not {columns} as above")
        sentences[-1].append((number, cells))
    if not sentences[-1]:
        sentences.pop()
    if not sentences:
        raise UserError(f"{path} has comments alone: give a file with a token on each line")
    if columns == wanted:
        return sentences
    # Tabs at the ends of all lines make columns that have no value.
    tokens = [cells for sentence in sentences for _, cells in sentence]
    used = [any(column) for column in zip(*tokens, strict=True)]
    kept = slice(used.index(True), columns - used[::-1].index(True))
    return [[(number, cells[kept]) for number, cells in sentence] for sentence in sentences]


def _cells(line: str) -> list[str]:
    """Return the cells between tabs, without the ASCII blanks around them."""
    return [cell.strip(" \r\v\f") for cell in line.split("\t")]
