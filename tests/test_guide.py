"""The guide to language models: its commands run, in their order and as they stand."""

import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_helpers import ROOT

from rnnfast import cli

GUIDE = (ROOT / "docs" / "language-models.md").read_text()
LINES = 1000  # of the guide's text, which has more than ten times as many


def shell(command):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `python` is this one
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env={**os.environ, "PATH": path},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rnnfast(command):
    """Runs `rnnfast ...` in this process; where it has a minute, for one pass over the text."""
    argv = shlex.split(command.replace("--max-seconds 60", "--epochs 1"))[1:]
    assert cli.main(argv) == 0, command
    return argv[0]


def test_every_command_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ran = set()
    try:
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.M | re.S):
            if language == "python":
                exec(compile(block, "language-models.md", "exec"), {})
            for line in block.splitlines() if language == "sh" else ():
                before, pipe, after = line.rpartition("| rnnfast ")
                if pipe:
                    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(shell(before))))
                    ran.add(rnnfast(f"rnnfast {after}"))
                elif line.startswith("rnnfast "):
                    if "bpe" not in line or importlib.util.find_spec("tokenizers"):
                        ran.add(rnnfast(line))
                else:
                    shell(line)
                    if line.endswith("> book.txt"):
                        lines = Path("book.txt").read_text().splitlines(keepends=True)
                        assert len(lines) > 10 * LINES
                        Path("book.txt").write_text("".join(lines[:LINES]))
    finally:
        torch.set_num_threads(threads)
    assert ran == {"ngram", "train", "plot", "eval", "compare", "generate", "score", "complete"}
    assert all(Path(name).read_text().startswith("<?xml") for name in ("curves.svg", "models.svg"))
