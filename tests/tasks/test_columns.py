"""Files in CoNLL's format: separators, comments, empty cells, and errors that name the line."""

import pytest

from rnnfast.lm import UserError
from rnnfast.tasks.data import read_columns, read_tagged


def read(tmp_path, text, columns=None, function=read_columns):
    (tmp_path / "file").write_text(text, encoding="utf-8")
    return function(tmp_path / "file", columns)


def test_tabs_separate_cells_with_blanks(tmp_path):
    """A cell between tabs may hold blanks, no-break spaces, or nothing."""
    text = "New York\tNNP\tB-NP\n10\u00a0000\t\tB-NP\n\nit\tPRP\tB-NP \n"
    expected = [[("New York", "NNP", "B-NP"), ("10\u00a0000", "", "B-NP")], [("it", "PRP", "B-NP")]]
    assert read(tmp_path, text) == expected
    assert read(tmp_path, text.replace("\n", "\r\n")) == expected
    # The same file with a tab at the end of each line, as spreadsheets write an empty column.
    assert read(tmp_path, text.replace("B-NP\n", "B-NP\t\n").replace("B-NP \n", "B-NP\t\n")) == (
        expected
    )
    # The last column of the training data may be empty in all lines of another file.
    assert read(tmp_path, "a\t\nb\t\n", columns=2) == [[("a", ""), ("b", "")]]
    assert read(tmp_path, "a\t\nb\t\n", columns=1) == [[("a",), ("b",)]]


def test_blanks_separate_words(tmp_path):
    """Without tabs words end at ASCII blanks, so a no-break space is in a word."""
    text = "10\u00a0000  CD B-NP\n\u3000 SP  O\n"
    assert read(tmp_path, text) == [[("10\u00a0000", "CD", "B-NP"), ("\u3000", "SP", "O")]]
    # Tabs that align the columns, and a line with a tab among blanks.
    assert read(tmp_path, "a\t\tDT\nabcdefghij\tNN\n") == [[("a", "DT"), ("abcdefghij", "NN")]]
    assert read(tmp_path, "a DT\nb\tNN\n") == [[("a", "DT"), ("b", "NN")]]


@pytest.mark.parametrize(
    "comment",
    [
        "# sent_id = 1",
        "# text = New York",
        "# text = a\tb",
        "# newdoc",
        "# newpar id = 3",
        "#begin document (bn/abc); part 000",
        "# a b c d e f",
        "#",
    ],
)
@pytest.mark.parametrize("between", ["\t", " "])
def test_comments(tmp_path, comment, between):
    """A line before a sentence that begins with # is left out unless it has a token's columns."""
    rows = [("a", "DT", "B"), ("b", "NN", "I")]
    lines = [between.join(row) for row in rows]
    text = "\n".join([comment, *lines, "", comment, comment, *lines, "", comment, ""])
    assert read(tmp_path, text) == [rows, rows]
    # A sentence may begin with the word #, as it does in CoNLL-2000 and in texts of the web.
    hashes = [("#", "#", "B"), ("#tag", "NN", "I"), ("#", "x", "O")]
    text = "\n".join([comment, *map(between.join, hashes), "", comment, *lines])
    assert read(tmp_path, text) == [hashes, rows]


def test_four_columns_and_a_comment_of_four_words(tmp_path):
    rows = [("U.N.", "NNP", "I-NP", "I-ORG"), ("#", "#", "I-NP", "O")]
    text = "# sent_id = 1\n" + "\n".join(map(" ".join, rows)) + "\n"
    assert read(tmp_path, text) == [rows]
    rows = [("#begin", "O"), ("a", "O")]
    for between in "\t", " ":
        text = "# newdoc\n# text = a\tb\n" + "\n".join(map(between.join, rows)) + "\n"
        assert read(tmp_path, text) == [rows]


@pytest.mark.parametrize(
    "text, function, columns, message",
    [
        ("a X\nb\n", read_columns, None, "line 2: 1 columns, not 2 as above"),
        ("New York\tX\nLos\u00a0Angeles\n", read_columns, None, "line 2: 1 columns, not 2"),
        ("a\tX\n\nb\tX\tY\n", read_columns, None, "line 3: 3 columns, not 2 as above"),
        ("# c\n\na DT X\n", read_columns, 2, "line 3: 3 columns, not 2 as in the .* if it is the"),
        ("# c\n\na\n", read_columns, 2, "line 3: 1 columns, not 2 as in the training"),
        ("\na DT NP X\n", read_columns, 2, r"line 2: 4 columns, not 2 as in the .* its tags$"),
        ("\na DT X\n", read_tagged, 1, "line 2: 2 columns and the tag, not 1 and the tag"),
        ("\na X\n", read_tagged, 2, "line 2: 1 columns and the tag, not 2 and the tag"),
        ("a\tX\n\nb\t\n", read_tagged, None, "line 3: the last column, the tag, is empty"),
        ("a\nb\n", read_tagged, None, "want a word, other columns"),
        ("# a = b\n\n# c = d\n", read_columns, None, "has comments alone"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, function, columns, message):
    with pytest.raises(UserError, match=f"^{tmp_path / 'file'}.*{message}"):
        read(tmp_path, text, columns, function)


def test_tags_are_the_last_column(tmp_path):
    X, y = read(tmp_path, "# c = d\nNew York\tNNP\tB-NP\n\n.\t.\tO\n", 2, read_tagged)
    assert (X, y) == ([[("New York", "NNP")], [(".", ".")]], [["B-NP"], ["O"]])
