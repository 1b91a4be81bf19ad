"""Show a report of `measure` as text: tables on a console, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .comparison import MODES, OURS, Shape
from .timing import GEMM_SIZE


def headline(report: dict[str, Any]) -> str:
    """Return one line with the machine, the cell and what else was run on it, and its ceiling."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"{machine['cpu']} ({machine['cpu_numbers']}), {machine['cores']} cores, "
        f"{report['threads']} threads, {report['build']['isa']}; rnnfast {versions['rnnfast']}, "
        f"torch {versions['torch']}; {report['cell'].upper()}, {report['dtype']}, "
        f"{GEMM_SIZE}^3 product {report['gemm_gflops']:.0f} GFLOP/s"
    )


def table_rows(report: dict[str, Any], mode: str) -> list[list[str]]:
    """Return the table of one mode as text: a heading, one row a shape, the geometric mean."""
    others = list(report["geometric_mean"][mode])
    heading = ["T,B,I,H", f"{OURS} ms"]
    for other in others:
        heading += [f"{other} ms", "ratio"]
    table = [[*heading, "GFLOP/s", "of gemm"]]
    for result in report["shapes"]:
        summary = result[mode]
        row = [str(shape_of(result)), format_ms(summary["ms"][OURS]["median"])]
        for other in others:
            row += [
                format_ms(summary["ms"][other]["median"]),
                f"{summary['ratio'][other]['of_medians']:.2f}",
            ]
        table.append([*row, f"{summary['gflops']:.0f}", f"{summary['of_gemm']:.0%}"])
    row = ["geometric mean", ""]
    for mean in report["geometric_mean"][mode].values():
        row += ["", f"{mean:.2f}"]
    table.append([*row, "", ""])
    return table


def format_ms(value: float) -> str:
    """Return milliseconds with three significant digits, or as a whole number from 1000 on."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def shape_of(result: dict[str, Any]) -> Shape:
    """Return the shape that a result in `report["shapes"]` was measured at."""
    return Shape(*(result[letter] for letter in Shape._fields))


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown: the headline, then one table a mode.

    `report["command"]` must be the command that made the report.
    """
    parts = [f"{headline(report)}. {report['date']}, `{report['command']}`\n"]
    for mode, title in MODES.items():
        parts.append(f"### {title}\n\n{markdown_table(table_rows(report, mode))}")
    return "\n".join(parts)


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown. Its first row is the heading, its first column holds names.

    Columns after the first hold numbers and are aligned on the right.
    """
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = []
    for first, *others in (table[0], rule, *table[1:]):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("| " + " | ".join([first.ljust(widths[0]), *cells]) + " |\n")
    return "".join(lines)


def show(report: dict[str, Any], console: Console) -> None:
    """Print the headline, one table a mode, and a warning if the machine was busy."""
    console.print(headline(report), highlight=False)
    warn_if_busy(report, console)
    for mode, title in MODES.items():
        heading, *body, last = table_rows(report, mode)
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for k, column in enumerate(heading):
            # With headings on two lines the table fits 80 characters.
            table.add_column(
                column.replace(" ", "\n"), justify="right" if k else "left", no_wrap=True
            )
        for row in body:
            table.add_row(*row)
        table.add_section()
        table.add_row(*last)
        console.print(table)


def warn_if_busy(report: dict[str, Any], console: Console) -> None:
    """Print a warning if the load average at the start was above half the number of cores."""
    if report["load"] > 0.5 * report["machine"]["cores"]:
        console.print(
            f"The machine was busy: the load average was {report['load']:.1f} at the start. "
            "Threads that wait for one another stall on a busy machine, so do not rely on these "
            "ratios."
        )
