"""`rnnfast doctor`: what this machine runs rnnfast on, and what is broken, for a bug report.

This module imports the standard library alone, and looks at the rest of rnnfast in a process of
its own. So it also works where rnnfast cannot be imported, or where it crashes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from .._version import __version__

ABOUT = "Print what this machine runs rnnfast on, and what is missing, for a bug report."
PACKAGES = ("torch", "numpy", "safetensors", "rich")
VARIABLES = re.compile("RNNFAST_|OMP_|KMP_|GOMP_|MKL_|CUDA_VISIBLE|LD_PRELOAD|CUDNN_|TORCH_")
FOLDER = Path(__file__).parents[1]
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from rnnfast.cli.doctor import inspect; inspect()"
)
TIMEOUT = 300  # seconds
# What the instruction sets of csrc/cpu/isa need, as Linux names it.
CPU_FLAGS = {"fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd"}


def is_called() -> bool:
    """Return whether this process is `rnnfast doctor` or `python -m rnnfast doctor`."""
    # While Python imports the package of `python -m rnnfast`, sys.argv[0] is "-m".
    program = sys.orig_argv[-len(sys.argv) :][:1]
    return sys.argv[1:2] == ["doctor"] and [Path(name).stem for name in program] == ["rnnfast"]


def main() -> int:
    """Run the command of this process and return its exit status: 1 if something is broken."""
    parser = argparse.ArgumentParser(prog="rnnfast doctor", description=ABOUT, allow_abbrev=False)
    parser.add_argument(
        "--json", metavar="PATH", help="Write the result as JSON; - for standard output"
    )
    target = parser.parse_args(sys.argv[2:]).json
    report = examine()
    text = json.dumps(report, indent=1)
    if target != "-":
        print(as_text(report))
    if target == "-":
        print(text)
    elif target:
        try:
            Path(target).write_text(text + "\n")
        except OSError as error:
            print(f"rnnfast: error: cannot write {target}: {error.strerror}", file=sys.stderr)
            return 2
    return status(report)


def status(report: dict[str, Any]) -> int:
    """Return the exit status that belongs to a report."""
    return 1 if report["problems"] else 0


def examine() -> dict[str, Any]:
    """Return the report, whose `problems` and `warnings` are lists of sentences."""
    report = _machine()
    command = [sys.executable, "-c", PROGRAM, str(FOLDER.parent)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if run.returncode == 0:
            inspected: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
            return report | inspected
    except subprocess.TimeoutExpired:
        problem = f"rnnfast did not answer within {TIMEOUT} s"
    except (IndexError, ValueError):
        problem = f"rnnfast did not answer in JSON but with {run.stdout!r}"
    else:
        problem = _last_error(run)
    return report | {"problems": [problem], "warnings": []}


def _last_error(run: subprocess.CompletedProcess[str]) -> str:
    """Return one line that says why the process has failed."""
    if run.returncode < 0:
        return f"rnnfast was stopped by the signal {signal.Signals(-run.returncode).name}"
    lines = run.stderr.strip().splitlines()
    return lines[-1] if lines else f"rnnfast exited with status {run.returncode}"


def _machine() -> dict[str, Any]:
    """Return the part of the report that needs the standard library alone."""
    return {
        "rnnfast": __version__,
        "folder": str(FOLDER),
        "native_module": sorted(path.name for path in FOLDER.glob("_C.*") if path.suffix != ".pyi"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": platform.platform(),
        **_cpu(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "environment": {k: v for k, v in sorted(os.environ.items()) if VARIABLES.match(k)},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    """Return the architecture and the model of the CPU, and those of `CPU_FLAGS` that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    known: dict[str, str] = dict(
        re.findall(r"^(model name|flags|Features)\s*: (.*)", text, re.MULTILINE)
    )
    model = known.get("model name", platform.processor())
    flags = known.get("flags", known.get("Features", "")).split()
    return {
        "cpu": f"{platform.machine()} {model}".strip(),
        "cpu_flags": sorted(CPU_FLAGS.intersection(flags)),
    }


def as_text(report: dict[str, Any]) -> str:
    """Return the report as lines for people."""
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines.append(f"{_words(key)}:")
            lines += [f"  {_words(name)}: {_plain(entry)}" for name, entry in value.items()]
        elif key not in ("warnings", "problems"):
            lines.append(f"{_words(key)}: {_plain(value)}")
    lines += [f"warning: {text}" for text in report["warnings"]]
    lines += [f"problem: {text}" for text in report["problems"]]
    return "\n".join([*lines, "rnnfast cannot work here" if report["problems"] else "all is well"])


def _words(key: str) -> str:
    return key if key.isupper() else key.replace("_", " ")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1e}"
    return "none" if value is None else str(value)
