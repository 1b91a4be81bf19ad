"""How many times faster than ``torch.nn.RNN``, on this machine.

One absolute time means little on a machine that others use too, so what is measured is ratios. Both
modules hold the same weights and must agree before they are timed. Their samples alternate in one
run, so that noise hits both, and the order turns round each time, so that neither always finds the
other's data in the cache. Medians are compared. What a matrix product reaches on the same threads
in the same run says how much is left to gain.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import timeit
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from . import build_info, reference
from ._common.errors import UserError
from ._common.plots import require_matplotlib
from ._version import __version__
from .nn import FastRNN

OURS, THEIRS, NUMPY = "rnnfast", "nn.RNN", "NumPy"
MODES = {"forward": "forward (inference)", "training": "forward + backward (training)"}

SAMPLE_SECONDS = 2e-3  # shorter calls are repeated within a sample: the clock costs nothing then
MODE_SECONDS = 1.5  # spent on one mode of one shape
MIN_ROUNDS = 5
GEMM_SIZE = 2048  # large enough that a product runs at the ceiling

# Float32 sums of thousands of terms taken in another order differ by this much of the largest one.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


class Shape(NamedTuple):
    """The sizes of one call: T time steps, B batch rows, I input size, H hidden size."""

    T: int
    B: int
    I: int  # noqa: E741 - the letter of the whole project
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


# Seconds a call, averaged over so many of them.
Sampler = Callable[[int], float]

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
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    repeats: int | None = None,
    numpy: bool = False,
) -> dict[str, Any]:
    """Time ``FastRNN`` against ``nn.RNN`` (one layer, tanh, CPU) at each shape.

    Args:
        shapes: what to measure, in this order.
        dtype: ``torch.float32`` or ``torch.float64``.
        threads: of torch and of the kernels; None leaves torch's number as it is.
        repeats: samples of each implementation; None takes as many as fit about 1.5 s a mode, and
            at least 5.
        numpy: also time the forward of ``rnnfast.reference``, with as many threads as NumPy's BLAS
            was started with.

    Returns:
        A report that ``json.dumps`` takes. ``report["shapes"]`` has for each shape and mode the
        milliseconds (median and 20th and 80th percentile) of each implementation, the ratio of the
        medians (above 1: rnnfast is faster), the 20th and 80th percentile of the ratios sample by
        sample, the GFLOP/s reached by rnnfast and the fraction of ``report["gemm_gflops"]`` that
        this is. ``report["load"]`` is the load average of the last minute before the start.

    Raises:
        ValueError: ``threads`` or ``repeats`` below 1, or another dtype.
        RuntimeError: the two modules disagree at some shape: there is nothing to compare.
    """
    if dtype not in TOLERANCE:
        raise UserError(f"dtype: got {dtype}, want torch.float32 or torch.float64")
    for name, value in (("threads", threads), ("repeats", repeats)):
        if value is not None and value < 1:
            raise UserError(f"{name}: got {value}, want at least 1")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        report = context() | {"dtype": str(dtype).removeprefix("torch.")}
        ceiling = gemm_gflops(dtype)
        results = [_measure_shape(Shape(*shape), dtype, repeats, numpy) for shape in shapes]
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
    """What a report must say of when, where and with what it was measured."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
        "load": os.getloadavg()[0],  # before anything runs here: what others do
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
    """The CPU by name and by number (hypervisors hide the name), its cores, the system."""
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


def gemm_gflops(dtype: torch.dtype) -> float:
    """The best of several products of two large matrices, in GFLOP/s.

    By ``torch.mm`` and, where torch has it, by oneDNN: on CPUs of AMD the BLAS under the former may
    leave half of a vector unit idle.
    """
    n = GEMM_SIZE
    a, b = torch.ones(2, n, n, dtype=dtype)
    out = torch.empty(n, n, dtype=dtype)
    products = [lambda: torch.mm(a, b, out=out)]
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn
        packed = onednn._reorder_linear_weight(b)
        products.append(lambda: onednn._linear_pointwise(a, packed, None, "none", [], ""))
    seconds = [min(timeit.repeat(product, repeat=6, number=1)) for product in products]
    return 2e-9 * n**3 / min(seconds)


