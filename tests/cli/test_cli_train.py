"""`rnnfast train`: what it prints and what it writes."""

import json
import re
from pathlib import Path

import pytest
from cli_helpers import TINY, contents
from lm_helpers import DATA, PERIODIC, WORDS, needs_brown

from rnnfast import lm

pytestmark = pytest.mark.usefixtures("folder_with_text")


def test_report_has_the_figures(trained):
    _, report = trained
    expected = """level vocab_size parameters epochs steps tokens seconds tokens_per_second
        valid_loss valid_perplexity valid_bits_per_token test_loss test_perplexity model_dir
        curve config baselines torch threads"""
    for key in expected.split():
        assert key in report
    assert report["level"] == "char" and report["vocab_size"] == 5
    assert report["epochs"] == 2 and report["steps"] == 2 * 81
    assert report["test_loss"] is None and report["test_perplexity"] is None
    assert report["threads"] == 1 and len(report["curve"]) == 2
    unigram = report["baselines"]["unigram"]["valid_loss"]
    assert report["valid_loss"] < unigram


def test_train_prints_a_table_a_sample_and_where(rnnfast):
    status, out, err = rnnfast("train", "--data", "text", *TINY, "--epochs", 1)
    assert status == 0
    for words in ("unigram, valid", "bigram, valid", "RNN, valid", "A sample", "rnnfast-model;"):
        assert words in out
    assert re.search(r"^step 50  epoch 0.62 .* loss .* lr .* tokens/s$", err, re.M)
    assert re.search(r"valid \d.\d+ nats, \d.\d+ bits, perplexity", err)
    assert lm.load("rnnfast-model").vocab.level == "char"
    # A second run does not change the model of the first.
    before = contents("rnnfast-model")
    assert rnnfast("train", "--data", "text", *TINY, "--epochs", 1)[0] == 0
    assert contents("rnnfast-model") == before and Path("rnnfast-model-2").is_dir()


def test_no_arguments_train_on_the_builtin_text(rnnfast):
    status, out, _ = rnnfast("train", "--epochs", 1, "--nhid", 64, "--threads", 1)
    assert status == 0
    rows = re.findall(r"(unigram|bigram|RNN), valid\D+([\d.]+)", out)
    unigram, bigram, rnn = (float(loss) for _, loss in rows)
    assert bigram < unigram and rnn < unigram
    status, out, _ = rnnfast("score", "rnnfast-model", "The class statement [defines]")
    assert status == 0 and "The class statement [defines]" in out


def test_splits_of_their_own_and_a_test_set(rnnfast):
    Path("valid").write_text(PERIODIC[:300])
    Path("test").write_text(PERIODIC[:120])
    files = ("--train", "text", "--valid", "valid", "--test", "test")
    argv = ("train", *files, *TINY, "--epochs", 1, "--out", "m", "--json", "r")
    assert rnnfast(*argv)[0] == 0
    report = json.loads(Path("r").read_text())
    _, out, _ = rnnfast("eval", "m", "--data", "test", "--json", "-")
    assert json.loads(out)["loss"] == report["test_loss"] and json.loads(out)["tokens"] == 120


def test_word_level_defaults(rnnfast):
    Path("words").write_text("the cat sat on the mat\nthe dog sat\n" * 100)
    argv = ("train", "--data", "words", "--level", "word", "--epochs", 1, "--bptt", 20)
    assert rnnfast(*argv, "--threads", 1, "--out", "m", "--json", "r")[0] == 0
    report = json.loads(Path("r").read_text())
    assert report["config"]["tied"] and report["config"]["nhid"] == 200
    status, out, _ = rnnfast("score", "m", "the zebra sat")
    assert status == 0 and "<unk>" in out and "<eos>" in out
    status, out, _ = rnnfast("generate", "m", "--prompt", "the", "--sentence", "--seed", 1)
    assert status == 0 and out.startswith("the") and out.count("\n") == 1


def test_words_of_another_text(rnnfast):
    Path("words").write_text(WORDS)
    Path("others").write_text("zebra cat cat " * 300)
    argv = ("train", "--data", "words", "--vocab", "others", "--epochs", 1, "--threads", 1)
    argv += ("--batch-size", 4, "--bptt", 10, "--min-count", 500)
    assert rnnfast(*argv, "--level", "word", "--out", "m")[0] == 0
    assert lm.load("m").vocab.tokens == ["<eos>", "<unk>", "cat"]
    assert rnnfast("train", "--resume", "m", "--epochs", 2, "--threads", 1)[0] == 0
    assert rnnfast(*argv, "--level", "char", "--out", "c", *TINY)[0] == 0
    assert set(lm.load("c").vocab.tokens) == set(WORDS + "zebra")


