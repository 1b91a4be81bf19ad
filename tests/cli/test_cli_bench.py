"""`rnnfast bench`: what it writes and what it refuses. No test asserts a time."""

import json
import sys

import pytest
import torch

from rnnfast import bench, cli

pytestmark = pytest.mark.usefixtures("small_products")


def _run(*options):
    return cli.main(["bench", "--repeats", "1", "--shapes", "3,2,5,4", "2,1,3,3", *options])


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_command_writes_its_files(tmp_path, capsys, suffix):
    paths = tmp_path / "r.json", tmp_path / f"r.{suffix}"
    assert _run("--json", str(paths[0]), "--plot", str(paths[1])) == 0
    assert "geometric mean" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    written = json.loads(paths[0].read_text())
    assert [tuple(r[letter] for letter in "TBIH") for r in written["shapes"]] == [
        (3, 2, 5, 4),
        (2, 1, 3, 3),
    ]
    assert written["machine"]["cores"] >= 1
    assert written["build"]["isa"] in written["build"]["isas"]
    assert written["versions"]["torch"] == torch.__version__
    assert written["command"] == "rnnfast bench --shapes 3,2,5,4 2,1,3,3 --repeats 1"
    assert paths[1].read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])


@pytest.mark.parametrize(("cell", "theirs"), [("gru", "nn.GRU"), ("lstm", "nn.LSTM")])
def test_command_measures_gated_cells(tmp_path, capsys, cell, theirs):
    path = tmp_path / "r.json"
    assert _run("--cell", cell, "--json", str(path)) == 0
    printed = capsys.readouterr().out
    assert f"{cell.upper()}, float32" in printed and theirs in printed
    written = json.loads(path.read_text())
    assert written["cell"] == cell
    assert written["geometric_mean"]["training"].keys() == {theirs}
    command = f"rnnfast bench --cell {cell} --shapes 3,2,5,4 2,1,3,3 --repeats 1"
    assert written["command"] == command


def test_command_has_no_numpy_for_gated_cells(capsys):
    assert _run("--cell", "gru", "--numpy") == 2
    assert "--numpy is for the cell rnn only" in capsys.readouterr().err


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *args, **options: pytest.fail("measured"))


@pytest.mark.parametrize("shape", ["1,2,3", "1,2,3,4,5", "1,2,3,0", "a,b,c,d"])
def test_command_refuses_bad_shapes(shape, capsys, unmeasured):
    with pytest.raises(SystemExit):
        _run("--shapes", shape)
    assert "give four positive integers T,B,I,H" in capsys.readouterr().err


def test_command_refuses_an_unknown_plot_format(capsys, unmeasured):
    with pytest.raises(SystemExit):
        _run("--plot", "r.xyz")
    assert ".png or .svg" in capsys.readouterr().err


def test_command_finds_a_missing_folder_before_measuring(tmp_path, capsys, unmeasured):
    assert _run("--plot", str(tmp_path / "nowhere" / "r.png")) == 2
    assert "nowhere" in capsys.readouterr().err


def test_command_finds_matplotlib_missing_before_measuring(
    tmp_path, capsys, monkeypatch, unmeasured
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _run("--plot", str(tmp_path / "r.png")) == 2
    assert "pip install 'rnnfast[plot]'" in capsys.readouterr().err
