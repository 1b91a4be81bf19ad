"""Fixtures for the tests of the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY
from lm_helpers import PERIODIC

from rnnfast import cli


@pytest.fixture
def folder_with_text(tmp_path, monkeypatch):
    """Run a test in its own folder, with the file `text`, and restore torch's threads after it."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(PERIODIC)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train a small model and return its folder and report. Tests change copies only."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").write_text(PERIODIC)
    argv = ["train", "--data", folder / "text", "--out", folder / "model", *TINY, "--epochs", "2"]
    assert cli.main([*map(str, argv), "--json", str(folder / "report.json")]) == 0
    return folder / "model", json.loads((folder / "report.json").read_text())


@pytest.fixture
def model(trained):
    """Copy the trained model into the folder of the test."""
    shutil.copytree(trained[0], "model")
    return Path("model")
