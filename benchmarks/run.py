"""Measure the default shapes and write benchmarks/results/<cpu>-<isa>.{json,md,png}.

Run it on a machine that does nothing else: python benchmarks/run.py
"""

import argparse
import json
import re
from pathlib import Path

from rich.console import Console

from rnnfast import bench
from rnnfast.lm.storage import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, help="samples (default: about 1.5 s a measurement)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    bench.require_matplotlib()
    args.out.mkdir(parents=True, exist_ok=True)

    report = bench.measure(
        bench.progress(bench.DEFAULT_SHAPES, Console(stderr=True)), repeats=args.repeats, numpy=True
    )
    repeats = f" --repeats {args.repeats}" if args.repeats else ""
    report["command"] = f"python benchmarks/run.py{repeats}"
    bench.show(report, Console())

    # The instruction set is part of the name because hypervisors call every generation of a CPU
    # the same.
    name = f"{report['machine']['cpu']} {report['build']['isa']}".lower()
    stem = args.out / re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    write_atomic(stem.with_suffix(".json"), (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(stem.with_suffix(".md"), bench.markdown(report).encode())
    bench.save_plot(report, stem.with_suffix(".png"))


if __name__ == "__main__":
    main()
