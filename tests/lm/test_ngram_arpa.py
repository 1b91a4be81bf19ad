"""ARPA files: what is written is read again, what others write is read, damage is named."""

import shutil
import subprocess

import numpy as np
import pytest
from lm_helpers import WORDS, fit_ngrams, zipf

from rnnfast import lm
from rnnfast.lm import arpa
from rnnfast.lm.ngram.arpa import LOG10
from rnnfast.lm.ngram.smoothing import SMOOTHINGS


@pytest.mark.parametrize("stream", [False, True], ids=["sentences", "stream"])
@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_round_trip(tmp_path, smoothing, level, stream):
    text = WORDS[:90] + "tab\there, no-break\xa0space,\x0bceiling \u2308, <U+0020> <eos>"
    other = "the zebra\n\nsat on on the cat\n" + text
    vocab = lm.Vocabulary.build(level, [text], unk=True)
    for order in (1, 2, 5):
        ids = vocab.encode_stream(text)
        model = lm.NgramLM.fit(vocab, ids, order, smoothing, stream=stream)
        arpa.write(model, tmp_path / "a")
        read = lm.load(tmp_path / "a")
        assert read.vocab.to_json() == vocab.to_json()
        assert (read.order, read.smoothing, read.stream) == (order, smoothing, stream)
        for ours, theirs in zip(model.ngrams, read.ngrams, strict=True):
            assert (ours.keys == theirs.keys).all()
        given = vocab.encode_stream(other)
        np.testing.assert_allclose(read.logprobs(given), model.logprobs(given), 1e-7, 1e-7)
        for n in range(1, 12):
            following = (m.next_logprobs(given[:n]) for m in (read, model))
            np.testing.assert_allclose(*following, 1e-7, 1e-7)
        arpa.write(read, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# As SRILM writes them: in any order, no weight where it is 1, n-grams that no sentence has.
THEIRS = r"""made by hand

\data\
ngram 1=5
ngram  2 = 6

\1-grams:
-99	<s>	-0.3
-0.5	b	-0.2
-0.6	</s>
-2	c
-0.7	a	-0.1

\2-grams:
-0.4	a </s>
-0.2	<s> b
-0.8 a  a
-0.9	</s> a
-0.1	b <s>
-0.3	<s> </s>

\end\
"""


def test_what_other_programs_write(tmp_path):
    path = tmp_path / "model"
    path.write_text(THEIRS)
    model = lm.load(path)
    assert (model.order, model.smoothing, model.stream) == (2, None, False)
    assert model.vocab.tokens == ["b", "<eos>", "c", "a", "<unk>"]
    ids = model.vocab.encode_stream("b a a\n\nc a zebra\na")
    log10 = [-0.2, -0.2 - 0.7, -0.8, -0.4, -0.3, -0.3 - 2, -0.7, -0.1 - 100, -0.6]
    log10 += [-0.3 - 0.7, -0.4]
    np.testing.assert_allclose(model.logprobs(ids), np.array(log10) * LOG10)
    path.write_text(THEIRS.replace("-2\tc", "-2\t<UNK>").replace("\n", "\r\n"))
    assert lm.load(path).vocab.tokens == ["b", "<eos>", "<unk>", "a"]
    assert lm.load(path).score("zebra").tokens[0] == ("<unk>", pytest.approx(-2.3 * LOG10))
    path.write_text(THEIRS.replace("-2\tc", "-inf\tc"))
    assert lm.load(path).score("c").tokens[0] == ("c", pytest.approx(-99.3 * LOG10))


def test_a_pruned_file(tmp_path):
    """`b c` has no entry, but `a b c` has."""
    path = tmp_path / "model"
    path.write_text(
        "\\data\\\nngram 1=5\nngram 2=1\nngram 3=1\n\n\\1-grams:\n-99 <s>\n-1 </s>\n-1 a -0.1\n"
        "-1 b -0.2\n-1 c -0.3\n\n\\2-grams:\n-0.5 a b -0.6\n\n\\3-grams:\n-0.7 a b c\n\n\\end\\\n"
    )
    log10 = [-1, -0.5, -0.7, -0.3 - 1]
    logprobs = [logprob / LOG10 for _, logprob in lm.load(path).score("a b c").tokens]
    assert logprobs == pytest.approx(log10)


DAMAGE = {  # what becomes of a part of THEIRS, and what is said
    "no counts": ("ngram 1=5\nngram  2 = 6\n", "", r"line 5: ngram 1=COUNT should be here"),
    "counts": ("ngram  2", "ngram 3", r"line 5: ngram 2=COUNT should be here"),
    "count": ("2 = 6", "2 = six", r"line 5: ngram 2=COUNT should be here"),
    "too few": ("1=5", "1=6", "line 13: log10 p, 1 words and at most a back-off weight"),
    "too many": ("1=5", "1=4", r"line 12: \\2-grams: should be here, by the counts at the top"),
    "number": ("-0.5\tb", "-O.5\tb", "line 9: could not convert string to float"),
    "nan": ("-0.5\tb", "nan\tb", "line 9: log10 p must be at most 0"),
    "above 1": ("-0.5\tb", "0.5\tb", "line 9: log10 p must be at most 0"),
    "weight": (
        "<s>\t-0.3",
        "<s>\tinf",
        r"line 8: log10 p .* a number",
    ),
    "twice": ("-2\tc", "-2\tb", "line 12: a word stands twice"),
    "bigram twice": ("<s> b", "<s> </s>", "line 20: an n-gram stands twice among the 2-grams"),
    "word": ("-0.8 a  a", "-0.8 a d", "line 17: a word is not among the 1-grams"),
    "columns": ("-0.8 a  a", "-0.8 a", "line 17: log10 p, 2 words and at most"),
    "no <s>": ("-99\t<s>", "-99\t<t>", "line 12: the 1-grams have no <s>"),
    "no end": ("\\end\\", "", "line 22: the file ends here"),
    "level": ("made by hand", "# rnnfast level=morse", "line 3: level=morse"),
    "stream": ("made by hand", "# rnnfast stream=yes", "line 3: level=word stream=yes"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path, name):
    before, after, says = DAMAGE[name]
    path = tmp_path / "model"
    assert THEIRS.count(before) == 1
    path.write_text(THEIRS.replace(before, after))
    with pytest.raises(lm.UserError, match=f"{path}, {says}"):
        lm.load(path)


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "model"
    for data in (b"", bytes(range(256)) * 9, b"\\data\\", THEIRS[:100].encode()):
        path.write_bytes(data)
        with pytest.raises(lm.UserError, match=str(path)):
            lm.load(path)
    path.write_text("# rnnfast level=char\n" + THEIRS.replace("-2\tc", "-2\tcc"))
    with pytest.raises(lm.UserError, match=r"line 13: .* must be single characters"):
        lm.load(path)
    path.write_bytes(THEIRS.encode().replace(b"-2\tc", b"-2\t\xff"))
    with pytest.raises(lm.UserError, match=r"line 11: .*utf-8"):
        lm.load(path)


def test_an_unfinished_file_is_not_left(tmp_path):
    (tmp_path / "model").write_text("mine")
    for mark in ("<s>", "</s>"):
        vocab = lm.Vocabulary.build("word", [f"a {mark}"])
        with pytest.raises(lm.UserError, match=f"the text has the word {mark}"):
            arpa.write(lm.NgramLM.fit(vocab, vocab.encode(f"a {mark}")), tmp_path / "model")
    vocab = lm.Vocabulary.build("word", ["a"])
    with pytest.raises(lm.UserError, match="cannot write"):
        arpa.write(lm.NgramLM.fit(vocab, vocab.encode("a")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_text() == "mine"


# ---- KenLM


@pytest.fixture(scope="module")
def kenlm():
    return pytest.importorskip("kenlm", reason="no kenlm here (pip install kenlm)")


def query(kenlm, path, text, **options):
    """log p of every token, and whether KenLM knows it."""
    model = kenlm.Model(str(path))
    lines = text.removesuffix("\n").split("\n")
    scores = [score for line in lines for score in model.full_scores(line, **options)]
    return np.array([score[0] for score in scores]) * LOG10, [not score[2] for score in scores]


@pytest.mark.parametrize("smoothing", [name for name in SMOOTHINGS if name != "stupid"])
@pytest.mark.parametrize("order", [2, 3, 6])
def test_kenlm_reads_our_files(tmp_path, kenlm, smoothing, order):
    model = fit_ngrams(zipf(2000), order, smoothing)
    arpa.write(model, tmp_path / "model.arpa")
    other = zipf(300, seed=1) + "\nzebra w1\nw2 zebra zebra w3"
    ids = model.vocab.encode_stream(other)
    theirs, known = query(kenlm, tmp_path / "model.arpa", other)
    assert known == (ids != model.vocab.unk).tolist()
    np.testing.assert_allclose(model.logprobs(ids), theirs, rtol=1e-5, atol=1e-5)


def test_kenlm_reads_characters_and_streams(tmp_path, kenlm):
    text = WORDS[:120]
    model = fit_ngrams(text, 4, level="char")
    arpa.write(model, tmp_path / "model.arpa")
    spelt = "\n".join(" ".join(line) for line in text.replace(" ", "_").split("\n"))
    theirs, known = query(kenlm, tmp_path / "model.arpa", spelt.replace("_", "<U+0020>"))
    assert all(known)
    ours = model.logprobs(model.vocab.encode(text, close=True))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    model = fit_ngrams(text, 4, stream=True)
    arpa.write(model, tmp_path / "model.arpa")
    ids = model.vocab.encode(text)
    words = " ".join(model.vocab.tokens[i] for i in [model.vocab.boundary, *ids])
    theirs, known = query(kenlm, tmp_path / "model.arpa", words, bos=False, eos=False)
    np.testing.assert_allclose(model.logprobs(ids), theirs[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(shutil.which("lmplz") is None, reason="no lmplz of KenLM on the PATH")
def test_lmplz_estimates_the_same(tmp_path, kenlm):
    text, other = zipf(8000), zipf(300, seed=1) + "zebra w1\n"
    (tmp_path / "text").write_text(text)
    command = ["lmplz", "-o", "4", "-S", "100M", "-T", tmp_path, "--text", tmp_path / "text"]
    command += ["--arpa", tmp_path / "theirs.arpa", "--discount_fallback"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = arpa.read(tmp_path / "theirs.arpa")
    ours = fit_ngrams(text, 4)
    for n in range(2, 5):
        assert len(theirs.ngrams[n - 1].keys) == len(ours.ngrams[n - 1].keys)
    a, b = (model.logprobs(model.vocab.encode_stream(other)) for model in (theirs, ours))
    np.testing.assert_allclose(a, b, atol=1e-4)
