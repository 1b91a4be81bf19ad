"""`rnnfast doctor`: what this machine runs rnnfast on, and a self test.

As a program, the command does not come here: `rnnfast/__init__.py` hands over to
`rnnfast._common.doctor` before the imports that may fail. That module calls `inspect` in a process
of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor, nn

from .. import _torch, accelerate, build_info
from .._common import doctor
from .._common.files import finite
from .options import Commands, add_command
from .output import Output

# The largest difference from nn.RNN that the self test accepts, as a part of the largest value.
# Rounding makes a hundredth of it.
TOLERANCE = 1e-4
PAIRS_OF_BF16 = ("avx512_bf16", "amx")  # the instruction sets that multiply bfloat16
TENSOR_CORES_OF_BF16 = (8, 0)  # the compute capability of the first GPUs that multiply bfloat16


def run(args: argparse.Namespace, output: Output) -> int:
    """Print the report, as the program does."""
    report = doctor.examine()
    output.text.print(escape(doctor.as_text(report)))
    output.json(report)
    return doctor.status(report)


def inspect() -> None:
    """Print what only a process that has imported rnnfast knows, as one line of JSON."""
    build = build_info()
    tests = {device: self_test(device) for device in build["kernels"]}
    runtimes = openmp_runtimes()
    report: dict[str, Any] = {
        "build": build,
        "torch": {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
            "dlpack_exchange_api": hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
            "private_names_missing": [name for name, has in _torch.HAS.items() if not has],
        },
        "openmp_runtimes": runtimes,
        "bf16": {device: bf16_advice(device, build) for device in ("cpu", "cuda")},
        "cuda": {"device": cuda_device(), "kernels": cuda_kernels(build)},
        "self_test": tests,
        "warnings": [],
        "problems": [
            f"on {device}, FastRNN differs from nn.RNN by {error:.1e} of the largest value"
            for device, error in tests.items()
            if not error <= TOLERANCE
        ],
    }
    if runtimes and len(runtimes) > 1:
        report["warnings"].append(
            f"{len(runtimes)} OpenMP runtimes are loaded, whose threads compete for the cores"
        )
    print(json.dumps(finite(report)))


def openmp_runtimes() -> list[str] | None:
    """Return the files of the OpenMP runtimes that this process has loaded, or None if unknown."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return None
    found = re.findall(r"/\S*lib(?:gomp|omp|iomp5)\b\S*", maps)
    return sorted({os.path.realpath(path) for path in found})


def cuda_device() -> str | None:
    """Return the name of the current CUDA device, or None if there is no device."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def cuda_kernels(build: dict[str, Any]) -> str:
    """Return whether rnnfast's CUDA kernels run here, and why not."""
    if not build["cuda"]:
        return "not built, because nvcc was not found"
    if torch.version.cuda is None:
        return "off: this build of torch has no CUDA"
    if not torch.cuda.is_available():
        return "off: torch finds no CUDA device"
    if build["cuda_kernel"] is not None:
        return f"on: {build['cuda_kernel']}"
    if os.environ.get("RNNFAST_CUDA_KERNEL"):
        return f"off: RNNFAST_CUDA_KERNEL={os.environ['RNNFAST_CUDA_KERNEL']}"
    return "off by default on this device; RNNFAST_CUDA_KERNEL=auto turns them on"


def bf16_advice(device: str, build: dict[str, Any]) -> str | None:
    """Return whether `rnnfast train --bf16` may be faster on a device, or None if it is not there.

    On an H100, a time step of training 128 tanh units with a batch of 16 took cuDNN 37.8 us in
    bfloat16 and 1.40 us in float32. rnnfast's kernel took 5.28 us.
    """
    advice = "rnnfast train --bf16 may be faster"
    if torch.device(device).type == "cpu":
        return advice if build["isa"] in PAIRS_OF_BF16 else None
    if not torch.cuda.is_available():
        return None
    if torch.cuda.get_device_capability(device) < TENSOR_CORES_OF_BF16:
        return None
    if build["cuda_kernel"] is not None:
        return advice
    if build["cuda"]:
        return f"{advice} with RNNFAST_CUDA_KERNEL=auto (cuDNN is slow in bfloat16 for small RNNs)"
    return f"{advice} for large models (cuDNN is slow in bfloat16 for small RNNs)"


def self_test(device: str) -> float:
    """Return by how much FastRNN differs from nn.RNN, forward and backward, in float32.

    It is the largest difference of an output or a gradient, as a part of its largest value.
    """
    torch.manual_seed(1)
    reference = nn.RNN(16, 32, num_layers=2, bidirectional=True).to(device)
    fast = accelerate(copy.deepcopy(reference))
    x = torch.randn(20, 4, 16, device=device)
    pairs = zip(_results(fast, x), _results(reference, x), strict=True)
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


def _results(rnn: nn.RNN, x: Tensor) -> list[Tensor]:
    """Return the outputs of `rnn` and the gradients of their sum."""
    x = x.clone().requires_grad_()
    output, h_n = rnn(x)
    loss = output.sum() + h_n.sum()
    return [output.detach(), h_n.detach(), *torch.autograd.grad(loss, [x, *rnn.parameters()])]


def register(commands: Commands) -> None:
    """Add the command to `commands`, what `ArgumentParser.add_subparsers` returned."""
    add_command(commands, "doctor", run, doctor.ABOUT, device=False, threads=False)
