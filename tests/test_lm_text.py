"""Reading text: compression, directories, standard input."""

import bz2
import gzip
import io
import json
import lzma
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_helpers import PERIODIC, SMALL

from rnnfast import cli, lm
from rnnfast.lm import text


def zstd(data):
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


COMPRESS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.fixture
def stdin(monkeypatch):
    """Sets the bytes of standard input."""

    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


@given(
    st.lists(st.sampled_from(["\r", "\n", "\r\n", "a", "é", "\ufeff", "€", "\U0001f40d"])),
    st.integers(1, 5),
)
def test_text_does_not_depend_on_blocks(tmp_path_factory, symbols, block):
    path = tmp_path_factory.mktemp("text") / "t"
    data = ("x" + "".join(symbols)).encode("utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        for mark in (b"", b"\xef\xbb\xbf"):
            path.write_bytes(mark + data)
            expected = data.decode().replace("\r\n", "\n")
            assert lm.read_text(path) == expected
            assert all(text.pieces(path))


@pytest.mark.parametrize("block", [1, 4, text.BLOCK])
@pytest.mark.parametrize(
    ("data", "at"), [(b"ab\xff", 2), ("aé€".encode()[:-1], 3), ("€".encode() + b"\x80", 3)]
)
def test_the_byte_that_is_not_utf8_is_named(tmp_path, monkeypatch, data, at, block):
    monkeypatch.setattr(text, "BLOCK", block)
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(lm.UserError, match=rf"t is not UTF-8 text \(byte {at}\)"):
        lm.read_text(tmp_path / "t")


@pytest.mark.parametrize("block", [1, 13, text.BLOCK])
@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_text(tmp_path, monkeypatch, kind, block):
    monkeypatch.setattr(text, "BLOCK", max(block, 10))  # the first has to show the format
    compress, path = COMPRESS[kind], tmp_path / "t.txt"
    parts = ["é and so on\r\n" * 300, "", "the end"]
    for between in (b"", b"\0" * 8):  # as `cat a.gz b.gz` and block devices leave it
        path.write_bytes(between.join(compress(part.encode()) for part in parts) + between)
        assert lm.read_text(path) == "é and so on\n" * 300 + "the end"


@pytest.mark.parametrize("kind", COMPRESS)
def test_damaged_compressed_text(tmp_path, kind):
    path = tmp_path / "t"
    whole = COMPRESS[kind](b"".join(b"%d\n" % n for n in range(999)))
    for damaged, says in (
        (whole[:-9], f"t is cut off: its {kind} data has no end"),
        (whole[:40] + b"\xff" * 40 + whole[80:], f"t is damaged {kind} data"),
        (whole + b"more", f"t is damaged {kind} data|t is cut off"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(lm.UserError, match=says):
            lm.read_text(path)


def test_zstd_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "t").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    for package in ("zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(lm.UserError, match=r"cannot read .*t: .* pip install zstandard"):
        lm.read_text(tmp_path / "t")


def test_directory(tmp_path):
    for name, data in {
        "b.txt": b"second",
        "a/z": b"first\n",
        "b/empty": b"",
        "b/c/x.gz": gzip.compress("third é\r\n".encode()),
        "c": b"\xef\xbb\xbflast",
        ".hidden": b"\xff",
        "b/.git/config": b"\xff",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert lm.read_text(tmp_path) == "first\nthird é\nsecond\nlast\n"
    (tmp_path / "b" / "bad").write_bytes(b"\xff")
    with pytest.raises(lm.UserError, match=r"b/bad is not UTF-8"):
        lm.read_text(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(lm.UserError, match="empty is empty"):
        lm.read_text(tmp_path / "empty")


def test_standard_input(stdin):
    for data in (b"a\r\nb", gzip.compress(b"a\r\nb")):
        stdin(data)
        assert lm.read_text("-") == "a\nb"
    with pytest.raises(lm.UserError, match=r"standard input is empty: .* one text alone"):
        lm.read_text("-")
    stdin(b"\xff")
    with pytest.raises(lm.UserError, match="standard input is not UTF-8"):
        lm.read_text("-")


def test_commands_read_all_of_them(tmp_path, monkeypatch, stdin, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "1.gz").write_bytes(gzip.compress(PERIODIC.encode()))
    (tmp_path / "xz").write_bytes(lzma.compress(PERIODIC.encode()))
    tiny = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    train = ["train", *tiny, "--epochs=1", "--data"]
    for source in ("words", "xz", "-"):
        stdin(PERIODIC.encode())
        assert cli.main([*train, source, "--out", f"m{source}", "--json", "r"]) == 0
    models = [tmp_path / name / "model.safetensors" for name in ("mwords", "mxz", "m-")]
    assert len({path.read_bytes() for path in models}) == 1
    resume = ["train", "--epochs=2", "--threads=1", "--resume"]
    assert cli.main([*resume, "mwords"]) == 0
    capsys.readouterr()
    assert cli.main([*resume, "m-"]) == 2
    assert "give its text" in capsys.readouterr().err
    stdin(PERIODIC.encode())
    assert cli.main([*resume, "m-", "--data", "-"]) == 0
    capsys.readouterr()
    ngram = ["ngram", "--train", "words", "--level=char", "--vocab=xz", "--arpa=a", "--json=-"]
    stdin(b"a1b1\n")
    assert cli.main([*ngram, "--test", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["test_tokens"] == 5
    stdin(b"a1b1\n")
    mixed = ["eval", "a", "a", "--json=-", "--data"]
    assert cli.main([*mixed, "-", "--tune", "xz"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 5
    stdin(b"a1b1\n")
    assert cli.main([*mixed, "-", "--tune", "-"]) == 2
    assert "- for one text alone" in capsys.readouterr().err
