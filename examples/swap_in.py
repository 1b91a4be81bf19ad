"""Swap FastRNN into a model that was written with nn.RNN, and see that only the time changes.

python examples/swap_in.py
"""

import copy
import time

import torch
from torch import nn

import rnnfast


class Tagger(nn.Module):
    """A model as it might stand in your code: tokens in, a score for each tag out."""

    def __init__(self, words=1000, size=64, tags=10):
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.rnn = nn.RNN(size, size, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * size, tags)

    def forward(self, tokens):
        output, _ = self.rnn(self.embedding(tokens))
        return self.head(output)


def seconds(model, tokens, rounds=10):
    """Return the time of the fastest of several training steps."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        model(tokens).square().mean().backward()
        times.append(time.perf_counter() - start)
    return min(times)


torch.manual_seed(0)
before = Tagger()
# accelerate() changes a model in place. The copy is only here to compare the two.
after = rnnfast.accelerate(copy.deepcopy(before))
print("before:", before.rnn)
print("after: ", after.rnn)

tokens = torch.randint(1000, (32, 100))  # 32 sentences of 100 words
difference = (before(tokens) - after(tokens)).abs().max().item()
print(f"largest difference of the outputs: {difference:.1e}")
print(f"a training step takes {1e3 * seconds(before, tokens):.1f} ms with nn.RNN")
print(f"a training step takes {1e3 * seconds(after, tokens):.1f} ms with FastRNN")
