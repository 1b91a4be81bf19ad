"""Time the kernels, the module, `nn.RNN` and the NumPy reference on small shapes.

This file is for pytest-benchmark. It shows what a call costs, for work on a kernel. Quote ratios
from run.py instead, which alternates the samples of what it compares. The baseline, the data and
the rule for a right result are those of the tests.
"""

import pytest
import rule
import torch
from torch import nn

import rnnfast
from rnnfast import functional, reference

CASES = [
    rule.Case(T=20, B=1, inputs=64, H=64, with_hx=False),
    rule.Case(T=20, B=8, inputs=65, H=65, with_hx=False),
    rule.Case(T=35, B=20, inputs=200, H=200, with_hx=False),
]


def _id(case):
    return f"{case.T},{case.B},{case.inputs},{case.H}"


@pytest.fixture(params=CASES, ids=_id)
def case(request, benchmark):
    benchmark.group = f"{request.node.originalname} T,B,I,H = {_id(request.param)}"
    return request.param


@pytest.mark.parametrize("rnn", [functional.rnn, rule.baseline], ids=["rnnfast", "nn.RNN"])
def test_forward(benchmark, case, rnn):
    data = rule.make(case)
    with torch.no_grad():
        output, _ = benchmark(rnn, data.input, None, data.weights)
    _check(case, data, {"output": output})


def test_forward_numpy(benchmark, case):
    benchmark.group = benchmark.group.replace("test_forward_numpy", "test_forward")
    data = rule.make(case)
    x, *weights = (t.detach().numpy() for t in (data.input, *data.weights))
    output = benchmark(reference.forward, x, None, *weights)
    _check(case, data, {"output": torch.from_numpy(output)})


@pytest.mark.parametrize("rnn", [functional.rnn, rule.baseline], ids=["rnnfast", "nn.RNN"])
def test_forward_backward(benchmark, case, rnn):
    data = rule.make(case)
    _check(case, data, benchmark(rule.run, rnn, case, data))


@pytest.mark.parametrize("cls", [rnnfast.FastRNN, nn.RNN], ids=["rnnfast", "nn.RNN"])
def test_module(benchmark, case, cls):
    data = rule.make(case)
    module = cls(case.inputs, case.H)
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), data.weights, strict=True):
            parameter.copy_(weight)
        output, _ = benchmark(module, data.input)
    _check(case, data, {"output": output})


def _check(case, data, results):
    truth = rule.run_reference(case, data)
    torchs = rule.run(rule.baseline, case, data)
    rule.check(
        results,
        {name: torchs[name] for name in results},
        {name: truth[name] for name in results},
        case.dtype,
    )
