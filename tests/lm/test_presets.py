"""Presets: what they set, what overrides them, and that runs keep them."""

import json
from dataclasses import asdict

import pytest
from lm_helpers import CORPUS, SMALL, WORDS, zipf

from rnnfast import cli, lm
from rnnfast.lm.data.vocabulary import LEVELS
from rnnfast.lm.presets import PRESETS, SETTINGS
from rnnfast.lm.training.runs import resume


def changed(config, usual):
    """Return the settings in which two configs differ, except those that depend on the width."""
    usual = asdict(usual)
    differs = {name: value for name, value in asdict(config).items() if value != usual[name]}
    return {name: value for name, value in differs.items() if name not in ("preset", "lr")}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_settings_and_the_defaults(level, preset):
    usual = lm.Config.defaults(level)
    config = lm.Config.defaults(level, preset=preset)
    settings = SETTINGS[level][preset]
    assert config.preset == preset and config.epochs == settings["epochs"]
    assert {name: getattr(config, name) for name in settings} == settings
    assert changed(config, usual).keys() <= settings.keys()
    explicit = lm.Config.defaults(level, **settings)
    assert changed(config, explicit) == {} and config.lr == explicit.lr


def test_what_is_given_overrides_the_preset():
    config = lm.Config.defaults("word", preset="large", nhid=32, emsize=32, dropout=0.1, lr=0.5)
    assert (config.nhid, config.dropout, config.lr) == (32, 0.1, 0.5)
    assert config.epochs == SETTINGS["word"]["large"]["epochs"]
    # A budget of time replaces the number of epochs, and both together stand.
    assert lm.Config.defaults("word", preset="large", max_seconds=9.0).epochs is None
    both = lm.Config.defaults("word", preset="large", max_seconds=9.0, epochs=2)
    assert (both.epochs, both.max_seconds) == (2, 9.0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "kind",
    [
        {"level": "word", "model": "window"},
        {"level": "char", "model": "window"},
        {"level": "word", "adaptive": True},
        {"level": "word", "cell": "lstm"},
        {"level": "bpe", "optimizer": "sgd"},
    ],
    ids=str,
)
def test_presets_fit_every_kind_of_model(kind, preset):
    config = lm.Config.defaults(**kind, preset=preset)
    assert {name: getattr(config, name) for name in kind} == kind
    assert config.optimizer == "adamw" or config.lr == lm.Config.defaults(**kind).lr


def test_an_unknown_preset():
    with pytest.raises(lm.UserError, match="preset must be small or medium or large, not huge"):
        lm.Config.defaults(preset="huge")


@pytest.mark.parametrize("name", ["preset", "optimizer"])
def test_a_choice_of_another_type(name):
    with pytest.raises(lm.UserError, match=rf"{name} must be of type str.*, not \['small'\]"):
        lm.Config.defaults(**{name: ["small"]})


def test_a_run_keeps_its_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text(zipf(3000))
    sizes = ["--nhid", "16", "--emsize", "16", "--batch-size", "4", "--bptt", "10"]
    argv = ["train", "--level", "word", "--data", "text", "--preset", "small", "--threads", "1"]
    assert cli.main([*argv, *sizes, "--epochs", "1", "--out", "m"]) == 0
    settings = json.loads((tmp_path / "m" / "config.json").read_text())["config"]
    assert settings["preset"] == "small" and settings["nhid"] == 16
    assert settings["sampled_softmax"] == SETTINGS["word"]["small"]["sampled_softmax"]
    assert cli.main(["train", "--resume", "m", "--preset", "large", "--epochs", "2"]) == 2
    assert "--preset large was asked for" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "m", "--preset", "small", "--epochs", "2"]) == 0
    assert lm.load("m").sampled_softmax == settings["sampled_softmax"]


def test_a_preset_on_the_command_line_is_the_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SETTINGS["char"]["small"], "epochs", 1)
    (tmp_path / "text").write_text(WORDS)
    argv = ["train", "--data", "text", "--preset", "small", "--nhid", "8", "--threads", "1"]
    assert cli.main([*argv, "--batch-size", "2", "--bptt", "9", "--json", "r", "--out", "m"]) == 0
    assert json.loads((tmp_path / "r").read_text())["epochs"] == 1


def test_runs_of_earlier_versions_have_no_preset(tmp_path):
    config = lm.Config.defaults(**SMALL, epochs=1)
    lm.train(config, CORPUS, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    about = json.loads(path.read_text())
    for name in ("preset", "sampled_softmax"):
        del about["config"][name]
    path.write_text(json.dumps(about))
    assert resume(tmp_path / "m", {"epochs": 2}, CORPUS).config.preset is None
