"""Measure the modules of rnnfast against those of torch, shape by shape."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import build_info, reference
from .._common.errors import ArgumentError, UserError
from .._version import __version__
from ..nn import FastGRU, FastLSTM, FastRNN
from .timing import alternate, gemm_gflops, geometric_mean, milliseconds, spread, timer


class Cell(NamedTuple):
    """A cell: the module of rnnfast and that of torch, the number of gates, the final states."""

    ours: Callable[..., nn.RNNBase]
    theirs: Callable[..., nn.RNNBase]
    gates: int  # the number of products with W_ih and with W_hh for each unit
    states: tuple[str, ...]  # their names


CELLS = {
    "rnn": Cell(FastRNN, nn.RNN, 1, ("h_n",)),
    "gru": Cell(FastGRU, nn.GRU, 3, ("h_n",)),
    "lstm": Cell(FastLSTM, nn.LSTM, 4, ("h_n", "c_n")),
}

OURS, NUMPY = "rnnfast", "NumPy"
THEIRS = {cell: f"nn.{cell.upper()}" for cell in CELLS}
MODES = {"forward": "forward (inference)", "training": "forward + backward (training)"}

# Float32 sums of thousands of terms that are added in a different order differ by up to this
# fraction of the largest one.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


class Shape(NamedTuple):
    """The sizes of one call: T time steps, B batch rows, I input size, H hidden size."""

    T: int
    B: int
    I: int  # noqa: E741 - this letter stands for the input size in the whole project
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


DEFAULT_SHAPES = (
    Shape(100, 1, 128, 128),
    Shape(100, 32, 64, 64),
    Shape(35, 20, 200, 200),
    Shape(100, 32, 128, 128),
    Shape(100, 32, 256, 256),
    Shape(100, 32, 512, 512),
    Shape(64, 64, 1024, 1024),
    Shape(256, 16, 512, 512),
    Shape(512, 1, 512, 512),
    Shape(1000, 1, 1024, 1024),
)


def measure(
    shapes: Iterable[Shape] = DEFAULT_SHAPES,
    *,
    cell: str = "rnn",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    repeats: int | None = None,
    numpy: bool = False,
) -> dict[str, Any]:
    """Time a module of rnnfast against that of torch (one layer, CPU) at each shape.

    Args:
        shapes: the sizes to measure, in this order.
        cell: `"rnn"` for `FastRNN` against `nn.RNN`, both with tanh; `"gru"` for `FastGRU` against
            `nn.GRU`; or `"lstm"` for `FastLSTM` against `nn.LSTM`.
        dtype: `torch.float32` or `torch.float64`.
        threads: number of threads for torch and for the kernels. None leaves torch's number as it
            is.
        repeats: samples of each implementation. None takes as many as fit in about 1.5 s a mode,
            and at least 5.
        numpy: also time the forward pass of `rnnfast.reference`, which has only the RNN, with as
            many threads as NumPy's BLAS was started with.

    Returns:
        A report that `json.dumps` accepts. `report["shapes"]` has one entry a shape. An entry holds
        for each mode (`"forward"`, `"training"`): `ms`, the milliseconds of each implementation
        (median, 20th and 80th percentile); `ratio`, for each other implementation the ratio of its
        median to that of rnnfast (above 1 means that rnnfast is faster) and the 20th and 80th
        percentile of the ratios sample by sample; `gflops`, the GFLOP/s that rnnfast reached; and
        `of_gemm`, that figure as a fraction of `report["gemm_gflops"]`. `report["cell"]` is
        `cell`, and `report["load"]` is the load average of the minute before the start.

    Raises:
        UserError: `threads` or `repeats` is below 1, `cell` or `dtype` is a different one, or
            `numpy` is true for a gated cell. It is a ValueError.
        RuntimeError: the two modules disagree at some shape, so there is nothing to compare.

    Example:
        >>> from rnnfast import bench
        >>> report = bench.measure([bench.Shape(T=3, B=2, I=5, H=4)], repeats=1)
        >>> sorted(report["shapes"][0]["training"]["ms"])
        ['nn.RNN', 'rnnfast']
    """
    if dtype not in TOLERANCE:
        raise UserError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
    if cell not in CELLS:
        raise ArgumentError(f"cell must be one of {', '.join(CELLS)}, not {cell!r}")
    if numpy and cell != "rnn":
        raise ArgumentError(f"numpy is for the cell rnn only, because there is no {cell} in NumPy")
    for name, value in (("threads", threads), ("repeats", repeats)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} must be at least 1, not {value}")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        report = context() | {"cell": cell, "dtype": str(dtype).removeprefix("torch.")}
        ceiling = gemm_gflops(dtype)
        results = [_measure_shape(Shape(*shape), cell, dtype, repeats, numpy) for shape in shapes]
        report["gemm_gflops"] = max(ceiling, gemm_gflops(dtype))
    finally:
        torch.set_num_threads(threads_before)

    for result in results:
        for mode in MODES:
            result[mode]["of_gemm"] = result[mode]["gflops"] / report["gemm_gflops"]
    report["shapes"] = results
    report["geometric_mean"] = {
        mode: {
            other: geometric_mean(r[mode]["ratio"][other]["of_medians"] for r in results)
            for other in results[0][mode]["ratio"]
        }
        for mode in MODES
        if results
    }
    return report


def context() -> dict[str, Any]:
    """Return when, where and with which versions a report is measured: its first entries."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
        "load": os.getloadavg()[0],  # read before anything runs here: the load of other programs
        "versions": {
            "rnnfast": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "build": build_info(),
        "threads": torch.get_num_threads(),
    }


