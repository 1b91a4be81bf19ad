"""Run each contestant in a process of its own, and time them by turns.

The threads of a library go on spinning for a while after a call, and would disturb the contestant
that is timed next. So no two contestants share a process, and all processes except the one that
works are stopped (SIGSTOP). Their samples can then alternate in one run, as in `rnnfast bench`.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from cases import Case, result_names

from rnnfast import bench

log = logging.getLogger("benchmarks")

KERNELS = "rnnfast kernels"
PATIENCE = 120  # seconds without an answer after which a contestant is left out of a case
MODE_SECONDS = 2.5  # spent on the samples of one mode of one case, all contestants together

# bfloat16 keeps 8 bits, and a library that sums a gradient over the steps in it loses some more.
TOLERANCE = {"float32": bench.TOLERANCE[torch.float32], "bfloat16": 0.1}


class Contestant:
    """A process of the package `peers`. Nothing runs in it except while `ask` waits for its answer.

    Attributes:
        name: what the report calls it.
        version: version of its library, or None if it does not take part.
        absent: why it does not take part, or None.
    """

    def __init__(self, name: str, *arguments: str, environment: dict[str, str] | None = None):
        """Describe a contestant without starting it.

        `arguments` are the name of a class in `peers` and the arguments of its constructor.
        `environment` is added to that of the process.
        """
        self.name = name
        self._arguments = arguments
        # The process must find the modules beside this one.
        path = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        self._environment |= environment or {}
        self._process = None
        self.version = None
        self.absent = None

    def start(self, threads: int) -> None:
        """Start the process. Set `version`, or `absent` if the library is missing."""
        self._cpus = ",".join(map(str, _cpus(threads)))
        self.version, self.absent = None, None
        try:
            self.version = self._hello()
        except peers.NotRunError as error:
            self.absent = str(error)
            self.close()

    def _hello(self) -> str:
        self._connection, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "peers", str(fd), self._cpus, *self._arguments],
                pass_fds=[fd],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
        return self.ask("hello")

    def ask(self, method: str, *values: Any) -> Any:
        """Call a method of the contestant and return its answer.

        Raises:
            NotRunError: the contestant gave a reason, did not answer in time, or died.
        """
        if self._process is None:  # it was left out of an earlier case, and its process killed
            self._hello()
        self._process.send_signal(signal.SIGCONT)
        try:
            self._connection.send((method, *values))
            if not self._connection.poll(PATIENCE):
                self.close()
                raise peers.NotRunError(f"no answer in {PATIENCE} s", self.name)
            reason, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise peers.NotRunError("its process died", self.name) from error
        self._process.send_signal(signal.SIGSTOP)
        if reason:
            raise peers.NotRunError(reason, self.name)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def _cpus(threads: int) -> list[int]:
    """Return the CPUs to run on. They are on different cores as long as there are enough cores."""

    def siblings_before(cpu: int) -> bool:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            return int(path.read_text().replace("-", ",").split(",")[0]) != cpu
        except OSError:
            return False

    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (siblings_before(cpu), cpu))
    if len(cpus) < threads:
        raise ValueError(f"threads must be at most {len(cpus)}, the number of CPUs, not {threads}")
    return cpus[:threads]


def contestants(cell: str) -> list[Contestant]:
    """Return all contestants that have the cell, not started."""
    onednn = [
        Contestant(
            "oneDNN " + ".".join(peers.onednn_version(root).split(".")[:2]),
            "OneDNN",
            root,
            environment=peers.onednn_environment(root),
        )
        for root in peers.onednn_roots()
    ]
    return [
        Contestant(bench.OURS, "FastRNN"),
        Contestant(KERNELS, "Kernels"),
        Contestant(bench.THEIRS[cell], "NNRNN"),
        Contestant("torch.compile", "CompiledRNN"),
        Contestant("JAX", "JAX"),
        Contestant("ONNX Runtime", "ONNXRuntime"),
        *(onednn or [Contestant("oneDNN", "OneDNN", sys.prefix)]),
        *([Contestant(bench.NUMPY, "NumPy")] if cell == "rnn" else []),
    ]


@contextlib.contextmanager
def started(everyone: list[Contestant], threads: int) -> Iterator[None]:
    """Start all contestants, and end their processes when the `with` statement ends."""
    try:
        for contestant in everyone:
            log.info("starting %s", contestant.name)
            contestant.start(threads)
        yield
    finally:
        for contestant in everyone:
            contestant.close()


def measure(
    case: Case, mode: str, everyone: list[Contestant], repeats: int | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Time one mode of one case.

    A contestant is timed only if its results agree with those of torch's module in float32, up to
    TOLERANCE.

    Returns:
        The seconds a call of each sample, by contestant, and for each contestant that was not timed
        the reason.

    Raises:
        RuntimeError: the results of rnnfast do not agree, or torch's module cannot be run.
    """
    theirs = bench.THEIRS[case.cell]
    present = {c.name: c for c in everyone if c.absent is None}
    try:
        truth = present[theirs].ask("prepare", replace(case, dtype="float32"), mode)
    except peers.NotRunError as error:
        raise RuntimeError(f"{theirs} at {case}: {error}") from error
    names = result_names(case, mode)
    not_run = {}
    for name, contestant in present.items():
        log.info("%s, %s: preparing %s", case, mode, name)
        try:
            results = contestant.ask("prepare", case, mode)
        except peers.NotRunError as error:
            not_run[name] = str(error)
            continue
        difference = bench.disagreement(names, results, truth, TOLERANCE[case.dtype])
        if difference and name in (bench.OURS, KERNELS):
            raise RuntimeError(f"{name} and {theirs} disagree at {case}: {difference}")
        if difference:
            not_run[name] = f"wrong: {difference}"
    while True:
        timers = {
            name: partial(contestant.ask, "sample")
            for name, contestant in present.items()
            if name not in not_run
        }
        log.info("%s, %s: timing %d contestants by turns", case, mode, len(timers))
        try:
            return bench.alternate(timers, repeats, MODE_SECONDS), not_run
        except peers.NotRunError as error:
            if error.contestant == theirs:
                raise RuntimeError(f"{theirs} at {case}: {error}") from error
            not_run[error.contestant] = str(error)
