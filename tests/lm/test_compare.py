"""Comparison of all kinds of models on one text."""

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lm_helpers import PERIODIC, SMALL, WORDS

from rnnfast import cli, lm
from rnnfast.cli.compare import comparison_table
from rnnfast.lm.presets import SETTINGS
from rnnfast.lm.storage import read_settings

CORPUS = lm.Corpus(WORDS, "the cat sat on a dog\na cat and the dog\n" * 9, WORDS[:400] + "zebra\n")
NAMES = ["rnn", "window", "lstm", "1-gram", "2-gram", "3-gram", "5-gram"]
NAMES += ["window + 5-gram", "rnn + 5-gram", "window + rnn + 5-gram"]
NAMES += ["window + rnn + 5-gram + cache"]


@pytest.mark.parametrize("level", ["char", "word"])
def test_figures_are_those_of_the_models(tmp_path, level):
    corpus = CORPUS if level == "word" else lm.Corpus(PERIODIC, PERIODIC[:300], PERIODIC[:200])
    settings = {**SMALL, "level": level, "tied": False, "epochs": 1}
    results = {one["model"]: one for one in lm.compare(corpus, settings, tmp_path)}
    assert list(results) == NAMES
    for one in results.values():
        assert one["train_seconds"] > 0 and one["tokens_per_second"] > 0 and one["bytes"] > 0
    models = {name: lm.load(tmp_path / name) for name in ("window", "rnn", "lstm")}
    vocab = models["rnn"].vocab
    for order in (1, 2, 3, 5):
        train = vocab.encode_stream(corpus.train)
        models[f"{order}-gram"] = lm.NgramLM.fit(vocab, train, order, stream=True)
    ids = vocab.encode_stream(corpus.test)
    for name, model in models.items():
        one, each = results[name], model.logprobs(ids)
        assert one["test_perplexity"] == pytest.approx(np.exp(-each.mean()))
        assert one["valid_perplexity"] == pytest.approx(model.evaluate(corpus.valid).perplexity)
        assert one["weights"] is None
        words = np.exp(-each[ids != vocab.boundary].mean()) if level == "word" else None
        assert one["test_perplexity_of_words"] == pytest.approx(words)
    assert models["lstm"].rnn.mode == "LSTM"
    assert results["rnn"]["bytes"] == 4 * sum(p.numel() for p in models["rnn"].parameters())
    assert results["rnn"]["parameters"] == sum(p.numel() for p in models["rnn"].parameters())
    # A bigram model has a probability and a back-off weight of each token, and the bigrams.
    tokens, bigrams = (len(ngrams.keys) for ngrams in models["2-gram"].ngrams)
    assert results["2-gram"]["parameters"] == 2 * tokens + bigrams
    length = {"char": 400, "word": 80}[level]
    for name in NAMES[:7]:
        again = models[name].generate(length=length, temperature=0.7, seed=1)
        assert results[name]["sample"] == again
    assert all(results[name]["sample"] is None for name in NAMES[7:])
    names = ("window", "rnn", "5-gram")
    for key, inverse in (("tokens_per_second", True), ("bytes", False)):
        values = [results[name][key] for name in (*names, NAMES[-1])]
        *each, whole = [1 / value if inverse else value for value in values]
        assert sum(each) == pytest.approx(whole)
    parts = [models[name] for name in names]
    for cache, name in enumerate(NAMES[-2:]):
        mixture = lm.Mixture.tune(parts, corpus.valid, bool(cache))
        assert list(results[name]["weights"].values()) == pytest.approx(mixture.weights, abs=1e-6)
        assert results[name]["test_perplexity"] == pytest.approx(
            mixture.evaluate(corpus.test)[-1].perplexity
        )


def test_interrupted_comparison_goes_on(tmp_path):
    corpus = replace(lm.corpus.split(PERIODIC), test=PERIODIC[:99])
    settings = {**SMALL, "epochs": 1}
    steps = []

    def run(trainer):
        steps.append(trainer.state.step)
        trainer.run()
        steps.append(trainer.state.step)

    def interrupt(trainer):
        def stop(step):
            trainer.signals.received = 2 if step.step == 5 else None

        trainer.run(stop)

    with pytest.raises(lm.Interrupted):
        lm.compare(corpus, settings, tmp_path, interrupt)
    first = lm.compare(corpus, settings, tmp_path, run)
    last = steps[1]
    assert steps == [5, last, *[0, last] * 2] and last > 5
    again = lm.compare(corpus, settings, tmp_path, run)
    assert steps[6:] == [last] * 6
    for name, count in (("model", None), ("test_perplexity", None), ("train_seconds", 3)):
        assert [one[name] for one in again[:count]] == [one[name] for one in first[:count]]


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "valid", "test"):
        Path(name).write_text(getattr(CORPUS, name))
    argv = ["compare", "--train", "train", "--valid", "valid", "--test", "test"]
    argv += ["--level", "word", "--threads", "1", "--epochs", "1"]
    with pytest.raises(SystemExit):
        cli.main([*argv, "--plot", "p.txt"])
    assert cli.main([*argv, "--plot", "no/where.svg"]) == 2
    assert "cannot write no" in capsys.readouterr().err
    assert not Path("rnnfast-compare").exists()
    assert cli.main([*argv, "--out", "o", "--plot", "p.svg", "--json", "r"]) == 0
    out = capsys.readouterr().out
    results = json.loads(Path("r").read_text())
    assert [one["model"] for one in results] == NAMES
    for one in results:
        assert one["model"] in out and f"{one['test_perplexity']:.2f}" in out
    assert Path("p.svg").read_text().startswith("<?xml")
    assert cli.main([*argv, "--out", "o", "--min-count", "3"]) == 2
    assert "--min-count 3 was asked for" in capsys.readouterr().err


