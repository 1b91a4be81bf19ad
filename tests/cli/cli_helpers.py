"""Helpers for the tests of the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from lm_helpers import ROOT

TINY = ["--emsize", "8", "--nhid", "16", "--batch-size", "4", "--bptt", "10"]
TINY += ["--threads", "1", "--lr", "0.01"]


def contents(folder):
    """Return the content of every file in a folder, to check that nothing has changed."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def heed_ctrl_c():
    """Stop on Ctrl-C: a process in the background of a shell, as of tests, would ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def process(*argv, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "rnnfast", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
        preexec_fn=heed_ctrl_c,
        **options,
    )
