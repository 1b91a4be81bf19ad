"""The process of one contestant, which contest.py starts."""

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection

from .base import NotRunError, Peer
from .jax_scan import JAX
from .modules import NNRNN, CompiledRNN, FastRNN, Kernels, NumPy
from .onednn import OneDNN
from .onnx_runtime import ONNXRuntime

CLASSES = {
    peer.__name__: peer
    for peer in (FastRNN, Kernels, NNRNN, CompiledRNN, JAX, ONNXRuntime, OneDNN, NumPy)
}


def main() -> None:
    """Serve requests on a socket until it closes: `python -m peers FD CPUS CLASS [ARGUMENT]`."""
    fd, cpus, name, *arguments = sys.argv[1:]
    # Every library takes its number of threads from the number of CPUs. XLA and TBB have no other
    # setting.
    os.sched_setaffinity(0, map(int, cpus.split(",")))
    # A stopped process would outlive a parent that was killed.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    connection = Connection(int(fd))
    peer: Peer | None = None

    def hello() -> str:
        nonlocal peer
        peer = CLASSES[name](*arguments)
        return peer.version

    while True:
        try:
            method, *values = connection.recv()
        except EOFError:
            return
        try:
            answer = hello() if method == "hello" else getattr(peer, method)(*values)
            reason = None
        except NotRunError as error:
            answer, reason = None, str(error)
        except Exception as error:
            answer, reason = None, f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send((reason, answer))


if __name__ == "__main__":
    main()