def test_page_of_one_text_that_is_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(PERIODIC)
    Path("figures").mkdir()
    argv = ["compare", "--data", "text", "--threads", "1", "--json", "r"]
    argv += ["--preset", "small", "--epochs", "1"]
    assert cli.main([*argv, "--markdown", "no/page.md"]) == 2
    assert not Path("rnnfast-compare").exists()
    assert cli.main([*argv, "--markdown", "page.md", "--plot", "figures/models.svg"]) == 0
    page, results = Path("page.md").read_text(), json.loads(Path("r").read_text())
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0][:4]] == ["model", "valid", "test", "parameters"]
    assert [row[0].strip() for row in rows[2:]] == NAMES
    for one, row in zip(results, rows[2:], strict=True):
        assert f" {one['test_perplexity']:.2f} " in row and f" {one['parameters']:,} " in row
        if one["sample"] is not None:
            heading = f"### {one['model']}\n\n    "
            sample = page.split(heading)[1].split("\n#")[0]
            assert re.sub("^    ", "", sample, flags=re.M).strip("\n") == one["sample"].strip("\n")
    assert "](figures/models.svg)" in page and Path("figures/models.svg").exists()
    config, *_ = read_settings("rnnfast-compare/lstm")
    assert config == lm.Config.defaults(preset="small", epochs=1, threads=1, cell="lstm")
    # A tenth of the text is for validation and test, half each.
    middle = len(PERIODIC) * 95 // 100
    test = lm.load("rnnfast-compare/rnn").evaluate(PERIODIC[middle:])
    assert results[0]["test_perplexity"] == pytest.approx(test.perplexity)


def test_texts_are_read_once(tmp_path, monkeypatch):
    read = []
    encode = lm.Vocabulary.encode_stream

    def noted(self, text, *more, **options):
        read.append(text)
        return encode(self, text, *more, **options)

    monkeypatch.setattr(lm.Vocabulary, "encode_stream", noted)
    settings = {**SMALL, "level": "word", "tied": False, "epochs": 1}
    lm.compare(CORPUS, settings, tmp_path)
    texts = [text for text in read if text]
    assert texts == [CORPUS.train, CORPUS.valid, CORPUS.test]


@pytest.mark.parametrize("gone", ["rnn", "lstm"])
def test_models_of_one_vocabulary_and_level_alone(tmp_path, gone):
    settings = {**SMALL, "level": "word", "tied": False, "epochs": 1}
    lm.compare(CORPUS, settings, tmp_path)
    level = {name: value for name, value in settings.items() if name != "level"}
    with pytest.raises(lm.UserError, match=r"--level char .* in .*rnn has word"):
        lm.compare(CORPUS, level, tmp_path)
    shutil.rmtree(tmp_path / gone)
    trained = []
    corpus = replace(CORPUS, vocab=WORDS + "zebra zebra\n")
    with pytest.raises(lm.UserError, match=r"has another vocabulary than .* another --out"):
        lm.compare(corpus, settings, tmp_path, trained.append)
    assert all(trainer.finished for trainer in trained) and not (tmp_path / gone).exists()


@pytest.mark.parametrize("given", [[], ["--data", "text"]], ids=str)
def test_rnnfast_train_does_not_resume_a_split_text(tmp_path, monkeypatch, capsys, given):
    """The message says what goes on with the run."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(PERIODIC)
    command = ["compare", "--data", "text", "--threads", "1", "--preset", "small", "--epochs"]
    monkeypatch.setitem(SETTINGS["char"], "small", SMALL)
    assert cli.main([*command, "1"]) == 0
    resume = ["train", "--resume", "rnnfast-compare/rnn", "--epochs", "2", *given]
    assert cli.main(resume) == 2
    assert "rnnfast compare goes on with its own runs: give it" in capsys.readouterr().err
    assert cli.main([*command, "2"]) == 0
    assert read_settings("rnnfast-compare/rnn")[0].epochs == 2


@pytest.mark.parametrize("width", [20, 80, None])
def test_figures_are_whole_in_any_width(width, monkeypatch):
    """None: not a terminal. Then a model is a line."""
    file = io.StringIO()
    if width is not None:
        file.isatty = lambda: True
        monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", file)
    keys = ("valid_perplexity", "test_perplexity", "test_perplexity_of_words", "train_seconds")
    models = [
        {"model": name, "bytes": 123456789 * i, "tokens_per_second": 1234567 * i}
        | {"parameters": 7654321 * i}
        | {key: (10 * k + i) * 1111.25 for k, key in enumerate(keys, 1)}
        for i, name in enumerate(NAMES, 1)
    ]
    output = cli.Output(None)
    output.text.print(comparison_table(models))
    for one in models:
        shown = [f"{one[key]:.2f}" for key in keys[:3]]
        shown += [f"{one['bytes'] / 1e6:.1f}", f"{one['train_seconds']:.1f}"]
        shown += [f"{one['parameters']:,}", f"{one['tokens_per_second']:,}"]
        (line,) = [line for line in file.getvalue().splitlines() if shown[-1] in line]
        assert all(figure in line for figure in shown)
        assert width is not None or one["model"] in line
