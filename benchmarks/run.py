"""Time rnnfast against torch and every other library with recurrent layers that is installed.

    python benchmarks/run.py
    python benchmarks/run.py --cell gru

writes benchmarks/results/<cpu>-<isa>.json, .md, .png and -roofline.png. With --cell gru or lstm the
names end in -gru or -lstm. Run it on a machine that does nothing else. benchmarks/README.md
explains the results.
"""

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ceilings
import contest
import report as reports
from cases import Case, special_cases
from rich.console import Console
from rich.logging import RichHandler

from rnnfast import bench
from rnnfast._common.files import write_atomic
from rnnfast._common.plots import save_figure
from rnnfast._common.progress import measuring

log = logging.getLogger("benchmarks")


def measure(
    cases: Sequence[Case],
    everyone: Sequence[contest.Contestant],
    repeats: int | None,
    console: Console,
) -> dict[str, Any]:
    """Measure all cases, which have one cell, and return the report, which `json.dumps` accepts.

    The means are over the cases of `bench.DEFAULT_SHAPES`.
    """
    [cell] = {case.cell for case in cases}
    report = bench.context()
    threads = report["threads"]
    default = set(default_cases(cell))
    limits = {
        "dtypes": sorted({"float32", *(case.dtype for case in cases)}),
        "working_sets": sorted({case.weight_bytes() for case in cases}),
        "threads": threads,
    }
    log.info("measuring the ceilings of this machine")
    ceiling = ceilings.measure(**limits)
    results = []
    with contest.started(everyone, threads):
        for case in measuring(cases, console):
            modes = {mode: contest.measure(case, mode, everyone, repeats) for mode in bench.MODES}
            results.append((case, modes))
    log.info("measuring the ceilings again")
    ceiling = ceilings.best(ceiling, ceilings.measure(**limits))

    report |= {
        "cell": cell,
        "dtype": "float32",
        "gemm_gflops": ceiling["gemm_gflops"]["float32"],
        "ceilings": ceiling,
        "contestants": {c.name: {"version": c.version, "absent": c.absent} for c in everyone},
        "cases": [
            {
                "case": str(case),
                "default": case in default,
                **vars(case),
                "intensity": case.intensity(),
            }
            | {mode: _figures(case, mode, *modes[mode], ceiling) for mode in bench.MODES}
            for case, modes in results
        ],
    }
    report["geometric_mean"] = {mode: _means(report, mode) for mode in bench.MODES}
    return report


def default_cases(cell: str) -> list[Case]:
    """Return the cases of `bench.DEFAULT_SHAPES`."""
    return [Case(*shape, cell=cell) for shape in bench.DEFAULT_SHAPES]


def _figures(
    case: Case, mode: str, samples: dict[str, Any], not_run: dict[str, str], ceiling: dict[str, Any]
) -> dict[str, Any]:
    """Return what the report says about one mode of one case."""
    gemm = ceiling["gemm_gflops"][case.dtype]
    least = 1e3 * case.least_seconds(mode, gemm, ceiling["read_gbs"][str(case.weight_bytes())])
    if bench.OURS in samples:
        figures = bench.summarise(samples, case.flop(mode))
    else:
        figures = {"ms": bench.milliseconds(samples)}
    medians = {name: ms["median"] for name, ms in figures["ms"].items()}
    ours, kernels = (medians.pop(name, None) for name in (bench.OURS, contest.KERNELS))
    fastest = min(medians, key=medians.get)
    figures |= {"not_run": not_run, "ceiling_ms": least, "fastest_other": fastest}
    if ours is not None:
        figures |= {"of_ceiling": least / ours, "first": ours <= medians[fastest]}
    if kernels is not None:
        figures["kernels_first"] = kernels <= medians[fastest]
    return figures


def _means(report: dict[str, Any], mode: str) -> dict[str, float]:
    """Return geometric means of the ratios at the default shapes.

    There is one for each contestant that ran them all, and one for the fastest at each shape.
    """
    ratios = [
        (result[mode]["ratio"], result[mode]["fastest_other"])
        for result in report["cases"]
        if result["default"]
    ]
    if not ratios:
        return {}
    means = {
        name: bench.geometric_mean(ratio[name]["of_medians"] for ratio, _ in ratios)
        for name in report["contestants"]
        if all(name in ratio for ratio, _ in ratios)
    }
    fastest = bench.geometric_mean(ratio[name]["of_medians"] for ratio, name in ratios)
    return means | {"fastest other": fastest}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the report, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    about = "Cell of the layers (default: rnn, which has tanh)"
    parser.add_argument("--cell", choices=tuple(bench.THEIRS), default="rnn", help=about)
    about = "Samples (default: as many as fit in 2.5 s a measurement, at least 5)"
    parser.add_argument("--repeats", type=int, metavar="N", help=about)
    results = Path(__file__).parent / "results"
    about = "Folder for the files (default: benchmarks/results)"
    parser.add_argument("--out", type=Path, metavar="DIR", default=results, help=about)
    parser.add_argument(
        "--only", metavar="TEXT", help="Run the cases whose name contains TEXT; write no files"
    )
    args = parser.parse_args(arguments)

    cases = [*default_cases(args.cell), *special_cases(args.cell)]
    if args.only is None:
        args.out.mkdir(parents=True, exist_ok=True)
    else:
        cases = [case for case in cases if args.only in str(case)]
    if not cases:
        parser.error(f"--only {args.only!r}: no case has this in its name")

    console = Console(stderr=True)
    # Starting the libraries and compiling for them may take minutes in which nothing is measured.
    log.addHandler(RichHandler(console=console, show_level=False, show_path=False))
    log.setLevel(logging.INFO)
    report = measure(cases, contest.contestants(args.cell), args.repeats, console)
    suffix = f" {args.cell}" if args.cell != "rnn" else ""
    options = f" --cell{suffix}" if suffix else ""
    options += f" --repeats {args.repeats}" if args.repeats else ""
    report["command"] = f"python benchmarks/run.py{options}"
    print(reports.markdown(report))
    bench.warn_if_busy(report, Console())
    if args.only is not None:
        return

    # The name of the CPU is not enough: hypervisors give every generation the same name.
    machine = report["machine"]
    name = f"{machine['cpu']} {machine['cpu_numbers']} {report['build']['isa']}{suffix}".lower()
    stem = args.out / re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    write_atomic(stem.with_suffix(".json"), (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(stem.with_suffix(".md"), reports.markdown(report).encode())
    save_figure(reports.comparison(report), stem.with_suffix(".png"))
    save_figure(reports.roofline(report), stem.with_name(stem.name + "-roofline.png"))


if __name__ == "__main__":
    main()
