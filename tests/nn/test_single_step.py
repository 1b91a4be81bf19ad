"""``FastRNN`` with one time step, which runs on the kernel if gradients are disabled."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from rnnfast import FastRNN
from rnnfast.functional import _run

OPTIONS = [
    {},
    {"nonlinearity": "relu", "bias": False, "batch_first": True},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.5},
]


def pair(**options):
    ours = FastRNN(5, 7, dtype=torch.float64, **options)
    theirs = nn.RNN(5, 7, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def inputs(module, rows):
    """An input of one time step without and with a batch, and the states that fit it."""
    x = torch.randn(rows, 1, 5) if module.batch_first else torch.randn(1, rows, 5)
    hx = torch.randn(module.num_layers * (1 + module.bidirectional), rows, 7)
    return [(x.double(), hx.double()), (x.double().flatten(0, 1)[:1], hx[:, 0].double())]


@pytest.fixture
def kernel_calls(monkeypatch):
    """The number of time steps of each call of the kernel."""
    calls, run = [], _run.rnn_on_kernel

    def counting(x, *arguments, **options):
        calls.append(x.shape[1 if arguments[3].batch_first else 0])
        return run(x, *arguments, **options)

    monkeypatch.setattr(_run, "rnn_on_kernel", counting)
    return calls


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_that_of_torch(options, mode, rows, kernel_calls):
    ours, theirs = (module.eval() for module in pair(**options))
    for x, hx in inputs(ours, rows):
        for states in (hx, None):
            with mode():
                found, expected = ours(x, states), theirs(x, states)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
            assert found[0].shape == expected[0].shape and not found[0].requires_grad
            assert kernel_calls.pop() == 1 and not kernel_calls


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_gradients_it_runs_on_torchs_operator(options, kernel_calls):
    ours, theirs = (module.eval() for module in pair(**options))
    for x, hx in inputs(ours, 2):
        results = []
        for module in (ours, theirs):
            output, h_n = module(x, hx)
            (output.square().sum() + h_n.sum()).backward()
            results.append([output, h_n, *(p.grad for p in module.parameters())])
        assert all(torch.equal(*both) for both in zip(*results, strict=True))
    assert not kernel_calls


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_dropout_is_that_of_torch(options):
    ours, theirs = pair(**options)
    x, hx = inputs(ours, 6)[0]
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(module(x, hx))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_is_that_of_a_longer_sequence():
    ours, _ = pair(num_layers=2)
    x, h = torch.randn(6, 3, 5, dtype=torch.float64), torch.zeros(2, 3, 7, dtype=torch.float64)
    resets = torch.rand(6, 3) < 0.3
    with torch.no_grad():
        expected, h_n = ours(x, h, reset=resets)
        for t in range(6):
            output, h = ours(x[t : t + 1], h, reset=resets[t : t + 1])
            torch.testing.assert_close(output[0], expected[t], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(h, h_n, rtol=1e-12, atol=1e-14)


def test_tokens():
    """The weights of the input are a table then."""
    ours, theirs = pair()
    tokens = torch.tensor([[3, 0, 4]])
    with torch.no_grad():
        expected = theirs(nn.functional.one_hot(tokens, 5).double())
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    ours, theirs = (module.float() for module in pair(num_layers=2))
    x = torch.randn(1, 3, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found, expected = ours(x), theirs(x)
    assert found[0].dtype == found[1].dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_a_trace_is_the_same_with_gradients_and_without():
    """torch.jit.trace compares a graph that it records with gradients with one without."""
    ours, _ = pair()
    x = torch.randn(1, 3, 5, dtype=torch.float64)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            trace = torch.jit.trace(ours, x)
        torch.testing.assert_close(trace(x.expand(4, 3, 5)), ours(x.expand(4, 3, 5)))


def test_a_parametrized_weight_is_computed_once():
    ours, _ = pair()
    x, computed = torch.randn(1, 3, 5, dtype=torch.float64), []
    softplus = nn.Softplus()
    softplus.register_forward_hook(lambda *arguments: computed.append(arguments))
    register_parametrization(ours, "weight_hh_l0", softplus)
    computed.clear()
    output, _ = ours(x)
    output.sum().backward()
    assert len(computed) == 1
    assert torch.equal(copy.deepcopy(ours)(x)[0], output)
