"""`rnnfast diagnose`: what it prints, writes and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from lm_helpers import PERIODIC, small_config, small_model

from rnnfast import cli, lm


def test_diagnose(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(PERIODIC)
    lm.save(small_model(nlayers=2), small_config(nlayers=2), "model")
    argv = ["diagnose", "model", "--data", "text", "--steps", "12"]
    assert cli.main([*argv, "--json", "report.json", "--plot", "flow.svg"]) == 0
    out = capsys.readouterr().out
    report = json.loads(Path("report.json").read_text())
    assert np.shape(report["gradient_norms"]) == (2, 12) and report["lanes"] == 32
    assert f"{report['gradient_norms'][1][-11]:.3g}" in out
    assert f"spectral radius of W_hh {report['spectral_radius'][1]:.4f}" in out
    assert Path("flow.svg").read_text().lstrip().startswith("<?xml")
    Path("short").write_text("a1b1")
    lm.save(small_model(model="window"), small_config(model="window"), "window")
    for change, message in (
        (["--steps", "0"], "--steps must be at least 1"),
        (["--data", "short"], "too few to go 12 steps back"),
        (["--data", "none"], "cannot read none"),
        (["--plot", "no/where.svg"], "cannot write"),
    ):
        assert cli.main([*argv, *change]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["diagnose", "window", "--data", "text"]) == 2
    assert "window is no Elman RNN" in capsys.readouterr().err
