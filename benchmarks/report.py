"""Show the report of run.py as Markdown and as two plots."""

from dataclasses import replace
from typing import Any

import contest
from cases import Case
from matplotlib.figure import Figure

from rnnfast import bench


def case_of(result: dict[str, Any]) -> Case:
    """Return the case of an entry of `report["cases"]`."""
    fields = {name: result[name] for name in Case.__dataclass_fields__}
    return Case(**fields | {"lengths": tuple(fields["lengths"] or ()) or None})


def markdown(report: dict[str, Any]) -> str:
    """Return the report as text: headline, ceilings, and one table with remarks for each mode."""
    ceilings = report["ceilings"]
    reads = ", ".join(f"{level} {gbs:.0f}" for level, gbs in ceilings["levels"].items())
    gemm = ", ".join(f"{name} {rate:.0f}" for name, rate in ceilings["gemm_gflops"].items())
    contestants = report["contestants"].items()
    present = ", ".join(f"{name} {c['version']}" for name, c in contestants if c["version"])
    absent = ", ".join(f"{name} ({c['absent']})" for name, c in contestants if c["absent"])
    parts = [
        f"{bench.headline(report)}. {report['date']}, `{report['command']}`\n",
        f"Ceilings: {bench.GEMM_SIZE}^3 product {gemm} GFLOP/s; read GB/s {reads}; copy in memory "
        f"{ceilings['copy_gbs']:.0f} GB/s.\n",
        f"Contestants: {present}.{f' Absent: {absent}.' if absent else ''}\n",
        "Times are milliseconds a call. A ratio is a time divided by that of rnnfast.\n",
    ]
    for mode, title in bench.MODES.items():
        parts.append(f"### {title}\n\n{bench.markdown_table(table_rows(report, mode))}")
        parts += [f"{line}\n" for line in remarks(report, mode)]
    return "\n".join(parts)


def timed(report: dict[str, Any], mode: str) -> list[str]:
    """Return the contestants that were timed in at least one case of the mode."""
    return [
        name
        for name in report["contestants"]
        if any(name in result[mode]["ms"] for result in report["cases"])
    ]


def table_rows(report: dict[str, Any], mode: str) -> list[list[str]]:
    """Return the table of one mode as text: a heading, and one row for each case.

    The geometric means of the default shapes follow these shapes.
    """
    names = timed(report, mode)
    table = [["T,B,I,H", *names, "ceiling", "of it", "fastest other", "ratio", "first"]]
    table += [[r["case"], *_row(r[mode], names)] for r in report["cases"] if r["default"]]
    if mean := report["geometric_mean"][mode]:
        row = [f"{mean[name]:.2f}" if name in mean else "" for name in names]
        table.append(["mean ratio", *row, "", "", "", f"{mean['fastest other']:.2f}", ""])
    table += [[r["case"], *_row(r[mode], names)] for r in report["cases"] if not r["default"]]
    return table


def _row(figures: dict[str, Any], names: list[str]) -> list[str]:
    row = []
    for name in names:
        if name in figures["ms"]:
            row.append(bench.format_ms(figures["ms"][name]["median"]))
        else:
            row.append("not run: " + figures["not_run"][name].partition(":")[0])
    ours = bench.OURS in figures["ms"]
    fastest = figures["fastest_other"]
    return [
        *row,
        bench.format_ms(figures["ceiling_ms"]),
        f"{figures['of_ceiling']:.0%}" if ours else "",
        fastest,
        f"{figures['ratio'][fastest]['of_medians']:.2f}" if ours else "",
        _first(figures) if ours else "",
    ]


def _first(figures: dict[str, Any]) -> str:
    if figures["first"]:
        return "yes"
    return "kernels" if figures.get("kernels_first") else "no"


