"""Time a single time step of a stepper, of its module and of torch's module, without gradients.

Samples alternate as in `rnnfast bench`. The outputs must agree before anything is timed.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table

from rnnfast import bench
from rnnfast.bench.comparison import CELLS

SHAPES = "1,16,64 1,16,128 1,64,256 16,128,128 1,512,512"


def measure(cell, shape, repeats):
    """Return the median microseconds of a step of each implementation."""
    B, *sizes = shape
    torch.manual_seed(0)
    ours, theirs = CELLS[cell].ours(*sizes), CELLS[cell].theirs(*sizes)
    theirs.load_state_dict(ours.state_dict())
    stepper = ours.stepper(B)
    x, h = torch.randn(1, B, sizes[0]), torch.zeros(1, B, sizes[1])
    h = (h, h) if cell == "lstm" else h
    torch.testing.assert_close(stepper.step(x[0]), ours(x, h)[0][0])
    calls = {
        "stepper": lambda: stepper.step(x[0]),
        CELLS[cell].ours.__name__: lambda: ours(x, h),
        bench.THEIRS[cell]: lambda: theirs(x, h),
    }
    with torch.no_grad():
        torch.testing.assert_close(ours(x, h), theirs(x, h))
        medians = bench.median_seconds(calls, repeats)
    return {name: 1e6 * seconds for name, seconds in medians.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Cell (default: rnn)"
    parser.add_argument("--cell", choices=CELLS, default="rnn", help=about)
    about = "Shapes B,I,H, separated by blanks (default: five)"
    parser.add_argument("--shapes", metavar="SHAPES", default=SHAPES, help=about)
    about = "Samples (default: as many as fit in 1.5 s a shape, at least 5)"
    parser.add_argument("--repeats", type=int, metavar="N", help=about)
    args = parser.parse_args()

    table = Table("B,I,H", title=f"us of a step, {torch.get_num_threads()} threads")
    ours, theirs = CELLS[args.cell].ours.__name__, bench.THEIRS[args.cell]
    for column in ("stepper", ours, theirs, f"{theirs} / stepper", f"{theirs} / {ours}"):
        table.add_column(column, justify="right")
    for text in args.shapes.split():
        us = measure(args.cell, [int(number) for number in text.split(",")], args.repeats)
        stepper, our, their = us.values()
        numbers = (stepper, our, their, their / stepper, their / our)
        table.add_row(text, *(f"{number:.3g}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
