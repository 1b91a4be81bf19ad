"""ARPA files that are compressed, and ARPA files in another encoding."""

import bz2
import codecs
import gzip
import lzma
import sys

import pytest
from lm_helpers import ARPA, WORDS, fit_ngrams

from rnnfast import lm
from rnnfast._common import text
from rnnfast.lm import arpa
from rnnfast.lm.ngram.arpa import LOG10

MODEL = ARPA.replace("b", "été")  # encodings differ in the bytes of this word
# log10 p of "été a", from kenlm 0.3.0 (Python, `Model.full_scores`), which reads this file
# compressed with gzip.
QUERY = [-0.2, -0.8, -0.4]


def zstd(data):
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdCompressor().compress(data)


def unzstd(data):
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


KINDS = {
    "gz": (gzip.compress, gzip.decompress),
    "bz2": (bz2.compress, bz2.decompress),
    "xz": (lzma.compress, lzma.decompress),
    "zst": (zstd, unzstd),
}


def log10(path, sentence="été a"):
    return [p / LOG10 for _, p in lm.load(path).score(sentence).tokens]


@pytest.mark.parametrize("block", [7, text.BLOCK])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=ascii)
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_compressed_arpa_files_score_as_in_kenlm(tmp_path, monkeypatch, kind, end, block):
    """The first bytes say what a file is: its name need not."""
    compress = KINDS[kind][0] if kind else bytes
    monkeypatch.setattr(text, "BLOCK", max(block, 10 if kind else 1))
    data = MODEL.replace("\n", end).encode()
    for mark in (b"", codecs.BOM_UTF8):
        (tmp_path / "model").write_bytes(compress(mark + data))
        assert log10(tmp_path / "model") == pytest.approx(QUERY, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ending_says_how_an_arpa_file_is_written(tmp_path, rnnfast, kind):
    decompress = KINDS[kind][1]
    model = fit_ngrams(WORDS)
    arpa.write(model, tmp_path / "a.arpa")
    arpa.write(model, tmp_path / f"b.arpa.{kind}")
    plain, packed = ((tmp_path / name).read_bytes() for name in ("a.arpa", f"b.arpa.{kind}"))
    assert len(packed) < len(plain) and decompress(packed) == plain
    (tmp_path / "text").write_text(WORDS)
    path = tmp_path / f"c.{kind}"
    assert rnnfast("ngram", "--train", tmp_path / "text", "--arpa", path)[0] == 0
    status, out, _ = rnnfast("score", path, "the cat sat")
    assert status == 0 and f"{lm.load(path).score('the cat sat').logprob:.4f}" in out


def test_without_the_package_for_zstd_nothing_is_counted(tmp_path, monkeypatch, rnnfast):
    for package in ("zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(lm.NgramLM, "fit", None)
    (tmp_path / "text").write_text(WORDS)
    status, _, err = rnnfast("ngram", "--train", tmp_path / "text", "--arpa", tmp_path / "a.zst")
    assert status == 2 and "pip install zstandard" in err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_damage_in_a_compressed_arpa_file_is_named(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(MODEL.encode())[:-9])
    with pytest.raises(lm.UserError, match=r"a\.gz is cut off: its gzip data has no end"):
        lm.load(path)
    path.write_bytes(gzip.compress(MODEL.replace("\ta\t-0.1", "").encode()))
    with pytest.raises(lm.UserError, match=r"a\.gz, line 10: log10 p, 1 words"):
        lm.load(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
def test_an_arpa_file_in_the_wrong_encoding_is_called_that(tmp_path, encoding, end):
    path = tmp_path / "a"
    path.write_bytes(MODEL.replace("\n", end).encode(encoding))
    says = "line 9: not UTF-8 text" if encoding == "latin-1" else "the file is UTF-16 or UTF-32"
    with pytest.raises(lm.UserError, match=rf"{says}.*: convert it, e.g. with iconv"):
        lm.load(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(lm.UserError, match=rf"{says}.*: convert it, e.g. with iconv"):
        lm.load(path)
