"""Calls of rnnfast.functional.rnn with one wrong argument, for the kernels of every device."""

import pytest
import rule
import torch
from rule import Case

from rnnfast.functional import rnn

PACKED = torch.tensor([3, 2, 2, 1])
# Each name has a pattern that the message must match, and the arguments that replace those of a
# right call.
WRONG = {
    "hx batch": ("hx", {"hx": torch.zeros(1, 4, 6)}),
    "hx layers": ("hx", {"hx": torch.zeros(2, 3, 6)}),
    "hx size": ("hx", {"hx": torch.zeros(1, 3, 7)}),
    "hx rank": ("hx", {"hx": torch.zeros(3, 6)}),
    "hx dtype": ("hx", {"hx": torch.zeros(1, 3, 6, dtype=torch.float64)}),
    "weight_ih shape": ("weight_ih", {"weight 0": torch.zeros(6, 4)}),
    "weight_ih dtype": ("weight_ih", {"weight 0": torch.zeros(6, 5, dtype=torch.float64)}),
    "weight_hh shape": ("weight_hh", {"weight 1": torch.zeros(7, 6)}),
    "weight_hh columns": ("weight_hh", {"weight 1": torch.zeros(6, 7)}),
    "int32 tokens": (r"int64: call input\.long", {"input": torch.zeros(4, 3, dtype=torch.int32)}),
    "bool tokens": (r"int64: call input\.long", {"input": torch.zeros(4, 3, dtype=torch.bool)}),
    "bias_ih shape": ("bias_ih", {"weight 2": torch.zeros(7)}),
    "bias_hh rank": ("bias_hh", {"weight 3": torch.zeros(6, 1)}),
    "input rank": ("input", {"input": torch.zeros(4, 5)}),
    "input size": ("weight_ih|input", {"input": torch.zeros(4, 3, 7)}),
    "packed, rank": ("input", {"batch_sizes": PACKED, "input": torch.zeros(8, 1, 5)}),
    "packed, too few rows": ("batch_sizes", {"batch_sizes": PACKED, "input": torch.zeros(7, 5)}),
    "packed, too many rows": ("batch_sizes", {"batch_sizes": PACKED, "input": torch.zeros(9, 5)}),
    "packed, growing from the start": (
        "batch_sizes",
        {"batch_sizes": PACKED.flip(0), "input": torch.zeros(8, 5)},
    ),
    "packed, growing at the end": (
        "batch_sizes",
        {"batch_sizes": torch.tensor([3, 2, 4]), "input": torch.zeros(9, 5)},
    ),
    "packed, zero": (
        "batch_sizes",
        {"batch_sizes": torch.tensor([3, 3, 0]), "input": torch.zeros(6, 5)},
    ),
    "packed, dtype": (
        "batch_sizes",
        {"batch_sizes": PACKED.int(), "input": torch.zeros(8, 5)},
    ),
    "packed, batch_sizes of rank 2": (
        "batch_sizes",
        {"batch_sizes": PACKED[:, None], "input": torch.zeros(8, 5)},
    ),
}


def check_message(wrong):
    """Assert that the call that is called `wrong` raises an error that names the argument."""
    named, change = WRONG[wrong]
    data = rule.make(Case(4, 3, 5, 6))
    arguments = {"input": data.input, "hx": data.hx, "batch_sizes": None}
    arguments |= {f"weight {i}": w for i, w in enumerate(data.weights)}
    arguments |= change
    weights = [arguments.pop(f"weight {i}") for i in range(4)]
    with pytest.raises(RuntimeError, match=named):
        rnn(weights=weights, **arguments)
