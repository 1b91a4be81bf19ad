"""Time FastRNN while a different process computes on one of the cores.

The system then puts one of the threads of a call aside for milliseconds at a time. A call must
never take more than twice as long as on one thread, whatever its size. The times are means, because
few calls lose time, and those lose much. `--busy 0` times the same calls on a quiet machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rnnfast import FastRNN, build_info
from rnnfast._common.files import write_atomic

SHAPES = (
    "100,1,128,128 100,8,64,64 100,32,64,64 100,32,128,128 512,1,512,512 1000,1,1,1000 "
    "100,32,512,512"
)
SECONDS = 2.0  # for each number


@contextmanager
def busy(processes):
    """Run this many processes that compute all the time."""
    running = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def mean_ms(call):
    """Return the mean time of a call in milliseconds."""
    call()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 3:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.mean(times)


def calls(module, T, B):
    """Return a call of the module without gradients, and one with all gradients."""
    x, dy = torch.randn(T, B, module.input_size), torch.randn(T, B, module.hidden_size)
    parameters = list(module.parameters())

    def inference():
        with torch.no_grad():
            module(x)

    def training():
        torch.autograd.grad(module(x)[0], parameters, dy)

    return {"inference": inference, "training": training}


def measure(shape, threads, processes):
    """Return one row for inference and one for training."""
    T, B, *sizes = shape
    rows = []
    modules = {"rnnfast": FastRNN(*sizes), "nn.RNN": nn.RNN(*sizes)}
    for phase in ("inference", "training"):
        row = {"shape": shape, "phase": phase}
        for name, module in modules.items():
            call = calls(module, T, B)[phase]
            for count in (1, threads):
                torch.set_num_threads(count)
                with busy(processes):
                    row[f"{name}, {count}"] = mean_ms(call)
        row["ratio"] = row[f"rnnfast, {threads}"] / row["rnnfast, 1"]
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Shapes T,B,I,H, separated by blanks (default: seven from small to large)"
    parser.add_argument("--shapes", metavar="SHAPES", default=SHAPES, help=about)
    about = "Processes that compute beside the measurement (default: 1)"
    parser.add_argument("--busy", type=int, metavar="N", default=1, help=about)
    parser.add_argument("--json", type=Path, metavar="PATH", help="Write the figures as JSON")
    args = parser.parse_args()

    threads = torch.get_num_threads()
    table = Table(title=f"mean milliseconds of a call, {args.busy} busy processes")
    for column in ("T,B,I,H", "", "1 thread", f"{threads} threads", "ratio", "nn.RNN, 1", "all"):
        table.add_column(column, justify="right")
    rows = []
    for text in args.shapes.split():
        shape = [int(number) for number in text.split(",")]
        for row in measure(shape, threads, args.busy):
            rows.append(row)
            names = ("rnnfast, 1", f"rnnfast, {threads}", "ratio", "nn.RNN, 1")
            numbers = [row[name] for name in (*names, f"nn.RNN, {threads}")]
            table.add_row(text, row["phase"], *(f"{number:.3g}" for number in numbers))
    Console().print(table)
    if args.json:
        report = {"threads": threads, "busy": args.busy, "build": build_info(), "rows": rows}
        write_atomic(args.json, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
