"""Learning curves of runs."""

import json
from pathlib import Path

import pytest
from lm_helpers import PERIODIC, small_config

from rnnfast import cli, lm
from rnnfast.lm.training import curves

pytest.importorskip("matplotlib")


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of different lengths, and their reports."""
    root = tmp_path_factory.mktemp("runs")
    corpus = lm.corpus.split(PERIODIC)
    config = {"log_interval": 20, "nhid": 8}
    names = {"short": 2, "long [1]": 3}  # with what rich would take for markup
    return {
        root / name: lm.train(small_config(epochs=epochs, **config), corpus, root / name)[1]
        for name, epochs in names.items()
    }


@pytest.mark.parametrize("x", curves.AXES)
def test_curves_are_those_of_the_runs(runs, x):
    logs = {str(run): curves.read_log(run) for run in runs}
    lines = {line.get_label(): line.get_xydata() for line in curves.figure(logs, x).axes[0].lines}
    assert len(lines) == 4
    for run, report in runs.items():
        key = {"steps": "step", "epochs": "epoch", "seconds": "seconds"}[x]
        expected = [[record[key], record["valid_loss"]] for record in report["curve"]]
        assert lines[f"{run}, valid"].tolist() == expected
        train = lines[f"{run}, train"]
        assert len(train) == report["steps"] // 20 + len(expected)
        assert (train[1:, 0] >= train[:-1, 0]).all()
        assert train[-1, 1] == report["curve"][-1]["train_loss"]


def test_command(runs, somewhere, capsys):
    names = list(map(str, runs))
    assert cli.main(["plot", *names, "--json", "r"]) == 0
    out = capsys.readouterr().out
    for one, (run, report) in zip(json.loads(Path("r").read_text()), runs.items(), strict=True):
        assert one["run"] == str(run) and one["best_valid_loss"] == report["valid_loss"]
        assert one["log"] == curves.read_log(run)
        assert f"{run}: best validation {report['valid_loss']:.4f} nats, at step" in out
        assert f"at step {report['best_step']}\n" in out
    assert Path("learning-curves.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["plot", names[0], "--x", "seconds", "--output", "c.svg"]) == 0
    picture = Path("c.svg").read_text()
    assert picture.startswith("<?xml") and "seconds" in picture


def test_log_of_a_killed_run(tmp_path):
    whole = '{"step": 1, "train_loss": 3}\n{"step": 2, "train_loss": 2}\n'
    (tmp_path / "log.jsonl").write_text(whole + '{"step": 3, "trai')
    assert curves.curve(curves.read_log(tmp_path), "train") == ([1, 2], [3, 2])
    assert curves.curve(curves.read_log(tmp_path), "valid") == ([], [])


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (None, "run has no log.jsonl: give a folder that rnnfast train made"),
        ("", "the log of run has no loss yet"),
        ('{"step": 1, "train_loss": null}\n', "the log of run has no loss yet"),
        ('{"step": 1}\n{"st\n{"step": 2}\n', "log.jsonl, line 2, is not a record"),
        ("3\n4\n", "log.jsonl, line 1, is not a record"),
        (b"\xff\n\n", "log.jsonl, line 1, is not a record"),
    ],
)
def test_bad_runs(somewhere, capsys, log, says):
    Path("run").mkdir()
    if log is not None:
        Path("run/log.jsonl").write_bytes(log if isinstance(log, bytes) else log.encode())
    assert cli.main(["plot", "run"]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err and err.count("\n") == 1
    assert not Path("learning-curves.png").exists()


def test_bad_plots(somewhere, capsys):
    Path("file").touch()
    for argv, says in (
        (["nowhere"], "nowhere has no log.jsonl"),
        (["file"], "file has no log.jsonl"),
        (["file", "--output", "no/where.png"], "cannot write no"),
    ):
        assert cli.main(["plot", *argv]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["plot", "file", "--output", "curves.txt"])
