"""The command line as a process: signals, pipes, exit statuses, JSON on standard output."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import TINY, process
from lm_helpers import ROOT

from rnnfast import cli, lm

pytestmark = pytest.mark.usefixtures("folder_with_text")


def test_json_on_stdout_is_alone_there(rnnfast):
    argv = ("train", "--data", "text", *TINY, "--epochs", 1, "--out", "m", "--json", "-")
    status, out, err = rnnfast(*argv)
    assert status == 0 and json.loads(out)["model_dir"] == "m" and "A sample" in err
    status, out, err = rnnfast("generate", "m", "--seed", 1, "--length", 5, "--json", "-")
    assert status == 0 and json.loads(out).keys() == {"text"} and json.loads(out)["text"] in err
    status, out, err = rnnfast("score", "m", "a1", "--json", "-")
    assert status == 0 and json.loads(out)[0]["text"] == "a1" and "log p" in err


def interrupt(number, *, again=False):
    argv = ("train", "--max-seconds", 600, "--nhid", 32, "--emsize", 8, "--threads", 1)
    running = process(*argv, "--out", "run", "--log-interval", 50)
    seen = ""
    while not (line := running.stderr.readline()).startswith("step 50 "):
        seen += line
        assert line, seen
    running.send_signal(number)
    if again:
        running.send_signal(number)
    out, err = running.communicate(timeout=120)
    return running.returncode, out, err


def test_ctrl_c_saves_a_model_that_goes_on(rnnfast):
    status, out, err = interrupt(signal.SIGINT, again=True)
    assert status == 130 and "Traceback" not in err
    assert "saved in run; continue with rnnfast train --resume run" in out
    step = int(re.search(r"stopped at step (\d+)", out)[1])
    Path("line").write_text("The class\n")
    assert rnnfast("eval", "run", "--data", "line")[0] == 0
    assert rnnfast("generate", "run", "--length", 5)[0] == 0
    # Two more seconds by the clock of the run are enough for some steps.
    seconds = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])["seconds"] + 2
    assert rnnfast("train", "--resume", "run", "--max-seconds", seconds, "--json", "r")[0] == 0
    assert json.loads(Path("r").read_text())["steps"] > step


def test_sigterm_saves_too():
    status, out, err = interrupt(signal.SIGTERM)
    assert (status, err) == (128 + signal.SIGTERM, "") and "saved in run" in out
    lm.load("run")


def test_interrupted_before_training_is_quiet(rnnfast, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rnnfast.lm.training.diagnosis.NgramLM.fit", stop)
    began = time.monotonic()
    status, _, err = rnnfast("train", "--data", "text", *TINY, "--epochs", 1, "--out", "m")
    assert status == 130 and err.endswith("rnnfast: interrupted\n")
    assert time.monotonic() - began < 30
    lm.load("m")


def test_closed_pipe_is_no_traceback(trained):
    running = process("generate", trained[0], "--length", 100_000, "--seed", 1)
    running.stdout.read(10)
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait(120) == 128 + signal.SIGPIPE


def test_ctrl_c_ends_a_long_text(trained):
    running = process("generate", trained[0], "--length", 10**12, "--seed", 1)
    running.stdout.read(10)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (130, "rnnfast: interrupted\n")


def test_json_to_where_standard_output_goes(model):
    """A file keeps what is printed before and after the JSON, and what waits in a buffer."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    argv = ["generate", model, "--length", 5, "--seed", 1, "--json", "/dev/stdout"]
    command = [sys.executable, "-m", "rnnfast", *map(str, argv)]
    Path("file").write_text("before\n")
    with open("file", "ab") as file:
        subprocess.run(command, stdout=file, env=environment, check=True)
    printed, _, report = Path("file").read_text().partition("{")
    text = json.loads("{" + report)["text"]
    assert printed == "before\n" + text + ("" if text.endswith("\n") else "\n")


@pytest.mark.parametrize("argv", [[], ["fly"], ["train", "--nhid", "many"], ["eval", "model"]])
def test_wrong_usage_is_status_two(rnnfast, argv):
    assert rnnfast(*argv)[0] == 2


def test_the_process_itself_exits_with_two():
    running = process("train", "--data", "nowhere")
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out, err.count("\n")) == (2, "", 1)


def test_a_bug_shows_its_traceback(model, monkeypatch):
    monkeypatch.setattr(lm.RNNLM, "score", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["score", "model", "a"])
