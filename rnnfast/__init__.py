"""Fast Elman RNNs for PyTorch: fused kernels, drop-ins for ``torch.nn`` and RNN language models."""

from ._common import doctor as _doctor

if _doctor.is_called():  # `rnnfast doctor` must work where the imports below fail
    raise SystemExit(_doctor.main())

from collections.abc import Iterable
from typing import Any

import torch  # before _C, so that the kernels share torch's OpenMP runtime

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"the compiled part of rnnfast in {__path__[0]} is missing or cannot be loaded ({error}). "
        "If that folder holds the source and not the installed package, change to another folder, "
        "or build the compiled part there: pip install -e ."
    ) from error
from . import _ops, functional, parametrizations, reference
from ._version import __version__
from .nn import FastGRU, FastLSTM, FastRNN, FastRNNCell, LeakyRNN, accelerate, restore

__all__ = [
    "FastGRU",
    "FastLSTM",
    "FastRNN",
    "FastRNNCell",
    "LeakyRNN",
    "__version__",
    "accelerate",
    "build_info",
    "cuda_plan",
    "functional",
    "parametrizations",
    "reference",
    "restore",
    "set_cuda_kernel",
    "set_isa",
]


def build_info() -> dict[str, Any]:
    """Return what this build contains and what this machine can run.

    Returns:
        dict: with the keys

        - ``version``: of rnnfast.
        - ``isas``: names of the instruction sets that this CPU can run; the default is the last.
        - ``isa``: the instruction set in use.
        - ``openmp``: whether the CPU kernels use threads.
        - ``threads``: the number of threads that the CPU kernels would use now.
        - ``cuda``: whether the build has CUDA kernels.
        - ``cuda_kernel``: what :func:`set_cuda_kernel` has set, or what holds by default.
        - ``compiler``: the compiler of the build.
        - ``kernels``: for each type of device, the dtypes that run on rnnfast's kernels. All others
          run on torch's operators.

    Example:
        >>> import rnnfast
        >>> rnnfast.build_info()["kernels"]["cpu"]
        ['float32', 'float64', 'bfloat16', 'float16']
    """

    def names(dtypes: Iterable[torch.dtype]) -> list[str]:
        return [str(dtype).removeprefix("torch.") for dtype in dtypes]

    on_cuda = [dtype for dtype in _ops.cuda.DTYPES if _ops.cuda.has_kernel(dtype)]
    return {
        "version": __version__,
        "isas": _C.isas(),
        "isa": _C.isa(),
        "openmp": _C.openmp,
        "threads": torch.get_num_threads() if _C.openmp else 1,
        "cuda": _C.cuda,
        "cuda_kernel": _ops.cuda.kernel(),
        "compiler": _C.compiler,
        "kernels": {"cpu": names(_ops.cpu.DTYPES)} | ({"cuda": names(on_cuda)} if on_cuda else {}),
    }


def set_isa(name: str | None = None) -> None:
    """Force the instruction set of the CPU kernels, for tests and comparisons.

    Args:
        name: one of ``build_info()["isas"]``. None restores the default: the value of the
            environment variable ``RNNFAST_ISA`` if it is set, otherwise the last of these.

    Raises:
        ValueError: this CPU cannot run ``name``.

    Example:
        >>> import rnnfast
        >>> rnnfast.set_isa(rnnfast.build_info()["isas"][0])
        >>> rnnfast.set_isa(None)
    """
    _C.set_isa(name or "")


def set_cuda_kernel(name: str | None = None) -> None:
    """Choose what runs FastRNN and LeakyRNN on CUDA devices.

    The choice also holds for :func:`rnnfast.functional.rnn` and
    :func:`rnnfast.functional.leaky_rnn`.

    Args:
        name: None for torch's own operators. ``"auto"`` for the fastest way according to the model
            in csrc/cuda/README.md, which may be torch's own operators, too. ``"cluster"``,
            ``"grid"`` or ``"step"`` force one kernel, for tests and comparisons. For float64 there
            is only the step kernel.

    Until this function is called, the environment variable ``RNNFAST_CUDA_KERNEL`` decides:
    ``torch`` for torch's own operators, or one of the names above. If it is not set,
    None holds, because the present kernels have not run on a GPU yet. If a kernel cannot be
    launched, there is a warning, and torch's own operators run from then on.

    Raises:
        ValueError: ``name`` is none of these, or this build has no CUDA kernels. If a kernel is
            forced and cannot hold the sizes of a call, that call raises ValueError.

    Example:
        >>> import rnnfast
        >>> rnnfast.set_cuda_kernel(None)
    """
    _ops.cuda.set_kernel(name)


def cuda_plan(
    T: int,
    B: int,
    H: int,
    dtype: torch.dtype = torch.float32,
    *,
    directions: int = 1,
    backward: bool = False,
) -> str:
    """Return which kernel runs one layer on the current CUDA device, and why.

    Args:
        T: number of time steps.
        B: batch size.
        H: number of hidden units.
        dtype: of the layer.
        directions: 2 for a bidirectional layer, otherwise 1.
        backward: whether the plan is for the backward pass instead of the forward pass.

    Returns:
        str: one line with the kernel, how it is divided into groups and blocks, and the predicted
        microseconds per time step of each kernel. The times are those of a layer of
        :class:`FastRNN`. They do not count what leaky units cost in addition.

    Raises:
        ValueError: the kernel forced by :func:`set_cuda_kernel` cannot hold the sizes.
        RuntimeError: there is no CUDA device.

    Example:
        >>> import rnnfast, torch
        >>> if torch.cuda.is_available():
        ...     print(rnnfast.cuda_plan(100, 32, 512, torch.bfloat16))
    """
    return _ops.cuda.plan(T, B, H, dtype, directions, backward)