def test_window(rnnfast):
    Path("words").write_text(WORDS)
    argv = ("train", "--data", "words", "--level", "word", "--epochs", 1, "--model", "window")
    argv += ("--order", 3, *TINY, "--direct", "--no-tied")
    status, out, _ = rnnfast(*argv, "--out", "m", "--json", "r")
    assert status == 0 and "tanh window of 3 tokens, 1 x 16 units" in out
    assert "window of 3 tokens, valid" in out and "RNN" not in out
    report = json.loads(Path("r").read_text())
    size = report["vocab_size"]
    assert report["parameters"] == 8 * size + 17 * 16 + (32 + 1) * size
    assert lm.load("m").order == 3
    _, out, _ = rnnfast("score", "m", "the cat sat", "--json", "-")
    assert json.loads(out)[0]["logprob"] == lm.load("m").score("the cat sat").logprob


def test_lstm(rnnfast):
    argv = ("train", "--data", "text", *TINY, "--epochs", 1, "--cell", "lstm", "--nlayers", 2)
    status, out, _ = rnnfast(*argv, "--out", "m", "--json", "r")
    assert status == 0 and "\nLSTM, 2 x 16 units" in out and "LSTM, valid" in out
    assert json.loads(Path("r").read_text())["config"]["cell"] == "lstm"
    status, out, _ = rnnfast("generate", "m", "--seed", 1, "--length", 20, "--json", "t")
    text = json.loads(Path("t").read_text())["text"]
    assert status == 0 and text == lm.load("m").generate(length=20, seed=1)


def test_resume_goes_on(rnnfast, model):
    before = contents(model)
    status, _, err = rnnfast("train", "--resume", model)
    assert status == 2 and "raise --epochs" in err and contents(model) == before
    status, _, _ = rnnfast("train", "--resume", model, "--epochs", 3, "--json", "r")
    report = json.loads(Path("r").read_text())
    assert status == 0 and report["epochs"] == 3 and len(report["curve"]) == 3
    assert report["config"]["nhid"] == 16 and report["model_dir"] == "model"


def test_overwrite_replaces(rnnfast, model):
    argv = ("train", "--data", "text", *TINY, "--epochs", 1, "--out", model)
    assert rnnfast(*argv)[0] == 2
    assert rnnfast(*argv, "--nhid", 8, "--overwrite")[0] == 0
    assert lm.load(model).rnn.hidden_size == 8


@needs_brown
def test_brown_by_words(rnnfast):
    # Parts of the texts, because the whole corpus takes minutes.
    for split, size in (("train", 400_000), ("valid", 40_000), ("test", 20_000)):
        text = (DATA / "brown" / f"{split}.txt").read_text()[:size]
        Path(split).write_text(text)
    files = ("--train", "train", "--valid", "valid", "--test", "test", "--level", "word")
    argv = ("train", *files, "--nhid", 64, "--emsize", 64, "--min-count", 5, "--threads", 1)
    assert rnnfast(*argv, "--epochs", 2, "--out", "m", "--json", "r")[0] == 0
    report = json.loads(Path("r").read_text())
    assert report["valid_perplexity"] < report["baselines"]["unigram"]["valid_perplexity"]
    _, out, _ = rnnfast("eval", "m", "--data", "test", "--threads", 1, "--json", "-")
    assert json.loads(out)["perplexity"] == report["test_perplexity"]


@pytest.mark.parametrize(("lr", "has_diverged"), [("100", True), ("1e-9", False)])
def test_a_training_that_diverged_says_so(rnnfast, lr, has_diverged):
    """The loss may be huge and still finite. A model that has learnt nothing has not diverged."""
    argv = ("train", "--data", "text", "--out", "m", *TINY, "--lr", lr, "--epochs", "1")
    status, out, err = rnnfast(*argv)
    assert status == 0 and "Saved in m" in out
    warned = [line for line in err.splitlines() if line.startswith("rnnfast: warning:")]
    assert len(warned) == has_diverged
    for line in warned:
        assert "the training diverged: the validation perplexity is" in line
        assert "lower --lr, which was 100" in line
