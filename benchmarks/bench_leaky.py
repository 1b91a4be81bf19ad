"""Time a training step of LeakyRNN with noise, and of the Python loop that it replaces.

The loop is the one of public code for continuous-time RNNs: two nn.Linear, one step after the
other. With --compile, torch.compile makes one function of each step. Samples alternate as in
`rnnfast bench`. Without noise, the outputs must agree before anything is timed.
"""

import argparse
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rnnfast import LeakyRNN, bench

SHAPES = "200,16,3,100 200,64,3,128 200,64,3,256 200,128,3,512"


class Loop(nn.Module):
    """Leaky units as a loop over time steps, with the weights of a LeakyRNN."""

    def __init__(self, rnn, compiled):
        super().__init__()
        self.input2h = nn.Linear(rnn.input_size, rnn.hidden_size)
        self.h2h = nn.Linear(rnn.hidden_size, rnn.hidden_size, bias=False)
        self.input2h.weight, self.input2h.bias = rnn.weight_ih_l0, rnn.bias_l0
        self.h2h.weight = rnn.weight_hh_l0
        self.alpha, self.sigma, self.state = rnn.alpha[0, 0].item(), rnn.noise, rnn.state
        self.step = torch.compile(self.step) if compiled else self.step

    def step(self, x, state):
        """Return the next state."""
        is_rate = self.state == "rate"
        pre = self.input2h(x) + self.h2h(state if is_rate else torch.relu(state))
        pre = pre + (2 / self.alpha) ** 0.5 * self.sigma * torch.randn_like(pre)
        return (1 - self.alpha) * state + self.alpha * (torch.relu(pre) if is_rate else pre)

    def forward(self, input):
        """Return the rates of all time steps."""
        state = input.new_zeros(input.shape[1], self.h2h.in_features)
        states = []
        for x in input:
            state = self.step(x, state)
            states.append(state)
        states = torch.stack(states)
        return states if self.state == "rate" else torch.relu(states)


def measure(shape, state, compiled, repeats):
    """Return the median milliseconds of a training step of each implementation."""
    T, B, *sizes = shape
    torch.manual_seed(0)
    rnn = LeakyRNN(*sizes, alpha=0.2, state=state, noise=0.05)
    x, dy = torch.randn(T, B, sizes[0]), torch.randn(T, B, sizes[1])
    loops = {"loop": Loop(rnn, False)}
    if compiled:
        torch.compiler.reset()  # what was compiled for other shapes counts against a limit
        loops["compiled"] = Loop(rnn, True)
    for loop in loops.values():
        loop.sigma = 0.0
        torch.testing.assert_close(loop(x), rnn(x, noise=False)[0], rtol=1e-4, atol=1e-4)
        loop.sigma = rnn.noise

    def step(run):
        return torch.autograd.grad(run(), list(rnn.parameters()), dy)

    ways = {name: partial(step, partial(loop, x)) for name, loop in loops.items()}
    ways["LeakyRNN"] = partial(step, lambda: rnn(x)[0])
    medians = bench.median_seconds(ways, repeats)
    return {name: 1e3 * seconds for name, seconds in medians.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Shapes T,B,I,H, separated by blanks (default: four)"
    parser.add_argument("--shapes", metavar="SHAPES", default=SHAPES, help=about)
    about = "Time a loop whose steps are compiled, too; needs a C++ compiler"
    parser.add_argument("--compile", action="store_true", help=about)
    about = "Samples (default: as many as fit in 1.5 s a shape, at least 5)"
    parser.add_argument("--repeats", type=int, metavar="N", help=about)
    args = parser.parse_args()

    table = Table(
        "state", "T,B,I,H", title=f"ms of a training step, {torch.get_num_threads()} threads"
    )
    names = ["loop", *(["compiled"] if args.compile else []), "LeakyRNN"]
    for column in (*names, *(f"{name} / LeakyRNN" for name in names[:-1])):
        table.add_column(column, justify="right")
    ratios = {name: [] for name in names[:-1]}
    for state in ("rate", "current"):
        for text in args.shapes.split():
            shape = [int(number) for number in text.split(",")]
            ms = measure(shape, state, args.compile, args.repeats)
            for name, values in ratios.items():
                values.append(ms[name] / ms["LeakyRNN"])
            numbers = [*ms.values(), *(values[-1] for values in ratios.values())]
            table.add_row(state, text, *(f"{number:.3g}" for number in numbers))
    console = Console(width=100)
    console.print(table)
    for name, values in ratios.items():
        mean = bench.geometric_mean(values)
        console.print(f"{name} / LeakyRNN: geometric mean {mean:.2f}, least {min(values):.2f}")


if __name__ == "__main__":
    main()
