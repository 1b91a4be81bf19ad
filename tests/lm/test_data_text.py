"""Reading text: compression, directories, standard input."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_helpers import PERIODIC, SMALL, same_weights, small_config

from rnnfast import cli, lm
from rnnfast._common import text
from rnnfast.lm.data.batches import Batches, memory_map
from rnnfast.lm.storage import RunFolder


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
            expected = data.decode().replace("\r\n", "\n").replace("\r", "\n")
            assert lm.read_text(path) == expected
            assert lm.open_text(path) == expected
            patch.setattr(text, "IN_MEMORY", 0)
            long = lm.open_text(path)
            assert isinstance(long, lm.Text) and len(long) == len(expected)
            for part in (slice(None), slice(2, -1), slice(1), slice(3, None), slice(4, 2)):
                pieces = list(long[part].pieces())
                assert "".join(pieces) == expected[part] and all(pieces)
                assert len(long[part]) == len(expected[part])
            assert "".join(long[1:][1:3].pieces()) == expected[2:4]
            patch.setattr(text, "IN_MEMORY", 1 << 26)


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


def test_models_in_a_directory_are_no_text(tmp_path, monkeypatch, rnnfast):
    """A run whose folder is in its text's goes on, and another one has the same text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(PERIODIC)
    for folder, names in {
        "begun": ["config.json", "vocab.json", "log.jsonl"],
        "compare/rnn": ["model.safetensors", "tensorboard/events"],
        "text": ["config.json", "log.jsonl"],
    }.items():
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(PERIODIC if folder == "text" else "no text")
    assert lm.read_text(".") == 3 * PERIODIC
    tiny = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    argv = ["train", "--data", ".", *tiny, "--epochs"]
    assert rnnfast(*argv, 1)[0] == 0 and rnnfast(*argv, 1)[0] == 0
    config = [(tmp_path / name / "config.json") for name in ("rnnfast-model", "rnnfast-model-2")]
    assert config[0].read_bytes() == config[1].read_bytes()
    assert rnnfast("train", "--resume", "rnnfast-model", "--epochs", 2)[0] == 0
    monkeypatch.setattr(text, "IN_MEMORY", 9)  # a text that is read anew while the run writes
    assert rnnfast(*argv, 1)[0] == 0
    assert rnnfast("train", "--resume", "rnnfast-model-3", "--epochs", 2)[0] == 0


def test_standard_input(stdin):
    for data in (b"a\r\nb", gzip.compress(b"a\r\nb")):
        stdin(data)
        assert lm.read_text("-") == "a\nb"
    with pytest.raises(lm.UserError, match=r"standard input is empty: .* one text alone"):
        lm.read_text("-")
    stdin(b"\xff")
    with pytest.raises(lm.UserError, match="standard input is not UTF-8"):
        lm.read_text("-")


@pytest.mark.parametrize("name", ["data", "vocab"])
def test_processes_do_not_share_a_pipe(monkeypatch, name):
    monkeypatch.setattr(lm.corpus, "world_size", lambda: 2)
    with pytest.raises(lm.UserError, match=rf"--{name} - can be read once, and all 2 processes"):
        lm.corpus.read(**{name: "-"})


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


# ---- text that need not fit in memory


def long(monkeypatch, path, data, block=7):
    """A text as one that is too long for memory, read in small blocks."""
    path.write_text(data)
    monkeypatch.setattr(text, "IN_MEMORY", 9)
    monkeypatch.setattr(text, "BLOCK", block)
    result = lm.open_text(path)
    assert isinstance(result, lm.Text)
    return result


LINES = "the  cat sat\n\non the\tmat\n" * 9 + "a-very-long-word and so on " * 9 + "end"


def test_a_pipe_with_a_name(tmp_path, monkeypatch):
    """As the shell's `<(...)` makes them: a long text is read anew all the same."""
    monkeypatch.setattr(text, "IN_MEMORY", 9)
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda path: "".join(text.parts(lm.open_text(path))), lm.read_text):
        writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=[LINES])
        writer.start()
        assert read(tmp_path / "pipe") == LINES
        writer.join()


def test_parts_end_between_words(tmp_path, monkeypatch):
    for one in (long(monkeypatch, tmp_path / "t", LINES), LINES):
        parts = list(text.parts(one))
        assert "".join(parts) == LINES and len(parts) > 20
        assert [w for part in parts for w in part.split()] == LINES.split()
    monkeypatch.setattr(text, "LONGEST_WORD", 20)
    assert max(map(len, text.parts("x" * 99))) < 30


