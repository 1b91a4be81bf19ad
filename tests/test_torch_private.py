"""Does the installed torch still answer what ``rnnfast._torch`` asks, and what if it does not?"""

import importlib.util
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from rnnfast import FastRNN, _torch


def load():
    """Return ``rnnfast._torch`` as it is when it is imported into torch as torch is now."""
    spec = importlib.util.find_spec("rnnfast._torch")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without(monkeypatch, name):
    """Return ``rnnfast._torch`` as it is in a torch that lacks the private ``name``."""
    path, _, attribute = name.rpartition(".")
    owner = torch
    for part in path.split(".") if path else ():
        owner = getattr(owner, part)
    with monkeypatch.context() as patch:
        patch.delattr(owner, attribute)
        module = load()
    assert not module.HAS[name]
    return module


@pytest.mark.parametrize("name", sorted(_torch.HAS))
def test_torch_has(name):
    assert _torch.HAS[name]


def test_torch_has_the_lists_of_the_weights():
    module = nn.RNN(2, 3)
    assert module._flat_weights_names == list(module._parameters)
    for weight, reference in zip(module._flat_weights, module._flat_weight_refs, strict=True):
        assert reference() is weight


def test_dynamo_has_what_is_patched():
    import torch._dynamo.variables.builder as builder

    wrap_module = builder.VariableBuilder.wrap_module
    try:
        assert _torch._patch_builder(builder, FastRNN)
    finally:
        builder.VariableBuilder.wrap_module = wrap_module


# DLPack


def test_a_torch_without_the_exchange_api_is_refused():
    code = "import torch; del torch.Tensor.__dlpack_c_exchange_api__; import rnnfast"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    expected = f"ImportError: rnnfast needs torch {_torch.OLDEST} or later, got torch"
    assert run.returncode == 1 and last.startswith(expected)
    assert "lacks torch.Tensor.__dlpack_c_exchange_api__" in last


def test_the_oldest_torch_is_the_one_that_the_package_asks_for():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"torch>={_torch.OLDEST}"' in project


# Transforms


@pytest.fixture(params=[None, "_C._are_functorch_transforms_active"])
def transforms(request, monkeypatch):
    """``rnnfast._torch``, once with each name that it asks for transforms missing."""
    return load() if request.param is None else without(monkeypatch, request.param)


def test_transforms_are_seen(transforms):
    seen = []

    def look(x):
        seen.append((transforms.is_in_transform(), transforms.is_in_vmap()))
        return x.sum()

    torch.func.vmap(look)(torch.ones(2, 3))
    torch.func.grad(look)(torch.ones(3))
    assert seen == [(True, True), (True, False)]


def test_outside_of_a_transform():
    assert not _torch.is_in_transform() and not _torch.is_in_vmap()
    assert not _torch.is_in_transform_or_forward_ad()


def test_forward_ad_is_seen(monkeypatch):
    with forward_ad.dual_level():
        assert _torch.is_in_transform_or_forward_ad()
    module = without(monkeypatch, "autograd.forward_ad._current_level")
    assert module.is_in_transform_or_forward_ad(), "it may be active"


@pytest.mark.parametrize("name", ["get_interpreter_stack", "TransformType"])
def test_a_transform_that_may_be_vmap_is_taken_for_it(monkeypatch, name):
    if name == "TransformType":  # a class: the name in it is what is looked up
        monkeypatch.setattr(torch._C._functorch, name, object())
        module = load()
    else:
        module = without(monkeypatch, f"_C._functorch.{name}")
    seen = []
    torch.func.grad(lambda x: seen.append(module.is_in_vmap()) or x.sum())(torch.ones(3))
    assert seen == [True] and not module.is_in_vmap()


@pytest.mark.parametrize("name", [None, "_C._has_storage"])
def test_batches_of_vmap_are_seen(monkeypatch, name):
    module = load() if name is None else without(monkeypatch, name)
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            seen.append(module.is_batch_of_vmap(dy))
            return dy

    x = torch.ones(3, requires_grad=True)
    y = Look.apply(x)
    for batched, seed in ((False, torch.ones(3)), (True, torch.ones(5, 3))):
        torch.autograd.grad(y, x, seed, is_grads_batched=batched, retain_graph=True)
    assert seen == [False, True]
    assert not module.is_batch_of_vmap(None)


# Autocast


@pytest.mark.parametrize("name", [None, "_C._is_any_autocast_enabled"])
def test_autocast_is_seen(monkeypatch, name):
    module = load() if name is None else without(monkeypatch, name)
    assert not module.is_any_autocast_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        assert module.is_any_autocast_enabled()


# The dispatcher


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [None, "_C._len_torch_dispatch_stack", "_C._is_tracing"])
def test_observers_are_seen(monkeypatch, name):
    module = load() if name is None else without(monkeypatch, name)
    with Mode():
        assert module.is_dispatcher_observed()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert module.is_dispatcher_observed()
    seen = []
    torch.jit.trace(lambda x: seen.append(module.is_dispatcher_observed()) or x + 1, torch.ones(2))
    assert seen[0]
    # Without the length of the stack there may always be a mode.
    assert module.is_dispatcher_observed() is (name == "_C._len_torch_dispatch_stack")


