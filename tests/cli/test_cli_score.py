"""`rnnfast eval`, `generate` and `score`: what they print and what they write."""

import json
from pathlib import Path

import pytest
from cli_helpers import TINY
from lm_helpers import PERIODIC, WORDS

from rnnfast import lm

pytestmark = pytest.mark.usefixtures("folder_with_text")


def test_eval_repeats_what_train_said(rnnfast, trained):
    folder, report = trained
    Path("valid").write_text(lm.corpus.split(PERIODIC).valid)
    argv = ("eval", folder, "--data", "valid", "--threads", 1)
    status, out, err = rnnfast(*argv, "--json", "-")
    result = json.loads(out)
    assert status == 0
    keys = """tokens loss perplexity bits_per_token perplexity_per_word bits_per_character
        bits_per_byte zeroprobs perplexity_without_zeroprobs"""
    assert result.keys() == set(keys.split())
    assert result["loss"] == report["valid_loss"]
    assert result["bits_per_character"] == pytest.approx(result["bits_per_token"])
    assert result["perplexity"] == report["valid_perplexity"]
    assert f"{result['loss']:.4f} nats" in err
    status, out, err = rnnfast(*argv)
    assert status == 0 and f"{result['loss']:.4f} nats" in out and not err


def test_generate(rnnfast, model):
    argv = ("generate", model, "--prompt", "a1", "--length", 30, "--seed", 7)
    first, again = (rnnfast(*argv) for _ in range(2))
    assert first == again and first[0] == 0 and first[1].startswith("a1")
    assert rnnfast(*argv, "--json", "t")[1] == first[1]
    text = json.loads(Path("t").read_text())["text"]
    assert len(text) == 32 and first[1] in (text, text + "\n")
    assert text == lm.load(model).generate("a1", 30, seed=7)
    greedy = rnnfast("generate", model, "--length", 9, "--top-k", 1)
    assert greedy == rnnfast("generate", model, "--length", 9, "--temperature", 0)
    assert greedy == rnnfast("generate", model, "--length", 9, "--top-p", 1e-9)


def test_score(rnnfast, model):
    status, out, _ = rnnfast("score", model, "a1b1a2b2", "b", "", "--json", "s")
    results = json.loads(Path("s").read_text())
    results.sort(key=lambda result: -len(result["text"]))
    assert status == 0 and [result["text"] for result in results] == ["a1b1a2b2", "b", ""]
    for result in results:
        assert result.keys() == {"text", "logprob", "tokens"}
        total = sum(token["logprob"] for token in result["tokens"])
        assert result["logprob"] == pytest.approx(total)
        assert f"{result['logprob']:.4f}" in out
    Path("line").write_text("a1b1a2b2\n")
    _, out, _ = rnnfast("eval", model, "--data", "line", "--json", "-")
    assert -json.loads(out)["loss"] * 9 == pytest.approx(results[0]["logprob"])


def test_commands_on_an_arpa_file(rnnfast):
    Path("words").write_text(WORDS)
    assert rnnfast("ngram", "--train", "words", "--arpa", "m", "--json", "r")[0] == 0
    model = lm.load("m")
    _, out, _ = rnnfast("eval", "m", "--data", "words", "--json", "-")
    assert json.loads(out)["loss"] == model.evaluate(WORDS).loss
    _, out, _ = rnnfast("score", "m", "the zebra sat", "--json", "-")
    assert json.loads(out)[0]["logprob"] == model.score("the zebra sat").logprob
    argv = ("generate", "m", "--prompt", "the", "--length", 9, "--seed", 2)
    status, out, _ = rnnfast(*argv, "--top-p", 0.9, "--temperature", 0.7)
    expected = model.generate("the", 9, seed=2, top_p=0.9, temperature=0.7)
    assert status == 0 and out.rstrip("\n") == expected.rstrip("\n")


def test_eval_of_a_mixture(rnnfast):
    Path("words").write_text(WORDS)
    Path("other").write_text("the cat sat on a dog\na cat and the dog\n" * 9)
    argv = ("train", "--data", "words", "--level", "word", "--epochs", 1, "--out", "m", *TINY)
    assert rnnfast(*argv, "--no-tied")[0] == 0
    assert rnnfast("ngram", "--train", "words", "--min-count", 2, "--arpa", "n")[0] == 0
    argv = ("eval", "m", "n", "--cache", "--tune", "other", "--data", "words", "--dynamic", 0.1)
    status, out, _ = rnnfast(*argv, "--json", "r")
    report = json.loads(Path("r").read_text())
    mixture = lm.Mixture.tune([lm.load("m"), lm.load("n")], Path("other").read_text(), True, 0.1)
    *each, whole = mixture.evaluate(WORDS)
    assert report["loss"] == pytest.approx(whole.loss) and report["tokens"] == whole.tokens
    assert report["cache_size"] == mixture.cache_size
    components = report["components"]
    assert [one["model"] for one in components] == ["m", "n", "cache"]
    assert [one["weight"] for one in components] == pytest.approx(mixture.weights, abs=1e-6)
    expected = [*(one.perplexity for one in each), None]
    assert [one["perplexity"] for one in components] == pytest.approx(expected)
    assert status == 0 and f"perplexity {report['perplexity']:.3f}" in out and "cache" in out
    _, out, _ = rnnfast("eval", "m", "--data", "words", "--dynamic", 0.1, "--json", "-")
    assert "components" not in json.loads(out)
    assert json.loads(out)["perplexity"] == pytest.approx(each[0].perplexity)


def test_the_figures_of_a_sentence_have_one_sign_and_a_singular(rnnfast, model):
    status, out, _ = rnnfast("score", "model", "")
    assert status == 0 and "1 token " in out
    assert "cross-entropy -" not in out and " bits per token" in out
