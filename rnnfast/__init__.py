"""Fast Elman RNNs for PyTorch: fused kernels, a drop-in for ``nn.RNN``, RNN language models."""

import torch  # first: its OpenMP runtime is the one our kernels then share

from . import _C, functional, reference
from ._version import __version__
from .nn import FastRNN, FastRNNCell, accelerate

__all__ = [
    "FastRNN",
    "FastRNNCell",
    "__version__",
    "accelerate",
    "build_info",
    "functional",
    "reference",
    "set_isa",
]


def build_info():
    """What this build has and what this machine can run.

    Returns a dict: ``version``; ``isas``, the instruction sets this CPU can run, slowest first;
    ``isa``, the one in use; ``openmp``, whether the kernels have threads; ``threads``, how many
    they would use now; ``compiler``; ``kernels``, the dtypes by device that run on rnnfast's
    kernels. Everything else runs on torch's operators.
    """
    from ._ops import DTYPES

    return {
        "version": __version__,
        "isas": _C.isas(),
        "isa": _C.isa(),
        "openmp": _C.openmp,
        "threads": torch.get_num_threads() if _C.openmp else 1,
        "compiler": _C.compiler,
        "kernels": {"cpu": [str(dtype).removeprefix("torch.") for dtype in DTYPES]},
    }


def set_isa(name=None):
    """Force the instruction set of the CPU kernels, for tests and comparisons.

    Args:
        name: one of ``build_info()["isas"]``, or None for the default: the environment's
            ``RNNFAST_ISA`` if set, else the fastest.

    Raises:
        ValueError: this CPU cannot run ``name``.
    """
    _C.set_isa(name or "")
