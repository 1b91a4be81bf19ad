"""Fast Elman RNNs for PyTorch: fused kernels, a drop-in for ``nn.RNN``, RNN language models."""

import torch  # first: its OpenMP runtime is the one our kernels then share

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"the compiled part of rnnfast in {__path__[0]} is missing, or does not load ({error}). If "
        "that is the source, and not where rnnfast is installed: leave that folder, or pip "
        "install -e ."
    ) from error
from . import _ops, functional, reference
from ._version import __version__
from .nn import FastRNN, FastRNNCell, accelerate

__all__ = [
    "FastRNN",
    "FastRNNCell",
    "__version__",
    "accelerate",
    "build_info",
    "cuda_plan",
    "functional",
    "reference",
    "set_cuda_kernel",
    "set_isa",
]


def build_info():
    """What this build has and what this machine can run.

    Returns a dict: ``version``; ``isas``, the instruction sets this CPU can run, the default last;
    ``isa``, the one in use; ``openmp``, whether the kernels have threads; ``threads``, how many
    they would use now; ``cuda``, whether there are CUDA kernels; ``compiler``; ``kernels``, the
    dtypes by device that run on rnnfast's kernels. Everything else runs on torch's operators.
    """

    def names(dtypes):
        return [str(dtype).removeprefix("torch.") for dtype in dtypes]

    on_cuda = [dtype for dtype in _ops.cuda.DTYPES if _ops.cuda.has_kernel(dtype)]
    return {
        "version": __version__,
        "isas": _C.isas(),
        "isa": _C.isa(),
        "openmp": _C.openmp,
        "threads": torch.get_num_threads() if _C.openmp else 1,
        "cuda": _C.cuda,
        "compiler": _C.compiler,
        "kernels": {"cpu": names(_ops.cpu.DTYPES)} | ({"cuda": names(on_cuda)} if on_cuda else {}),
    }


def set_isa(name=None):
    """Force the instruction set of the CPU kernels, for tests and comparisons.

    Args:
        name: one of ``build_info()["isas"]``, or None for the default: the environment's
            ``RNNFAST_ISA`` if set, else the last of these.

    Raises:
        ValueError: this CPU cannot run ``name``.
    """
    _C.set_isa(name or "")


def set_cuda_kernel(name=None):
    """Choose what runs on CUDA devices.

    Args:
        name: None, the default, for torch's own operators: the kernels have not run on a GPU yet.
            ``"auto"`` for the kernel that csrc/cuda/README.md's model predicts to be the fastest;
            ``"cluster"``, ``"grid"`` or ``"step"`` to force one, for tests and comparisons. float64
            has the step kernel alone.

    Raises:
        ValueError: another name, or a build without CUDA kernels. A kernel that is forced and
            cannot hold the sizes of a call raises ValueError there.
    """
    _ops.cuda.set_kernel(name)


def cuda_plan(T, B, H, dtype=torch.float32, *, directions=1, backward=False):
    """What runs a layer on the current CUDA device, and why: one line.

    Args:
        T, B, H: time steps, batch rows, hidden units.
        dtype: of the layer. directions: 2 if bidirectional. backward: instead of the forward.

    Returns:
        str: the kernel, how it is cut, and the predicted microseconds a step of each kernel.

    Raises:
        ValueError: a kernel is forced (:func:`set_cuda_kernel`) that cannot hold the sizes.
        RuntimeError: there is no CUDA device.
    """
    return _ops.cuda.plan(T, B, H, dtype, directions, backward)
