"""`rnnfast ngram`: what it reports."""

import json
import math
from pathlib import Path

import pytest
from lm_helpers import WORDS

from rnnfast import lm

pytestmark = pytest.mark.usefixtures("folder_with_text")


def test_ngram(rnnfast):
    Path("train").write_text(WORDS)
    Path("test").write_text("the cat sat on a zebra\n\n")
    argv = ("ngram", "--train", "train", "--test", "test", "--order", 3)
    status, out, err = rnnfast(*argv, "--arpa", "m.arpa", "--json", "r")
    report = json.loads(Path("r").read_text())
    assert (status, err) == (0, "") and "m.arpa" in out
    keys = """order smoothing train_tokens test_tokens oov ngrams perplexity
        perplexity_without_oov perplexity_per_word bits_per_character bits_per_byte seconds
        zeroprobs perplexity_without_zeroprobs"""
    assert report.keys() == set(keys.split())
    vocab = lm.Vocabulary.build("word", [WORDS])
    model = lm.NgramLM.fit(vocab, vocab.encode_stream(WORDS), 3, "mkn")
    assert (report["order"], report["smoothing"]) == (3, "mkn")
    assert (report["train_tokens"], report["test_tokens"], report["oov"]) == (840, 8, 1)
    assert report["ngrams"] == [len(entries.keys) for entries in model.ngrams]
    result = model.evaluate(Path("test").read_text())
    assert report["perplexity"] == pytest.approx(result.perplexity)
    assert report["perplexity_per_word"] == pytest.approx(result.perplexity)
    tokens = model.score(Path("test").read_text()).tokens
    known = [logprob for token, logprob in tokens if token != "<unk>"]
    assert report["perplexity_without_oov"] == pytest.approx(math.exp(-sum(known) / 7))
    assert f"{report['perplexity']:.6g}" in out and f"{report['seconds']:.2f} s" in out


@pytest.mark.filterwarnings("error")
def test_ngram_of_a_test_text_of_nothing_known(rnnfast):
    Path("test").write_text("zzz")
    argv = ("ngram", "--train", "text", "--test", "test", "--level", "char", "--json", "r")
    status, out, _ = rnnfast(*argv)
    report = json.loads(Path("r").read_text())
    assert status == 0 and (report["test_tokens"], report["oov"]) == (3, 3)
    assert report["perplexity_without_oov"] is None
    assert f"3 of them <unk>; perplexity {report['perplexity']:.6g}\n" in out


def test_ngram_options(rnnfast):
    Path("test").write_text("a1b1z\n")
    model = ("ngram", "--train", "text", "--test", "test", "--level", "char", "--json", "-")
    reports = []
    for options in (
        (),
        ("--stream",),
        ("--smoothing", "add-k"),
        ("--smoothing", "add-k", "--k", 9),
    ):
        status, out, _ = rnnfast(*model, *options)
        reports.append(json.loads(out))
        assert status == 0 and (reports[-1]["test_tokens"], reports[-1]["oov"]) == (6, 1)
    assert len({report["perplexity"] for report in reports}) == 4
    assert reports[3]["smoothing"] == "add-k" and reports[0]["ngrams"][0] == 6
    Path("words").write_text("a a a b b c\n")
    Path("others").write_text("d d d d e e\n")
    others = ("--vocab", "others")
    for options, size in (
        (("--min-count", 2), 4),
        (("--max-vocab", 3), 3),
        (others, 4),
        ((*others, "--min-count", 3), 3),
    ):
        _, out, _ = rnnfast("ngram", "--train", "words", *options, "--json", "-")
        report = json.loads(out)
        assert report["ngrams"][0] == size
        assert report["test_tokens"] is report["oov"] is report["perplexity"] is None
