"""Files that word2vec and other programs wrote, faults and all.

The expected words and vectors are those of gensim 4.4.0 (KeyedVectors.load_word2vec_format), which
keeps the first vector of a word. It refuses words that are not UTF-8 and the byte order mark.
"""

import bz2
import gzip
import lzma
import warnings

import numpy as np
import pytest

from rnnfast import lm
from rnnfast._common.errors import DataWarning
from rnnfast.embeddings import Vectors

MARK = b"\xef\xbb\xbf"
FAULTS = [
    # the words of a file of size 2; what gensim has; what the warning says
    ([b"a", b"b", b"a"], ["a", "b"], r"1 of words that came before \(the first is 'a'\)$"),
    ([b"a", b"", b"b"], ["a", "", "b"], None),
    ([b"a", b"\t", b"b"], ["a", "\t", "b"], None),
    ([b"a", b"\xc2\xa0", b"10\xc2\xa0000"], ["a", "\u00a0", "10\u00a0000"], None),
    ([b"a", b"b\xe9", b"c"], ["a", "c"], r"1 of words that are not UTF-8 \(the first is b'b\\xe9'"),
    (
        [b"a", b"a", b"\xff", b"b", b"b", b"b"],
        ["a", "b"],
        r"dropped 4 of 6 vectors: 3 of .* before .* and 1 of words that are not UTF-8",
    ),
]


def written(words, binary=False, header=True):
    """Return a file whose vectors are (0, 1), (2, 3) and so on."""
    data = f"{len(words)} 2\n".encode() if header else b""
    for i, word in enumerate(words):
        vector = np.array([2 * i, 2 * i + 1], "<f4")
        data += word + b" " + (vector.tobytes() if binary else f"{2 * i} {2 * i + 1}".encode())
        data += b"\n"
    return data


def expected(words, kept):
    rows = [words.index(token.encode()) for token in kept]
    return np.array([[2 * row, 2 * row + 1] for row in rows], np.float32)


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.bin", "v.glove.txt", "v.txt.gz", "v.bin.gz"])
@pytest.mark.parametrize("words, kept, message", FAULTS)
def test_words_that_gensim_reads(tmp_path, name, words, kept, message):
    data = written(words, ".bin" in name, "glove" not in name)
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    if message is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = Vectors.load(path)
        loaded.save(tmp_path / "again.txt")
        assert Vectors.load(tmp_path / "again.txt").tokens == kept
    else:
        with pytest.warns(DataWarning, match=f"{name}.*: .*{message}") as found:
            loaded = Vectors.load(path)
        assert len(found) == 1 and "\n" not in str(found[0].message)
    assert loaded.tokens == kept
    assert np.array_equal(loaded.matrix, expected(words, kept))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("words, kept, message", FAULTS)
def test_gensim_reads_the_same(tmp_path, words, kept, message, binary):
    keyed = pytest.importorskip("gensim.models.keyedvectors")
    (tmp_path / "v").write_bytes(written(words, binary))
    if message and "UTF-8" in message:
        with pytest.raises(UnicodeDecodeError):
            keyed.KeyedVectors.load_word2vec_format(tmp_path / "v", binary=binary)
        return
    theirs = keyed.KeyedVectors.load_word2vec_format(tmp_path / "v", binary=binary)
    assert [token for token in theirs.index_to_key if token is not None] == kept
    assert np.array_equal(theirs.vectors[: len(kept)], expected(words, kept))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["v.txt", "v.bin", "v.vec.gz"])
def test_byte_order_mark_and_compression(tmp_path, name, compress):
    """The first bytes of a file say how it is compressed, whatever its name."""
    words = [b"a", b"b", b"c"]
    for header in (True, False) if "bin" not in name else (True,):
        (tmp_path / name).write_bytes(compress(MARK + written(words, "bin" in name, header)))
        loaded = Vectors.load(tmp_path / name)
        assert loaded.tokens == ["a", "b", "c"]
        assert np.array_equal(loaded.matrix, expected(words, loaded.tokens))


@pytest.mark.parametrize(
    "end, decompress", [("gz", gzip.decompress), ("bz2", bz2.decompress), ("xz", lzma.decompress)]
)
@pytest.mark.parametrize("kind", ["txt", "vec", "bin"])
def test_files_are_compressed_by_their_end(tmp_path, kind, end, decompress):
    vectors = Vectors(["a", "b"], np.random.default_rng(0).normal(size=(2, 300)))
    vectors.save(tmp_path / f"v.{kind}")
    vectors.save(tmp_path / f"v.{kind}.{end}")
    packed = (tmp_path / f"v.{kind}.{end}").read_bytes()
    assert decompress(packed) == (tmp_path / f"v.{kind}").read_bytes()
    assert np.array_equal(Vectors.load(tmp_path / f"v.{kind}.{end}").matrix, vectors.matrix)
    (tmp_path / f"v.{kind}.{end}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(lm.UserError, match=rf"^\S*v\.{kind}\.{end} is cut off: its .* no end"):
        Vectors.load(tmp_path / f"v.{kind}.{end}")
    for name in (f"v.safetensors.{end}", f"v.{end}", f"v.{kind}.{end}.zip"):
        with pytest.raises(lm.UserError, match=f"{name} must end with .txt, .vec, .bin, after"):
            vectors.save(tmp_path / name)


@pytest.mark.parametrize(
    "text, message",
    [
        ("3 2\na 1 2\nb 3\nc 4 5\n", "line 3: 'b' has 1 numbers, not 2"),
        ("2 2\na 1 2\nb 3 x\n", "line 3, 'b': could not convert"),
        ("a 1 2 3\n\nb 3 x 3\n", "line 3, 'b': could not convert"),
        ("2 2\na 1 2\n3 4\n", "line 3: '3' has 1 numbers, not 2"),
        ("1 2\n\x00 1 2 3\n", "line 2: '\\\\x00' has 3 numbers, not 2"),
    ],
)
def test_errors_name_word_and_line(tmp_path, text, message):
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(lm.UserError, match=rf"v\.txt is not word2vec's text format: {message}"):
        Vectors.load(tmp_path / "v.txt")
    (tmp_path / "v.txt").write_bytes(b"2 2\n\xe9 1 2\n\xe8 1 2\n")
    with pytest.raises(lm.UserError, match="none of its words is UTF-8"):
        Vectors.load(tmp_path / "v.txt")


def test_other_blanks_between_numbers(tmp_path):
    """Tabs, aligned numbers, and a word of two spaces, which gensim refuses."""
    for text, tokens in (
        ("2 2\na\t1\t2\nb\t3\t4\n", ["a", "b"]),
        ("2 2\na   1   2\nbb  3   4\r\n", ["a", "bb"]),
        ("2 2\na 1 2\n   3 4\n", ["a", "  "]),
        ("a\t1\t2\nb\t3\t4\n", ["a", "b"]),
        (" 1 2 3\nb 3 4 5\n", ["", "b"]),
    ):
        (tmp_path / "v.txt").write_bytes(text.encode())
        loaded = Vectors.load(tmp_path / "v.txt")
        assert loaded.tokens == tokens and loaded.matrix[:, :2].tolist() == [[1, 2], [3, 4]]
