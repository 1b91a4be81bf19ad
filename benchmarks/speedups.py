"""Draw how many times as fast as torch's module rnnfast is, from one result of benchmarks/run.py.

    python benchmarks/speedups.py benchmarks/results/NAME.json docs/figures/speedups.svg

README.md and the site show the picture.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rnnfast import bench

COLOURS = {"forward": "#9fa8da", "training": "#303f9f"}


def speedups(report: dict[str, Any]) -> Figure:
    """Return a bar chart with one pair of bars for each default shape of `report`."""
    baseline = bench.THEIRS[report["cell"]]
    results = [result for result in report["cases"] if result["default"]]
    names = [result["case"].replace(",", ", ") for result in results]
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.add_subplot()
    height = 0.38
    for k, (mode, title) in enumerate(bench.MODES.items()):
        ratios = [result[mode]["ratio"][baseline]["of_medians"] for result in results]
        mean = report["geometric_mean"][mode][baseline]
        places = [y + (k - 0.5) * height for y in range(len(results))]
        label = f"{title}, geometric mean {mean:.1f}"
        bars = axes.barh(places, ratios, height, color=COLOURS[mode], label=label)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(results)), names)
    axes.invert_yaxis()
    axes.set_ylabel("time steps, batch rows, input size, hidden size")
    axes.set_xlabel(f"times as fast as {baseline} (the line marks 1)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False)
    figure.suptitle(bench.headline(report).replace("; ", "\n", 1), fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="JSON file that benchmarks/run.py wrote")
    parser.add_argument("picture", type=Path, help="SVG file to write")
    args = parser.parse_args()
    # Without these the file would differ from run to run.
    matplotlib.rcParams["svg.hashsalt"] = "rnnfast"
    # The results of 2026-11-22 do not name the cell, which was always the RNN.
    figure = speedups({"cell": "rnn"} | json.loads(args.result.read_text()))
    figure.savefig(args.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
