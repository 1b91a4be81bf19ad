"""``torch.utils.flop_counter`` counts what it counts for torch's own modules."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from rnnfast import FastGRU, FastLSTM, FastRNN, LeakyRNN
from rnnfast.functional import linear_cross_entropy

OPTIONS = [{}, {"num_layers": 2}, {"num_layers": 3, "bidirectional": True, "bias": False}]
INPUTS = {
    "padded": lambda: torch.randn(6, 4, 5),
    "one step": lambda: torch.randn(1, 4, 5),
    "unbatched": lambda: torch.randn(6, 5),
    "packed": lambda: pack_sequence([torch.randn(n, 5) for n in (6, 4, 4, 1)]),
}


def count(call, *inputs):
    """Return the FLOPs of a call, and those of the backward pass from its first output."""
    with FlopCounterMode(display=False) as counter:
        output = call(*inputs)
        forward = counter.get_total_flops()
        while not isinstance(output, torch.Tensor):  # (output, h_n), or a packed output
            output = output[0]
        output.sum().backward()
        return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize("name", INPUTS)
def test_leaky_units_have_the_products_of_an_rnn(name):
    results = []
    for module in (nn.RNN(5, 7, 2), LeakyRNN(5, 7, 2)):
        torch.manual_seed(0)
        results.append(
            count(module, INPUTS[name]().requires_grad_() if name != "packed" else INPUTS[name]())
        )
    assert results[0] == results[1]


def test_size_of_a_real_model():
    for cls in (nn.RNN, FastRNN):
        assert sum(count(cls(256, 512), torch.randn(100, 32, 256))) == 6_694_109_184


@pytest.mark.parametrize("hx", [None, "constant", "gradient"])
@pytest.mark.parametrize("gradients", ["weights", "input", "both"])
@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "classes", [(nn.RNN, FastRNN), (nn.GRU, FastGRU), (nn.LSTM, FastLSTM)], ids=str
)
def test_as_nn_rnn(classes, options, input, gradients, hx):
    x = INPUTS[input]()
    states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    h0 = torch.randn(states, *([] if input == "unbatched" else [4]), 7)
    h0.requires_grad_(hx == "gradient")
    h0 = (h0, h0) if nn.LSTM in classes else h0
    if gradients != "weights":
        (x.data if input == "packed" else x).requires_grad_()
    counts = []
    for cls in classes:
        module = cls(5, 7, **options).requires_grad_(gradients != "input")
        with torch.backends.mkldnn.flags(enabled=False):  # its operators are not counted
            counts.append(count(module, x, *([] if hx is None else [h0])))
    assert counts[1] == counts[0]


def test_tokens_have_no_product_with_the_input():
    forward, _ = count(FastRNN(5, 7), torch.randint(5, (6, 4)))
    assert forward == 2 * 6 * 4 * 7 * 7


def test_fake_tensors():
    """FLOPs of large models are counted without running them."""
    with FakeTensorMode():
        assert sum(count(FastRNN(256, 512), torch.randn(100, 32, 256))) == 6_694_109_184


@pytest.mark.parametrize("frozen", [False, True])
def test_loss(frozen):
    x, w = torch.randn(6, 5, requires_grad=True), torch.randn(9, 5, requires_grad=not frozen)
    target, b = torch.randint(9, (6,)), torch.randn(9, requires_grad=True)
    expected = count(lambda: F.cross_entropy(F.linear(x, w, b), target))
    # The forward pass makes the gradients too.
    assert count(lambda: linear_cross_entropy(x, w, target, linear_bias=b)) == (sum(expected), 0)


@pytest.mark.parametrize("first", ["rnnfast", "torch.utils.flop_counter"])
def test_order_of_the_imports(first):
    code = f"import {first}, rnnfast, torch.utils.flop_counter as counter, torch\n"
    code += "assert torch.ops.rnnfast.rnn in counter.flop_registry"
    subprocess.run([sys.executable, "-c", code], check=True)
