"""Draw a report of `measure` with matplotlib."""

from __future__ import annotations

from typing import Any

from .._common.plots import require_matplotlib
from .comparison import MODES, THEIRS
from .report import headline, shape_of


def figure(report: dict[str, Any]) -> Any:
    """Draw the ratios to the module of torch: a pair of bars for each shape.

    Args:
        report: what `measure` returned.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        UserError: matplotlib, which is optional, is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    results, theirs = report["shapes"], THEIRS[report["cell"]]
    fig = Figure(figsize=(8, 1.6 + 0.55 * len(results)), layout="constrained")
    axes = fig.add_subplot()
    height = 0.4
    for k, (mode, title) in enumerate(MODES.items()):
        ratios = [result[mode]["ratio"][theirs]["of_medians"] for result in results]
        mean = report["geometric_mean"][mode][theirs]
        # A bar starts at 1, which is no gain. Twice as fast and half as fast then have bars of
        # equal length on the logarithmic axis.
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
    axes.set_yticks(range(len(results)), [str(shape_of(result)) for result in results])
    axes.invert_yaxis()
    axes.set_ylabel("T,B,I,H")
    axes.set_xlabel(f"times as fast as torch.{theirs} (logarithmic)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    fig.suptitle(headline(report).replace("; ", "\n", 1), fontsize=9)
    fig.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return fig
