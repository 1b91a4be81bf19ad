"""Weights whose class has a ``__torch_function__`` of its own give the results of ``nn.RNN``."""

import pytest
import torch
from torch import nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

from rnnfast import FastRNN, _ops, functional


class Renamed(torch.Tensor):
    """It has no ``__torch_function__`` of its own."""


class Counting(torch.Tensor):
    """It counts the calls of torch's functions for whole sequences."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls += getattr(func, "__name__", "") in ("rnn_tanh", "rnn_relu")
        return super().__torch_function__(func, types, args, kwargs or {})


def make(cls, **options):
    torch.manual_seed(0)
    return cls(3, 4, dtype=torch.float64, **options), torch.randn(5, 2, 3, dtype=torch.float64)


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu", "bias": False}]


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_per_sample(options, batch_first, T):
    gradients = []
    for cls in (nn.RNN, FastRNN):
        module, x = make(cls, batch_first=batch_first, **options)
        x = x[:T].transpose(0, 1) if batch_first else x[:T]
        call = call_for_per_sample_grads(module, batch_size=2, batch_first=batch_first)
        call(x)[0].square().sum().backward()
        gradients.append([p.grad_sample for p in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("which", [slice(None), slice(1, 2)], ids=["all", "one"])
@pytest.mark.parametrize("options", [*OPTIONS, {"num_layers": 2, "variational_dropout": 0.5}])
def test_a_class_sees_torchs_function(options, which):
    """One weight of the class is enough. The dropout of rnnfast is in ``train()`` only."""
    theirs = {name: value for name, value in options.items() if name != "variational_dropout"}
    results = []
    for module, x in (make(nn.RNN, **theirs), make(FastRNN, **options)):
        weights = [p.detach() for p in module.parameters()]
        weights[which] = [w.as_subclass(Counting) for w in weights[which]]
        module.eval()._flat_weights = [w.requires_grad_() for w in weights]
        Counting.calls = 0
        output, h_n = module(x)
        assert Counting.calls == 1 and type(output) is Counting
        results.append([output, h_n, *torch.autograd.grad(output.square().sum(), weights)])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["default device", "renamed", "input", "parameter"])
def test_other_tensors_run_on_the_kernel(monkeypatch, case):
    """The mode of torch.set_default_device is active for all tensors, whatever their class is."""
    module, x = make(FastRNN)
    expected, _ = module(x)
    seen, kernel = [], _ops.rnn_forward
    monkeypatch.setattr(_ops, "rnn_forward", lambda *a: seen.append(True) or kernel(*a))
    if case == "default device":
        with torch.device("cpu"):
            output, _ = module(x)
    elif case == "input":
        output, _ = module(x.as_subclass(Counting))
        assert type(output) is Counting
    else:
        weights = [p.detach() for p in module.parameters()]
        if case == "renamed":
            weights = [w.as_subclass(Renamed) for w in weights]
        output, _ = functional.rnn(x, None, weights)
    assert seen == [True]
    torch.testing.assert_close(output, expected, check_dtype=True, rtol=0, atol=0)