def _measure_shape(
    shape: Shape, dtype: torch.dtype, repeats: int | None, numpy: bool
) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = nn.RNN(shape.I, shape.H, dtype=dtype)
        x = torch.randn(shape.T, shape.B, shape.I, dtype=dtype, requires_grad=True)
        dy = torch.randn(shape.T, shape.B, shape.H, dtype=dtype)
        ours = FastRNN(shape.I, shape.H, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    modules = {OURS: ours, THEIRS: theirs}

    def forward(module: nn.RNN) -> Sequence[Tensor]:
        with torch.no_grad():
            return module(x)

    def training(module: nn.RNN) -> Sequence[Tensor]:
        return torch.autograd.grad(module(x)[0], (x, *module.parameters()), dy)

    gradients = ["gradient of " + name for name, _ in theirs.named_parameters(prefix="")]
    names = ["output", "h_n", "gradient of input", *gradients]
    difference = disagreement(
        names,
        [*forward(ours), *training(ours)],
        [*forward(theirs), *training(theirs)],
        TOLERANCE[dtype],
    )
    if difference:
        raise RuntimeError(
            f"{OURS} and {THEIRS} disagree at T,B,I,H = {shape}: {difference}; nothing was timed"
        )

    modes = {
        mode: alternate(
            {name: sampler(lambda m=m, call=call: call(m)) for name, m in modules.items()}, repeats
        )
        for mode, call in (("forward", forward), ("training", training))
    }
    if numpy:
        # Last and by itself: its BLAS has threads of its own, which go on spinning for a while.
        call = _numpy_forward(theirs, x)
        modes["forward"] |= alternate({NUMPY: sampler(call)}, len(modes["forward"][OURS]))
    flop = 2 * shape.T * shape.B * shape.H * (shape.I + shape.H)
    return shape._asdict() | {
        "forward": figures(modes["forward"], flop),
        # Each of the two products of the forward has two more in the backward.
        "training": figures(modes["training"], 3 * flop),
    }


def disagreement(
    names: Sequence[str], got: Sequence[Any], want: Sequence[Any], tolerance: float
) -> str | None:
    """The first of the arrays or tensors that differs, and by how much; None if none does.

    ``tolerance`` is a part of the largest element of what is wanted.
    """
    for name, a, b in zip(names, got, want, strict=True):
        if a.shape != b.shape:
            return f"{name} is {tuple(a.shape)}, not {tuple(b.shape)}"
        error, scale = float(abs(a - b).max()), float(abs(b).max())
        if not error <= tolerance * scale:  # so that a NaN is a disagreement too
            return f"{name} differs by {error:.3g} where the largest element is {scale:.3g}"
    return None


def _numpy_forward(module: nn.RNN, x: Tensor) -> Callable[[], Any]:
    weights = [p.detach().numpy() for p in module.parameters()]
    array = x.detach().numpy()
    return lambda: reference.forward(array, None, *weights)


def figures(samples: dict[str, np.ndarray], flop: int) -> dict[str, Any]:
    """What a report says of the samples of one mode of one shape; rnnfast is one of them."""
    ms = milliseconds(samples)
    ours = ms[OURS]["median"]
    return {
        "rounds": len(samples[OURS]),
        "ms": ms,
        "ratio": {
            name: {"of_medians": ms[name]["median"] / ours, **_spread(values / samples[OURS])}
            for name, values in samples.items()
            if name != OURS
        },
        "gflops": 1e-6 * flop / ours,
    }


def milliseconds(samples: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Median and 20th and 80th percentile of each."""
    return {
        name: {"median": 1e3 * float(np.median(values)), **_spread(1e3 * values)}
        for name, values in samples.items()
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    p20, p80 = np.percentile(values, [20, 80])
    return {"p20": float(p20), "p80": float(p80)}


def sampler(call: Callable[[], Any]) -> Sampler:
    return lambda number: timeit.timeit(call, number=number) / number


def alternate(
    samplers: dict[str, Sampler], repeats: int | None = None, seconds: float = MODE_SECONDS
) -> dict[str, np.ndarray]:
    """Seconds a call of each, one sample a round, in an order that turns round.

    As many rounds as ``repeats``, or as fit ``seconds``.
    """
    cost = {}
    for name, sample in samplers.items():
        sample(1)  # warms up
        cost[name] = sample(1)
    number = {name: max(1, math.ceil(SAMPLE_SECONDS / cost[name])) for name in samplers}
    round_seconds = sum(cost[name] * number[name] for name in samplers)
    rounds = repeats or max(MIN_ROUNDS, int(seconds / round_seconds))

    samples = {name: [] for name in samplers}
    order = list(samplers)
    for _ in range(rounds):
        for name in order:
            samples[name].append(samplers[name](number[name]))
        order.append(order.pop(0))
    return {name: np.array(values) for name, values in samples.items()}


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(np.mean([math.log(value) for value in values]))


def headline(report: dict[str, Any]) -> str:
    """One line: the machine, what was run on it, and its ceiling."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"{machine['cpu']} ({machine['cpu_numbers']}), {machine['cores']} cores, "
        f"{report['threads']} threads, {report['build']['isa']}; rnnfast {versions['rnnfast']}, "
        f"torch {versions['torch']}; {report['dtype']}, {GEMM_SIZE}^3 product "
        f"{report['gemm_gflops']:.0f} GFLOP/s"
    )


def rows(report: dict[str, Any], mode: str) -> list[list[str]]:
    """The table of one mode as text: a heading, a row a shape, the geometric mean."""
    others = list(report["geometric_mean"][mode])
    heading = ["T,B,I,H", f"{OURS} ms"]
    for other in others:
        heading += [f"{other} ms", "ratio"]
    table = [[*heading, "GFLOP/s", "of gemm"]]
    for result in report["shapes"]:
        figures = result[mode]
        row = [str(_shape(result)), format_ms(figures["ms"][OURS]["median"])]
        for other in others:
            row += [
                format_ms(figures["ms"][other]["median"]),
                f"{figures['ratio'][other]['of_medians']:.2f}",
            ]
        table.append([*row, f"{figures['gflops']:.0f}", f"{figures['of_gemm']:.0%}"])
    row = ["geometric mean", ""]
    for mean in report["geometric_mean"][mode].values():
        row += ["", f"{mean:.2f}"]
    table.append([*row, "", ""])
    return table


def format_ms(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _shape(result: dict[str, Any]) -> Shape:
    return Shape(*(result[letter] for letter in Shape._fields))


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the headline, then a table a mode."""
    parts = [f"{headline(report)}. {report['date']}, `{report['command']}`\n"]
    for mode, title in MODES.items():
        parts.append(f"### {title}\n\n{markdown_table(rows(report, mode))}")
    return "\n".join(parts)


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """As Markdown: the first row is the heading; all columns but the first are numbers."""
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = []
    for first, *others in (table[0], rule, *table[1:]):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("| " + " | ".join([first.ljust(widths[0]), *cells]) + " |\n")
    return "".join(lines)


def figure(report: dict[str, Any]) -> Any:
    """The ratios to nn.RNN as a ``matplotlib.figure.Figure``: a pair of bars a shape.

    Raises:
        UserError: there is no matplotlib, which is optional.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    results = report["shapes"]
    fig = Figure(figsize=(8, 1.6 + 0.55 * len(results)), layout="constrained")
    axes = fig.add_subplot()
    height = 0.4
    for k, (mode, title) in enumerate(MODES.items()):
        ratios = [result[mode]["ratio"][THEIRS]["of_medians"] for result in results]
        mean = report["geometric_mean"][mode][THEIRS]
        # A bar starts at 1, no gain: on the logarithmic axis twice as fast and half as fast are
        # then equally long.
        bars = axes.barh(
            [row + (k - 0.5) * height for row in range(len(results))],
            [ratio - 1 for ratio in ratios],
            height,
            left=1,
            label=f"{title}, geometric mean {mean:.2f}",
        )
        axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1, y=0.02)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(results)), [str(_shape(result)) for result in results])
    axes.invert_yaxis()
    axes.set_ylabel("T,B,I,H")
    axes.set_xlabel("times as fast as torch.nn.RNN (logarithmic)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    fig.suptitle(headline(report).replace("; ", "\n", 1), fontsize=9)
    fig.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return fig


def show(report: dict[str, Any], console: Console) -> None:
    """Print the headline and a table a mode, and a warning where the machine was busy."""
    console.print(headline(report), highlight=False)
    warn_if_busy(report, console)
    for mode, title in MODES.items():
        heading, *body, last = rows(report, mode)
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for k, column in enumerate(heading):
            # On two lines the columns fit 80 characters.
            table.add_column(
                column.replace(" ", "\n"), justify="right" if k else "left", no_wrap=True
            )
        for row in body:
            table.add_row(*row)
        table.add_section()
        table.add_row(*last)
        console.print(table)


def warn_if_busy(report: dict[str, Any], console: Console) -> None:
    if report["load"] > 0.5 * report["machine"]["cores"]:
        console.print(
            f"The machine was busy: load average {report['load']:.1f} at the start. Threads that "
            "wait for one another then stall, and the ratios say little."
        )