@pytest.mark.parametrize("level", ["char", "word", "byte", "bpe"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_tokens_on_the_disk_are_those_in_memory(tmp_path, monkeypatch, level, end):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    data = LINES + "é\u2028 \u20ac" + end
    one = long(monkeypatch, tmp_path / "t", data)
    vocab = lm.Vocabulary.build(level, text.parts(one), max_vocab=270 if level == "bpe" else None)
    assert vocab.tokens == lm.Vocabulary.build(level, [data], 1, 270).tokens
    expected = vocab.encode(data, close=level == "word")
    folder = tmp_path / "folder"
    folder.mkdir()
    mapped = memory_map(vocab, one, folder)
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == (np.uint16 if level == "bpe" else np.uint8)
    for ids in (mapped, vocab.encode_stream(one), vocab.encode_stream(data)):
        assert ids.tolist() == expected.tolist()
    assert not list(folder.iterdir())
    with pytest.raises(lm.UserError, match=r"cannot write .*nowhere"):
        memory_map(vocab, one, tmp_path / "nowhere")


def test_memory_does_not_grow_with_the_text(tmp_path):
    line = "the cat sat on the mat and said nothing at all\n"
    piece = line * 5000
    vocab = lm.Vocabulary.build("char", [line])
    peaks = []
    for count in (10, 40):
        one = lm.Text(lambda count=count: iter([piece] * count), 0, count * len(piece))
        tracemalloc.start()
        ids = memory_map(vocab, one, tmp_path)
        _, targets = Batches(ids, vocab.boundary, 4, 5)[0]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(ids) == len(one)
        assert vocab.decode(targets[:, 0].tolist()) == line[:5]
    assert peaks[1] < peaks[0] + len(piece)


def test_position_of_a_stranger_in_a_long_text(monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 10)
    vocab = lm.Vocabulary.build("char", ["ab \n"])
    with pytest.raises(lm.UserError, match=r"'z' \(position 33\)"):
        vocab.encode_stream("ab\n" * 11 + "z")


@pytest.mark.parametrize("source", ["file", "gzip", "stdin", "splits"])
def test_training_from_the_disk_is_training_from_memory(tmp_path, monkeypatch, stdin, source):
    path, compressed = tmp_path / "t", tmp_path / "t.gz"
    path.write_text(PERIODIC)
    compressed.write_bytes(gzip.compress(PERIODIC.encode()))
    stdin(compressed.read_bytes())
    paths = {
        "file": {"data": path},
        "gzip": {"data": compressed},
        "stdin": {"data": "-"},
        "splits": {"train": path, "valid": compressed, "test": path, "vocab": compressed},
    }[source]
    usual = lm.corpus.read(**{n: path if p == "-" else p for n, p in paths.items()})
    config = small_config(epochs=1)
    expected, report = lm.train(config, usual, tmp_path / "usual")
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    monkeypatch.setattr(text, "BLOCK", 100)
    corpus = lm.corpus.read(**paths)
    assert isinstance(corpus.train, lm.Text) and corpus.fingerprint() == usual.fingerprint()
    folder = tmp_path / "out"
    trainer = lm.prepare(config, corpus, RunFolder(folder))
    assert isinstance(trainer.train, np.memmap) and trainer.train.dtype == np.uint8
    trainer.run()
    assert same_weights(trainer.model, expected)
    for key in ("valid_loss", "test_loss", "baselines", "tokens"):
        assert lm.report(trainer)[key] == report[key]
    again = lm.resume(folder, {"epochs": 2}, corpus if source == "stdin" else None)
    assert isinstance(again.train, np.memmap)
    again.run()
    assert contents(folder) == contents(tmp_path / "usual")


@pytest.mark.parametrize("level", ["char", "word"])
def test_a_long_text_is_read_for_its_length_its_vocabulary_and_its_tokens(
    tmp_path, monkeypatch, level
):
    (tmp_path / "t").write_text(PERIODIC)
    monkeypatch.setattr(text, "IN_MEMORY", 1000)
    monkeypatch.setattr(text, "BLOCK", 100)
    file, readings = text._file, []
    monkeypatch.setattr(text, "_file", lambda path: readings.append(path) or file(path))
    corpus = lm.corpus.read(data=tmp_path / "t")
    assert isinstance(corpus.train, lm.Text) and isinstance(corpus.valid, str)
    assert len(readings) == 1
    lm.train(small_config(level, epochs=1), corpus, tmp_path / "m")
    assert len(readings) == 3
    readings.clear()
    lm.resume(tmp_path / "m", {"epochs": 2})
    assert len(readings) == 2


def contents(folder):
    return sorted(path.name for path in folder.iterdir())
