"""Time a training step with resets, without them, and with the sequences cut at each reset.

Samples alternate as in `rnnfast bench`. The results of the kernel and of the cut sequences must
agree before anything is timed.
"""

import argparse
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from rnnfast import FastRNN, bench
from rnnfast._ops import RNNDescriptor
from rnnfast.functional._kernels import rnn_on_kernel
from rnnfast.functional._segments import rnn_in_segments

SHAPES = "128,16,128,128 128,64,64,64 100,32,256,256 512,1,512,512"


def measure(shape, share, repeats):
    """Return the median milliseconds of each way to run a training step."""
    T, B, *sizes = shape
    torch.manual_seed(0)
    module = FastRNN(*sizes)
    x, dy = torch.randn(T, B, sizes[0]), torch.randn(T, B, sizes[1])
    reset = torch.rand(T, B) < share
    parameters = list(module.parameters())
    descriptor = RNNDescriptor(1, 1, False, "tanh", True)

    def step(run):
        output, _ = run()
        return output, torch.autograd.grad(output, parameters, dy)

    ways = {
        "no resets": partial(step, lambda: module(x)),
        "resets": partial(step, lambda: module(x, reset=reset)),
        "cut": partial(
            step,
            lambda: rnn_in_segments(rnn_on_kernel, x, None, parameters, None, descriptor, reset),
        ),
    }
    torch.testing.assert_close(ways["resets"](), ways["cut"](), rtol=1e-3, atol=1e-3)
    medians = bench.median_seconds(ways, repeats)
    return {name: 1e3 * seconds for name, seconds in medians.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Shapes T,B,I,H, separated by blanks (default: four)"
    parser.add_argument("--shapes", metavar="SHAPES", default=SHAPES, help=about)
    about = "Probability of a reset before each step of each sequence (default: 0.02)"
    parser.add_argument("--share", type=float, metavar="P", default=0.02, help=about)
    about = "Samples (default: as many as fit in 1.5 s a shape, at least 5)"
    parser.add_argument("--repeats", type=int, metavar="N", help=about)
    args = parser.parse_args()

    title = f"ms of a training step, {args.share:.0%} resets, {torch.get_num_threads()} threads"
    table = Table("T,B,I,H", title=title)
    for column in ("no resets", "resets", "ratio", "cut", "ratio"):
        table.add_column(column, justify="right")
    for text in args.shapes.split():
        ms = measure([int(number) for number in text.split(",")], args.share, args.repeats)
        none, kernel, cut = ms.values()
        numbers = (none, kernel, kernel / none, cut, cut / none)
        table.add_row(text, *(f"{number:.3g}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
