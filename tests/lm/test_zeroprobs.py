"""Tokens of probability zero: the perplexity is infinite, and they are counted apart.

The expected values are by the definition of SRILM's `ngram -ppl`: ppl = 10^(-logprob / (words -
OOVs - zeroprobs + sentences)), where logprob is the sum over the tokens that are counted.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rnnfast import lm

TRAIN = "a b\na b\na c\n"
TEST = "a b\na a\nb c\n"
# p of the tokens in the bigram model: 1, 2/3, 1; 1, 0, 0; 0, 0, 1
PPL = (3 / 2) ** (1 / 5)


@pytest.fixture
def bigrams():
    vocab = lm.Vocabulary.build("word", [TRAIN])
    return lm.NgramLM.fit(vocab, vocab.encode_stream(TRAIN), 2, "mle")


def arpa_file(unigrams):
    return (
        f"\\data\\\nngram 1={len(unigrams)}\n\n\\1-grams:\n" + "\n".join(unigrams) + "\n\\end\\\n"
    )


def test_an_unsmoothed_model_has_the_zeroprobs_of_srilm(bigrams, tmp_path):
    lm.arpa.write(bigrams, tmp_path / "m")
    for model in (bigrams, lm.load(tmp_path / "m")):
        found = model.evaluate(TEST)
        assert (found.tokens, found.zeroprobs) == (9, 4)
        assert found.loss == found.perplexity == found.bits_per_token == math.inf
        assert found.perplexity_without_zeroprobs == pytest.approx(PPL)
        assert set(found.by_unit(TEST).values()) == {math.inf}
        assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == {
            "tokens": 9,
            "loss": None,
            "perplexity": None,
            "bits_per_token": None,
            "zeroprobs": 4,
            "perplexity_without_zeroprobs": pytest.approx(PPL),
        }


def test_a_text_without_zeroprobs_is_as_before(bigrams):
    found = bigrams.evaluate("a b\na c\n")
    assert found.zeroprobs == 0
    assert found.perplexity == pytest.approx((3 / 2 * 3) ** (1 / 6))
    assert found.perplexity_without_zeroprobs == found.perplexity


def test_a_text_of_nothing_but_zeroprobs(bigrams):
    found = bigrams.evaluate("\n")
    assert (found.tokens, found.zeroprobs, found.perplexity) == (1, 1, math.inf)
    assert found.perplexity_without_zeroprobs is None


@pytest.mark.parametrize("zero", ["-99\tc", "-inf\tc", "-99\tc\t0.5", "-150\tc"], ids=ascii)
def test_zeroprobs_of_the_files_of_others(tmp_path, zero):
    """Also after a context whose back-off weight is above 1."""
    (tmp_path / "m").write_text(
        arpa_file(["-99\t<s>", "-1\t</s>", "-0.5\ta\t1.5", zero])
        .replace("1=4", "1=4\nngram 2=1")
        .replace("\\end\\", "\\2-grams:\n-0.25\ta a\n\\end\\")
    )
    found = lm.load(tmp_path / "m").evaluate("a a c\n")
    assert (found.tokens, found.zeroprobs, found.perplexity) == (4, 1, math.inf)
    after_c = 0.5 if zero.endswith("0.5") else 0
    expected = 10 ** ((0.5 + 0.25 + 1 - after_c) / 3)
    assert found.perplexity_without_zeroprobs == pytest.approx(expected)


def test_a_model_without_unk_knows_no_other_word(tmp_path):
    """SRILM leaves such words out as OOVs. Scores have log10 p of -100, as in KenLM."""
    (tmp_path / "m").write_text(arpa_file(["-99\t<s>", "-1\t</s>", "-0.5\ta"]))
    model = lm.load(tmp_path / "m")
    found = model.evaluate("a zebra\n")
    assert (found.zeroprobs, found.perplexity) == (1, math.inf)
    assert found.perplexity_without_zeroprobs == pytest.approx(10 ** (1.5 / 2))
    assert model.score("zebra").tokens[0][1] == pytest.approx(-100 * math.log(10))


def test_a_mixture_has_probability_zero_where_all_its_models_have(bigrams):
    vocab = bigrams.vocab
    unigrams = lm.NgramLM.fit(vocab, vocab.encode_stream(TRAIN), 1, "mle")
    mixture = lm.Mixture([unigrams, bigrams], np.array([0.5, 0.5]))
    first, second, both = mixture.evaluate("a a z\n")
    # unigrams: 1/3, 1/3, 0, 1/3; bigrams: 1, 0, 0, and 1/3 after <unk>, which was never seen
    assert (first.zeroprobs, second.zeroprobs, both.zeroprobs) == (1, 2, 1)
    p = [(1 / 3 + 1) / 2, 1 / 3 / 2, 1 / 3]
    assert both.perplexity == math.inf
    assert both.perplexity_without_zeroprobs == pytest.approx(math.prod(p) ** (-1 / 3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["a b z\na c a\n", "z"])
def test_weights_are_tuned_on_the_other_tokens(bigrams, text):
    vocab = bigrams.vocab
    unigrams = lm.NgramLM.fit(vocab, vocab.encode_stream(TRAIN), 1, "mle")
    weights = lm.Mixture.tune([unigrams, bigrams], text).weights
    possible = lm.Mixture.tune([unigrams, bigrams], text).logprobs(text)[-1] > -math.inf
    assert possible.any() and weights.sum() == pytest.approx(1) and (weights >= 0).all()
    tuned = lm.Mixture.tune([unigrams, bigrams], text, cache=True)
    assert np.isfinite(tuned.weights).all() and tuned.weights.sum() == pytest.approx(1)


def test_neural_probabilities_are_never_zero():
    found = lm.Evaluation.of(np.array([-300.0, -1.0]))
    assert (found.zeroprobs, found.loss) == (0, 150.5)


def test_commands_print_what_srilm_prints(tmp_path, monkeypatch, rnnfast):
    monkeypatch.chdir(tmp_path)
    Path("train").write_text(TRAIN)
    Path("test").write_text(TEST)
    argv = ("ngram", "--train", "train", "--test", "test", "--order", 2, "--smoothing", "mle")
    says = f"4 of 9 tokens have probability zero; perplexity {PPL:.6g} without them"
    status, out, _ = rnnfast(*argv, "--arpa", "m", "--json", "r")
    assert status == 0 and "perplexity inf, inf without <unk>" in out and says in out
    report = json.loads(Path("r").read_text(), parse_constant=pytest.fail)
    assert (report["zeroprobs"], report["oov"]) == (4, 0)
    for name in ("perplexity", "perplexity_without_oov", "perplexity_per_word", "bits_per_byte"):
        assert report[name] is None
    assert report["perplexity_without_zeroprobs"] == pytest.approx(PPL)
    for models in (["m"], ["m", "m", "--tune", "test"]):
        status, out, _ = rnnfast("eval", *models, "--data", "test", "--json", "r")
        assert status == 0 and "perplexity inf" in out and says in out
        report = json.loads(Path("r").read_text(), parse_constant=pytest.fail)
        assert report["loss"] is report["perplexity"] is report["bits_per_character"] is None
        assert report["zeroprobs"] == 4
    status, out, _ = rnnfast("score", "m", "a a")
    assert status == 0 and "perplexity inf" in out and "2 of 3 tokens have" in out
    assert "zero" not in rnnfast("eval", "m", "--data", "train")[1]
