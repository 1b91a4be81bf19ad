"""Tables of texts: quotes as Python's csv module writes them, headers, swapped columns."""

import csv
import warnings

import pytest

from rnnfast._common.errors import DataWarning
from rnnfast.lm import UserError
from rnnfast.tasks.data import read_labelled

ROWS = [
    ("pos", 'a "fine" film'),
    ("neg", "line one\nline two"),
    ("neg", "line one\nline two\twith a tab\n\nline four"),
    ("pos", "a\ttab"),
    ("neg", "it's plain"),
    ("pos", '"all of it"'),
    ("neg", ""),
    ("pos", '"'),
]


def read(tmp_path, text):
    (tmp_path / "file").write_bytes(text.encode())
    X, y = read_labelled([tmp_path / "file"])
    return list(zip(y, X, strict=True))


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("labels", [str, {"pos": 1, "neg": -0.5}.get])
def test_what_csv_writes_is_read(tmp_path, quoting, end, labels):
    """The rows come back that Python's csv module wrote, whatever it puts into quotes."""
    rows = [(labels(label), text) for label, text in ROWS]
    with open(tmp_path / "table", "w", newline="") as file:
        csv.writer(file, "excel-tab", quoting=quoting, lineterminator=end).writerows(rows)
    text = (tmp_path / "table").read_text()
    assert read(tmp_path, text) == [(str(label), text) for label, text in rows]
    assert read(tmp_path, "\n" + text.rstrip()) == read(tmp_path, text)


@pytest.mark.parametrize(
    "texts",
    [
        ['"Fine!" he said.', "a film"],
        ['"Fine!"', "a film"],
        ['"I came.', 'I saw."'],
        ['a "fine" film', 'the "end"'],
        ['""', '"a"'],
        ['"a', "b"],
        ['say "a\tb"', "c"],
        ['"a" and "b"', 'more ""quotes""'],
    ],
)
def test_quotes_of_a_text_stay(tmp_path, texts):
    """Quotes that csv would not have written are a part of the text."""
    rows = [(label, text) for label in ("pos", "neg") for text in texts]
    assert read(tmp_path, "".join(f"{label}\t{text}\n" for label, text in rows)) == rows


def test_the_line_of_an_error(tmp_path):
    with pytest.raises(UserError, match=r"file, line 4: want label<TAB>text"):
        read(tmp_path, 'pos\t"a\nb"\n\nneg\n')


@pytest.mark.parametrize("header", ["label\ttext", "sentiment\treview", "Topic\tNews headline"])
def test_header(tmp_path, header):
    rows = [("pos", f"a fine film {i}") if i % 2 else ("neg", f"dull {i}") for i in range(6)]
    text = "".join(f"{label}\t{text}\n" for label, text in rows)
    assert read(tmp_path, text) == rows
    with pytest.warns(DataWarning, match="file: its first line, .* looks like a header"):
        assert read(tmp_path, f"{header}\n{text}") == [tuple(header.split("\t")), *rows]
    names = [tmp_path / "good.txt", tmp_path / "bad.txt"]
    for name in names:
        name.write_text("text\n" + f"a {name.stem} film\n" * 3)
    with pytest.warns(DataWarning, match="all files begin with 'text': delete this line if"):
        X, y = read_labelled(names)
    assert len(X) == len(y) == 8


@pytest.mark.parametrize("header", ["", "text\tlabel\n"])
def test_swapped_columns(tmp_path, header):
    lines = [f"text number {i}\t{'pos' if i % 2 else 'neg'}\n" for i in range(200)]
    lines = "".join([header, *lines])
    labels = 200 + bool(header)
    with pytest.warns(DataWarning, match=f"file has {labels} different labels and . different t"):
        assert len(read(tmp_path, lines)) == labels
    with pytest.warns(DataWarning, match="4 different labels and 2 different texts in 4 lines"):
        read(tmp_path, "a b\tpos\nc d\tneg\ne f\tneg\ng h\tpos\n")
    # The numbers of the texts in place of their labels.
    with pytest.warns(DataWarning, match="20 different labels and 20 different texts"):
        read(tmp_path, "".join(f"{i}\ttext number {i}\n" for i in range(20)))
