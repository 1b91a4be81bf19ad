"""Where words and lines end: at the blanks of ASCII, and where Python's text files end lines."""

import math
import sys

import numpy as np
import pytest

from rnnfast import lm
from rnnfast._common.text import words
from rnnfast.embeddings.skipgram import _sentences
from rnnfast.lm import arpa
from rnnfast.lm.ngram.arpa import LOG10
from rnnfast.tasks.inputs import Tokens, steps

# `<U+00A0>` and the like stand for the character itself, so that it is seen.
MODEL = r"""\data\
ngram 1=8
ngram 2=8

\1-grams:
-99	<s>	-0.146128036
-1	</s>	0
-1	<unk>	0
-1	a	-0.146128036
-1	10<U+00A0>000	-0.079181246
-1	3<U+2009>km	-0.079181246
-1	il	-0.079181246
-1	東京<U+3000>都	-0.0413926852

\2-grams:
-0.669006781	<s> il
-0.84509804	<s> 東京<U+3000>都
-0.669006781	a 10<U+00A0>000
-0.669006781	a 3<U+2009>km
-0.602059991	3<U+2009>km </s>
-0.602059991	il a
-0.740362689	10<U+00A0>000 </s>
-0.740362689	東京<U+3000>都 a

\end\
"""
# log10 p of each token, from kenlm 0.3.0 (Python, `Model.full_scores`).
QUERIES = {
    "il a 10\xa0000": [-0.6690068, -0.6020600, -0.6690068, -0.7403627],
    "東京\u3000都 a 10 000": [-0.8450980, -0.7403627, -1.1461281, -1.0, -1.0],
    "3\u2009km\x0ba\x85\x0c3\u2009km": [-1.1461281, -1.0791812, -1.0, -0.6020600],
}


@pytest.mark.parametrize("sentence", QUERIES, ids=ascii)
def test_words_with_blanks_of_unicode_score_as_in_kenlm(tmp_path, sentence):
    text = MODEL
    for character in "\xa0\u2009\u3000":
        text = text.replace(f"<U+{ord(character):04X}>", character)
    (tmp_path / "a").write_text(text)
    scored = lm.load(tmp_path / "a").score(sentence)
    assert [p / LOG10 for _, p in scored.tokens] == pytest.approx(QUERIES[sentence], abs=1e-6)


def test_words_end_at_the_blanks_of_ascii():
    for character in map(chr, range(sys.maxunicode + 1)):
        expected = ["a", "b"] if character in " \t\n\r\v\f" else [f"a{character}b"]
        assert words(f" a{character}b\n") == expected, hex(ord(character))


def test_words_are_split_alike_everywhere():
    text = "10\xa0000 francs\nle\x1cmot\tet\x852\u3000mots\n" * 3
    expected = ["10\xa0000", "francs", "le\x1cmot", "et\x852\u3000mots"]
    vocab = lm.Vocabulary.build("word", [text])
    assert set(vocab.tokens) == {*expected, "<eos>", "<unk>"}
    ids = vocab.encode(text)
    assert len(ids) == 18 and (ids != vocab.unk).all()
    assert lm.Evaluation(18, 1.0).by_unit(text)["perplexity_per_word"] == pytest.approx(math.e)
    assert _sentences(text, vocab)[:2] == [expected[:2], expected[2:]]
    assert steps(text) == 12
    assert set(Tokens.fit([text], ["form"], 1).tables[0]) == {"", *expected}


def test_a_prompt_that_ends_with_a_no_break_space_ends_with_a_word():
    text = "10\xa0 francs\n" * 9
    vocab = lm.Vocabulary.build("word", [text])
    model = lm.NgramLM.fit(vocab, vocab.encode_stream(text), 2)
    assert model.generate("10\xa0", 1, temperature=0) == "10\xa0 francs"
    assert model.generate("10\xa0 ", 1, temperature=0) == "10\xa0 francs"


def test_a_text_of_other_blanks_is_not_empty(tmp_path):
    (tmp_path / "t").write_text("\u3000\n")
    assert lm.read_text(tmp_path / "t") == "\u3000\n"


def test_lines_end_as_in_the_text_files_of_python(tmp_path):
    path, data = tmp_path / "t", b"one\rtwo\r\nthree\nfour\r\r\nfive\r"
    path.write_bytes(data)
    assert lm.read_text(path) == path.read_text("utf-8") == "one\ntwo\nthree\nfour\n\nfive\n"
    vocab = lm.Vocabulary.build("word", [lm.read_text(path)])
    assert (vocab.encode(lm.read_text(path)) == vocab.boundary).sum() == 6


def test_characters_that_are_no_blanks_are_written_as_they_are(tmp_path):
    """Files of earlier versions, which escape all white space, still read."""
    vocab = lm.Vocabulary.build("char", ["a \t\xa0\u3000\n"])
    model = lm.NgramLM.fit(vocab, vocab.encode("a\xa0\u3000 a\ta\n"), 2)
    path = tmp_path / "a"
    arpa.write(model, path)
    written = path.read_text("utf-8")
    assert "<U+0020>" in written and "<U+0009>" in written and "<U+00A0>" not in written
    (tmp_path / "old").write_text(written.replace("\xa0", "<U+00A0>").replace("\u3000", "<U+3000>"))
    ids = vocab.encode("a\xa0\u3000 a\ta\n")
    for file in (path, tmp_path / "old"):
        read = lm.load(file)
        assert read.vocab.tokens == vocab.tokens
        np.testing.assert_allclose(read.logprobs(ids), model.logprobs(ids), 1e-7)