def _machine() -> dict[str, Any]:
    """Return the CPU by name and by number (hypervisors hide the name), its cores, the system."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    pairs = (line.partition(":") for line in first.splitlines())
    cpuinfo = {key.strip(): value.strip() for key, _, value in pairs}
    numbers = [f"{key} {cpuinfo[key]}" for key in ("cpu family", "model") if key in cpuinfo]
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cpu_numbers": ", ".join(numbers),
        "cores": os.cpu_count(),
        "os": platform.platform(),
    }


def _measure_shape(
    shape: Shape, cell: str, dtype: torch.dtype, repeats: int | None, numpy: bool
) -> dict[str, Any]:
    own_class, torch_class, gates, states = CELLS[cell]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch_class(shape.I, shape.H, dtype=dtype)
        x = torch.randn(shape.T, shape.B, shape.I, dtype=dtype, requires_grad=True)
        dy = torch.randn(shape.T, shape.B, shape.H, dtype=dtype)
        ours = own_class(shape.I, shape.H, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    modules = {OURS: ours, THEIRS[cell]: theirs}

    def forward(module: nn.RNNBase) -> tuple[Tensor, Any]:
        with torch.no_grad():
            return module(x)

    def training(module: nn.RNNBase) -> Sequence[Tensor]:
        return torch.autograd.grad(module(x)[0], (x, *module.parameters()), dy)

    def results(module: nn.RNNBase) -> list[Tensor]:
        output, final = forward(module)
        return [output, *(final if isinstance(final, tuple) else (final,)), *training(module)]

    gradients = ["gradient of " + name for name, _ in theirs.named_parameters(prefix="")]
    names = ["output", *states, "gradient of input", *gradients]
    difference = disagreement(names, results(ours), results(theirs), TOLERANCE[dtype])
    if difference:
        raise RuntimeError(
            f"{OURS} and {THEIRS[cell]} disagree at T,B,I,H = {shape}: {difference}; "
            "nothing was timed"
        )

    modes = {
        mode: alternate({name: timer(partial(call, m)) for name, m in modules.items()}, repeats)
        for mode, call in (("forward", forward), ("training", training))
    }
    if numpy:
        # NumPy comes last and by itself: its BLAS has threads of its own, which go on spinning for
        # a while after a call.
        call = _numpy_forward(theirs, x)
        modes["forward"] |= alternate({NUMPY: timer(call)}, len(modes["forward"][OURS]))
    flop = 2 * shape.T * shape.B * gates * shape.H * (shape.I + shape.H)
    return shape._asdict() | {
        "forward": summarise(modes["forward"], flop),
        # The backward pass has two products for each of the two in the forward pass.
        "training": summarise(modes["training"], 3 * flop),
    }


def disagreement(
    names: Sequence[str], got: Sequence[Any], want: Sequence[Any], tolerance: float
) -> str | None:
    """Return which array or tensor is the first that differs and by how much, or None.

    Args:
        names: a name for each array, which the message uses.
        got: the arrays to check.
        want: the arrays that they are compared with, in the same order.
        tolerance: the largest error allowed, as a fraction of the largest element of `want`.

    Example:
        >>> import numpy as np
        >>> from rnnfast import bench
        >>> bench.disagreement(["y"], [np.array([1.0, 2.5])], [np.array([1.0, 2.0])], 1e-4)
        'y differs by 0.5 where the largest element is 2'
    """
    for name, a, b in zip(names, got, want, strict=True):
        if a.shape != b.shape:
            return f"{name} is {tuple(a.shape)}, not {tuple(b.shape)}"
        error, scale = float(abs(a - b).max()), float(abs(b).max())
        if not error <= tolerance * scale:  # written so that a NaN is a disagreement too
            return f"{name} differs by {error:.3g} where the largest element is {scale:.3g}"
    return None


def _numpy_forward(module: nn.RNNBase, x: Tensor) -> Callable[[], Any]:
    w_ih, w_hh, b_ih, b_hh = (p.detach().numpy() for p in module.parameters())
    array = x.detach().numpy()
    return lambda: reference.forward(array, None, w_ih, w_hh, b_ih, b_hh)


def summarise(samples: dict[str, np.ndarray], flop: int) -> dict[str, Any]:
    """Return what a report says about one mode of one shape.

    Args:
        samples: seconds a call by implementation, as `alternate` returns them. One of the
            implementations is rnnfast.
        flop: floating-point operations of one call.
    """
    ms = milliseconds(samples)
    ours = ms[OURS]["median"]
    return {
        "rounds": len(samples[OURS]),
        "ms": ms,
        "ratio": {
            name: {"of_medians": ms[name]["median"] / ours, **spread(values / samples[OURS])}
            for name, values in samples.items()
            if name != OURS
        },
        "gflops": 1e-6 * flop / ours,
    }
