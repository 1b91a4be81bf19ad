"""Time a training step of `rnnfast.lm` against the same step on torch's modules.

The modules are `nn.Embedding`, `nn.RNN`, `nn.Linear` and `nn.CrossEntropyLoss`. Clipping and AdamW
are the same for both. Both models hold the same weights, and their gradients must agree before
anything is timed. Samples alternate as in `rnnfast bench`.
"""

import argparse
import copy
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rnnfast import bench, build_info, lm
from rnnfast._common.files import write_atomic

OURS, THEIRS = "rnnfast", "nn.RNN"
CASES = (  # level, V, emsize, H, layers, B, T
    ("word", 10_000, 200, 200, 2, 20, 35),
    ("char", 100, 128, 512, 1, 50, 100),
    ("char", 100, 128, 128, 1, 32, 64),
)
CLIP = 1.0
WIDTH = 100  # characters; figures would be cut off in a narrower table


class Torchs(nn.Module):
    """A copy of `model` that is made of torch's modules and has no dropout."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.decoder = copy.deepcopy((model.encoder, model.decoder))
        self.rnn = nn.RNN(model.rnn.input_size, model.rnn.hidden_size, model.rnn.num_layers)
        self.rnn.load_state_dict(model.rnn.state_dict())
        self.criterion = nn.CrossEntropyLoss()

    def loss(self, inputs, targets, hidden):
        """Return the loss and the last hidden state, like `loss` of the model in `rnnfast.lm`."""
        output, hidden = self.rnn(self.encoder(inputs), hidden)
        logits = self.decoder(output)
        return self.criterion(logits.flatten(0, 1), targets.flatten()), hidden


def stepper(model, inputs, targets):
    """Return a function that makes one update and keeps the hidden state for the next one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    carried = SimpleNamespace(hidden=None)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss, hidden = model.loss(inputs, targets, carried.hidden)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        carried.hidden = hidden.detach()
        return loss.item()

    return step


def check(ours, theirs, inputs, targets):
    """Raise RuntimeError if the gradients of the two models differ."""
    for model in (ours, theirs):
        model.zero_grad(set_to_none=True)
        model.loss(inputs, targets, None)[0].backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[name].grad
        error = float((parameter.grad - expected).abs().max() / expected.abs().max())
        if not error < 1e-4:
            raise RuntimeError(f"the gradients of {name} differ by {error:.2g}: nothing was timed")


def measure(level, V, emsize, H, layers, B, T, repeats):
    """Return medians of milliseconds and of tokens per second, and the ratio to `nn.RNN`."""
    tokens = ["\n", *(chr(0x4E00 + i) for i in range(V - 1))]
    if level == "word":
        tokens[:2] = ["<eos>", "<unk>"]
    torch.manual_seed(0)
    tied = level == "word" and emsize == H
    vocab = lm.Vocabulary.from_json({"level": level, "tokens": tokens})
    ours = lm.RNNLM(vocab, emsize, H, layers, tied=tied)
    theirs = Torchs(ours)
    inputs, targets = torch.randint(V, (2, T, B))
    check(ours, theirs, inputs, targets)
    models = {OURS: ours, THEIRS: theirs}
    steps = {name: stepper(m, inputs, targets) for name, m in models.items()}
    medians = bench.median_seconds(steps, repeats)
    ms = {name: 1e3 * median for name, median in medians.items()}
    return {
        "case": {"level": level, "V": V, "E": emsize, "H": H, "L": layers, "B": B, "T": T},
        "ms": ms,
        "tokens_per_second": {name: T * B / median for name, median in medians.items()},
        "ratio": ms[THEIRS] / ms[OURS],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Samples (default: as many as fit in 1.5 s a case, at least 5)"
    parser.add_argument("--repeats", type=int, metavar="N", help=about)
    parser.add_argument("--json", type=Path, metavar="PATH", help="Write the figures as JSON")
    args = parser.parse_args()
    table = Table(title=f"a training step, {torch.get_num_threads()} threads")
    for column in ("level", "V", "E", "H", "L", "B", "T"):
        table.add_column(column, justify="right")
    for name in (OURS, THEIRS):
        table.add_column(f"{name} ms", justify="right")
        table.add_column("tokens/s", justify="right")
    table.add_column("ratio", justify="right")
    results = [measure(*case, args.repeats) for case in CASES]
    for result in results:
        row = [str(value) for value in result["case"].values()]
        for name in (OURS, THEIRS):
            row += [f"{result['ms'][name]:.2f}", f"{result['tokens_per_second'][name]:,.0f}"]
        table.add_row(*row, f"{result['ratio']:.2f}")
    Console(width=WIDTH).print(table)
    if args.json:
        report = {"threads": torch.get_num_threads(), "build": build_info(), "cases": results}
        write_atomic(args.json, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
