"""`rnnfast doctor`: the report, and that it comes also where rnnfast is broken."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_helpers import process
from lm_helpers import ROOT

import rnnfast
from rnnfast import lm
from rnnfast._common import doctor as program
from rnnfast.cli import doctor, train


def test_the_process_reports_that_all_is_well():
    running = process("doctor", "--json", "-")
    out, err = running.communicate(timeout=300)
    report = json.loads(out)
    assert (running.returncode, err, report["problems"]) == (0, "", [])
    assert report["rnnfast"] == rnnfast.__version__
    assert report["packages"]["torch"] == report["torch"]["version"] == torch.__version__
    assert report["build"]["isas"] == rnnfast.build_info()["isas"]
    assert report["torch"]["dlpack_exchange_api"] and report["cuda"]["kernels"]
    assert 0 < report["self_test"]["cpu"] < doctor.TOLERANCE
    assert report["bf16"].keys() == {"cpu", "cuda"}
    if sys.platform == "linux":
        assert len(report["openmp_runtimes"]) == rnnfast.build_info()["openmp"]


def test_a_report_that_cannot_be_written_is_one_line():
    running = process("doctor", "--json", "no/where")
    _, err = running.communicate(timeout=300)
    assert (running.returncode, err.count("\n")) == (2, 1) and "cannot write no/where" in err


def test_the_command_prints_what_the_process_prints(capsys, tmp_path):
    path = tmp_path / "report.json"
    assert rnnfast.cli.main(["doctor", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed == program.as_text(json.loads(path.read_text())) + "\n"
    assert "  isa: " in printed and printed.endswith("all is well\n")


def problem(folder, root):
    """Run the command in `folder` with the package in `root`, and return what is broken."""
    command = [sys.executable, "-m", "rnnfast", "doctor", "--json", "report"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "")
    assert "Traceback" not in run.stdout and run.stdout.endswith("rnnfast cannot work here\n")
    report = json.loads((folder / "report").read_text())
    assert report["python"] and report["packages"]["torch"]
    (found,) = report["problems"]
    assert found in run.stdout
    return found


BROKEN = {
    "no native module": ("rnnfast/_C.py", "raise ImportError('undefined symbol')", "compiled part"),
    "no torch": ("torch.py", "raise ModuleNotFoundError('No module named torch')", "named torch"),
    "no rich": ("rich.py", "raise ModuleNotFoundError('No module named rich')", "named rich"),
    "crash": ("rnnfast/_C.py", "import os; os.kill(os.getpid(), 9)", "signal SIGKILL"),
    "exit": ("rnnfast/_C.py", "import os; os._exit(3)", "status 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_said_without_a_traceback(tmp_path, case):
    name, code, says = BROKEN[case]
    # Python finds these files before the installed packages and before a compiled part.
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "rnnfast", tmp_path / "rnnfast", ignore=ignored)
    (tmp_path / name).write_text(code)
    assert says in problem(tmp_path, tmp_path)


def test_a_torch_without_the_interface_is_named(tmp_path):
    code = "import torch; del torch.Tensor.__dlpack_c_exchange_api__"
    (tmp_path / "sitecustomize.py").write_text(code)  # Python imports this module when it starts
    assert "__dlpack_c_exchange_api__" in problem(tmp_path, ROOT)


@pytest.mark.parametrize(
    ("original", "arguments", "expected"),
    [
        (["python", "-m", "rnnfast", "doctor"], ["-m", "doctor"], True),
        (["python", "/bin/rnnfast", "doctor"], ["/bin/rnnfast", "doctor"], True),
        (["python", "/bin/rnnfast", "train"], ["/bin/rnnfast", "train"], False),
        (["python", "/bin/other", "doctor"], ["/bin/other", "doctor"], False),
        (["python", "/bin/rnnfast"], ["/bin/rnnfast"], False),
        (["python"], [""], False),
    ],
)
def test_only_the_command_itself_hands_over(monkeypatch, original, arguments, expected):
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", arguments)
    assert program.is_called() is expected


def inspected(capsys):
    doctor.inspect()
    return json.loads(capsys.readouterr().out)


def test_two_openmp_runtimes_are_a_warning(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "openmp_runtimes", lambda: ["libgomp.so.1", "libomp.so"])
    report = inspected(capsys)
    assert "2 OpenMP runtimes" in report["warnings"][0] and not report["problems"]


@pytest.mark.parametrize("error", [0.1, float("nan")])
def test_wrong_results_are_a_problem(capsys, monkeypatch, error):
    monkeypatch.setattr(doctor, "self_test", lambda _: error)
    report = inspected(capsys)
    assert "FastRNN differs from nn.RNN" in report["problems"][0]
    assert program.status(report) == 1


def test_why_the_cuda_kernels_do_not_run(monkeypatch):
    build = {"cuda": False, "cuda_kernel": None}
    assert "nvcc" in doctor.cuda_kernels(build)
    build["cuda"] = True
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor.cuda_kernels(build) == "off: this build of torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.cuda_kernels(build) == "off: torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("RNNFAST_CUDA_KERNEL", raising=False)
    assert "RNNFAST_CUDA_KERNEL=auto turns them on" in doctor.cuda_kernels(build)
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", "torch")
    assert doctor.cuda_kernels(build) == "off: RNNFAST_CUDA_KERNEL=torch"
    build["cuda_kernel"] = "auto"
    assert doctor.cuda_kernels(build) == "on: auto"


def test_bf16_is_suggested_where_it_is_multiplied(monkeypatch):
    assert "--bf16 may be faster" in doctor.bf16_advice("cpu", {"isa": "avx512_bf16"})
    assert doctor.bf16_advice("cpu", {"isa": "avx2"}) is None
    build = {"cuda": True, "cuda_kernel": "auto"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.bf16_advice("cuda", build) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert doctor.bf16_advice("cuda", build) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert doctor.bf16_advice("cuda", build).endswith("--bf16 may be faster")
    build["cuda_kernel"] = None
    assert "RNNFAST_CUDA_KERNEL=auto" in doctor.bf16_advice("cuda:1", build)
    build["cuda"] = False
    assert "for large models" in doctor.bf16_advice("cuda", build)
    # Training says so, except on a CPU and if it is done.
    config = lm.Config.defaults("word", device="cuda", epochs=1)
    assert "--bf16 may be faster" in train._bf16_advice(config)
    for change in ({"device": "cpu"}, {"bf16": True}):
        assert train._bf16_advice(replace(config, **change)) is None


@pytest.mark.parametrize("name, slow", [("avx2", True), ("avx512", True), ("avx512_bf16", False)])
def test_bf16_is_discouraged_where_it_is_slow(name, slow, monkeypatch):
    monkeypatch.setattr(train, "build_info", lambda: {"isa": name})
    advice = train._bf16_advice(lm.Config.defaults("word", bf16=True, epochs=1))
    assert (advice is not None and "no instructions for bfloat16" in advice) == slow


def test_a_machine_without_proc(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert doctor.openmp_runtimes() is None
    assert program._cpu()["cpu_flags"] == []