def test_without_the_flag_of_the_profiler_there_may_be_one(monkeypatch):
    module = without(monkeypatch, "autograd.profiler._is_profiler_enabled")
    assert module.is_dispatcher_observed()


# torch.compile


@pytest.mark.parametrize("name", [None, "_disable_dynamo"])
def test_dynamo_does_not_trace_what_is_disabled(monkeypatch, name):
    module = load() if name is None else without(monkeypatch, name)
    compiling = []

    def look(x):
        compiling.append(torch.compiler.is_compiling())
        return x + 1

    torch.compiler.reset()
    disabled = module.disable_dynamo(look)
    torch.compile(lambda x: disabled(x) * 2, backend="eager")(torch.ones(2))
    assert compiling == [False]


def test_a_dynamo_without_the_switch_is_left_alone():
    class Builder:
        class config:
            pass

        class VariableBuilder:
            pass

    assert not _torch._patch_builder(Builder, FastRNN)
    assert not hasattr(Builder.VariableBuilder, "wrap_module")


# cuDNN and oneDNN


@pytest.mark.parametrize(
    "context, library, name",
    [
        ("without_cudnn", torch.backends.cudnn, "_C._set_cudnn_enabled"),
        ("without_onednn", torch.backends.mkldnn, "_C._set_mkldnn_enabled"),
    ],
    ids=["cudnn", "onednn"],
)
@pytest.mark.parametrize("is_private", [True, False])
def test_a_library_is_disabled_and_enabled_again(monkeypatch, context, library, name, is_private):
    module = load() if is_private else without(monkeypatch, name)
    with pytest.raises(KeyError), getattr(module, context)():
        assert not library.enabled
        raise KeyError
    assert library.enabled


def test_a_library_stays_disabled_until_the_last_thread_is_done():
    first, second = _torch.without_onednn(), _torch.without_onednn()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mkldnn.enabled
    second.__exit__(None, None, None)
    assert torch.backends.mkldnn.enabled


def test_what_may_run_on_cudnn():
    on_cpu, on_cuda = torch.zeros(1), SimpleNamespace(is_cuda=True)
    assert _torch.may_run_on_cudnn(on_cuda) and not _torch.may_run_on_cudnn(on_cpu)
    with _torch.without_cudnn():
        assert not _torch.may_run_on_cudnn(on_cuda)


# oneDNN


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
def test_onednn_multiplies():
    a, b = torch.rand(5, 3), torch.rand(4, 3)
    torch.testing.assert_close(_torch.onednn_product(a, b)(), a @ b.T)


@pytest.mark.parametrize("name", ["_reorder_linear_weight", "_linear_pointwise"])
def test_without_onednn_nothing_multiplies(monkeypatch, name):
    monkeypatch.setattr(torch.ops.mkldnn, name, None, raising=False)
    assert _torch.onednn_product(torch.ones(2, 2), torch.ones(2, 2)) is None


# Modules and optimizers


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, partial(nn.LSTM, proj_size=2)])
def test_names_of_weights(cls, options):
    module = cls(2, 3, **options)
    assert _torch._rnn_weight_names(module) == module._flat_weights_names
    names, weights = _torch.named_rnn_weights(module)
    expected = dict(module.named_parameters())
    assert names == list(expected)
    assert all(weight is expected[name] for name, weight in zip(names, weights, strict=True))
    del module._flat_weights, module._flat_weight_refs
    names, weights = _torch.named_rnn_weights(module)
    assert all(weight is expected[name] for name, weight in zip(names, weights, strict=True))


@pytest.mark.parametrize("name", [None, "_foreach_lerp_"])
def test_lerp(monkeypatch, name):
    module = load() if name is None else without(monkeypatch, name)
    tensors, ends = [torch.zeros(3), torch.ones(2)], [torch.ones(3), torch.full((2,), 5.0)]
    module.foreach_lerp_(tensors, ends, 0.25)
    assert torch.equal(tensors[0], torch.full((3,), 0.25))
    assert torch.equal(tensors[1], torch.full((2,), 2.0))


def test_no_other_module_of_the_package_asks():
    """Private names of torch occur in ``rnnfast/_torch.py`` alone."""
    package = Path(_torch.__file__).parent
    private = re.compile(
        r"\btorch(\.\w+)*\._[a-zA-Z]"
        r"|\bfrom torch(\.\w+)* import .*\b_[a-zA-Z]"
        r"|\btorch\.ops\.(?!rnnfast\b|aten\b)"
    )
    for path in package.rglob("*.py"):
        if path.name != "_torch.py":
            found = [line for line in path.read_text().splitlines() if private.search(line)]
            assert not found, f"{path.relative_to(package)}: {found}"