def remarks(report: dict[str, Any], mode: str) -> list[str]:
    """Return sentences on what the table of a mode does not show."""
    lines = []
    results = report["cases"]
    for name, contestant in report["contestants"].items():
        reasons = {r["case"]: r[mode]["not_run"].get(name) for r in results}
        if contestant["version"] and name not in timed(report, mode):
            lines.append(f"{name}: {', '.join(sorted(set(reasons.values())))}.")
            continue
        lines += [
            f"{name} at {case}: {why}." for case, why in reasons.items() if why and ":" in why
        ]
    by_case = {case_of(result): result[mode] for result in results}
    for case, figures in by_case.items():
        dense = by_case.get(replace(case, lengths=None))
        if case.lengths and dense and bench.OURS in figures["ms"]:
            packed, full = (
                1e3 * f["ms"][bench.OURS]["median"] / c.tokens
                for c, f in ((case, figures), (replace(case, lengths=None), dense))
            )
            lines.append(
                f"{bench.OURS} at {case}: {packed:.2f} us for each of {case.tokens} tokens; "
                f"without the lengths {full:.2f} us for each of {case.T * case.B}."
            )
    for name in (bench.OURS, contest.KERNELS):
        ratios = [
            r[mode]["ms"][r[mode]["fastest_other"]]["median"] / r[mode]["ms"][name]["median"]
            for r in results
            if name in r[mode]["ms"]
        ]
        if ratios:
            lines.append(
                f"The fastest other contestant takes {bench.geometric_mean(ratios):.2f} times as "
                f"long as {name}, by the geometric mean over all {len(ratios)} rows."
            )
    return lines


def comparison(report: dict[str, Any]) -> Figure:
    """Draw every contestant's time divided by that of rnnfast: a panel a mode, a line a case."""
    results = [r for r in report["cases"] if any("ratio" in r[mode] for mode in bench.MODES)]
    figure = Figure(figsize=(13, 2 + 0.36 * len(results)), layout="constrained")
    panels = figure.subplots(1, len(bench.MODES), sharey=True)
    others = [name for name in report["contestants"] if name != bench.OURS]
    handles = {}
    for axes, (mode, title) in zip(panels, bench.MODES.items(), strict=True):
        figures = [(y, r[mode]) for y, r in enumerate(results) if "ratio" in r[mode]]
        axes.set_xscale("log", base=2)
        for k, name in enumerate(others):
            points = [(f["ratio"][name]["of_medians"], y) for y, f in figures if name in f["ratio"]]
            if points:
                marker = "osD^v<>ph*"[k % 10]
                (handles[name],) = axes.plot(*zip(*points, strict=True), marker, c=f"C{k}", ms=5)
        # The cost of the call itself dominates small cases, whose ceiling is far off the plot.
        shown = [r["of_medians"] for _, f in figures for r in f["ratio"].values()]
        axes.set_xlim(min([0.5, *shown]) / 1.2, max([2, *shown]) * 1.2)
        bound = [(f["of_ceiling"], y) for y, f in figures]
        (handles["ceiling of the machine"],) = axes.plot(
            [x for x, _ in bound], [y for _, y in bound], "|", c="black", ms=9, mew=2
        )
        axes.axvline(1, color="black", linewidth=1)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"time / time of {bench.OURS} (logarithmic)")
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(results)), [r["case"] for r in results], fontsize=8)
    panels[0].set_ylim(len(results) - 0.5, -0.5)  # all panels share this axis
    figure.suptitle(bench.headline(report).replace("; ", "\n", 1), fontsize=9)
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=5, fontsize=9, frameon=False
    )
    return figure


def roofline(report: dict[str, Any]) -> Figure:
    """Draw the float32 forward pass of rnnfast at the default shapes, under the machine's roofs.

    S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
    multicore architectures", Communications of the ACM 52(4), 2009.
    """
    points = [
        (r["case"], r["intensity"], r["forward"]["gflops"])
        for r in report["cases"]
        if r["default"] and "gflops" in r["forward"]
    ]
    intensities = [x for _, x, _ in points]
    left, right = min(intensities, default=1) / 4, max(intensities, default=1) * 2
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    gemm = report["ceilings"]["gemm_gflops"]["float32"]
    axes.plot([left, right], [gemm, gemm], color="black", label=f"product {gemm:.0f} GFLOP/s")
    for level, gbs in report["ceilings"]["levels"].items():
        ridge = max(left, gemm / gbs)
        label = f"reading from {level} {gbs:.0f} GB/s"
        axes.plot([left, ridge], [left * gbs, ridge * gbs], linewidth=1, label=label)
    for k, (name, x, gflops) in enumerate(points):
        # Points that lie close together are distinguished by shape and colour.
        axes.plot(x, gflops, "osD^v<>ph*"[k % 10], color=f"C{k}", ms=7, label=name)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left, right)
    axes.set_xlabel("FLOP of a forward step / byte that it must move (logarithmic)")
    axes.set_ylabel("GFLOP/s (logarithmic)")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(bench.headline(report).replace("; ", "\n", 1), fontsize=9)
    return figure
