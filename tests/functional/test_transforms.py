"""``torch.func``, second derivatives and autocast. ``nn.RNN`` itself does not support vmap."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp
from torch.func import vmap as batched
from torch.utils._pytree import tree_leaves

from rnnfast import FastGRU, FastLSTM, FastRNN, FastRNNCell, _ops, functional

EVERYTHING = {"num_layers": 2, "bidirectional": True, "batch_first": True}
OPTIONS = {
    "plain": {},
    "everything": {**EVERYTHING, "nonlinearity": "relu"},
    "no bias": {"bias": False, "num_layers": 2},
    "gru": {"cls": FastGRU},
    "gru, everything": {"cls": FastGRU, **EVERYTHING},
    "lstm": {"cls": FastLSTM},
    "lstm, everything": {"cls": FastLSTM, **EVERYTHING},
    "lstm, projections": {"cls": FastLSTM, "proj_size": 2},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def make(options, seed=0):
    torch.manual_seed(seed)
    options = {"cls": FastRNN, "dtype": torch.float64} | options
    return options.pop("cls")(3, 4, **options)


def loss_of(module, weights, x):
    output, *final = tree_leaves(functional_call(module, weights, (x,)))
    return output.square().sum() + sum(state.sin().sum() for state in final)


def by_hand(module, x):
    """Return the gradients of the parameters that autograd and the kernels give."""
    loss = loss_of(module, dict(module.named_parameters()), x)
    return dict(zip(dict(module.named_parameters()),
                    torch.autograd.grad(loss, list(module.parameters())), strict=True))  # fmt: skip


@options
def test_grad(options):
    module = make(options)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    found = grad(loss_of, argnums=1)(module, weights, x)
    torch.testing.assert_close(found, by_hand(module, x))


@options
@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_over_batch(options, T, dim):
    module = make(options)
    x = torch.randn(6, *((2, T) if module.batch_first else (T, 2)), 3, dtype=torch.float64)
    expected = [torch.stack(parts) for parts in zip(*map(tree_leaves, map(module, x)), strict=True)]
    found = batched(module, in_dims=dim)(x.movedim(0, dim))
    torch.testing.assert_close(tree_leaves(found), expected)


@options
def test_per_sample_gradients(options):
    module = make(options)
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    found = batched(grad(loss_of, argnums=1), in_dims=(None, None, 0))(module, weights, x)
    for n, sample in enumerate(x):
        torch.testing.assert_close({k: g[n] for k, g in found.items()}, by_hand(module, sample))


@options
def test_ensemble(options):
    """Stacked weights run with one input, and with one input for each."""
    modules = [make(options, seed) for seed in range(3)]
    weights, _ = stack_module_state(modules)
    x = torch.randn(3, 5, 2, 3, dtype=torch.float64)

    def call(weights, x):
        return functional_call(modules[0], weights, (x,))

    for dims, inputs in ((None, [x[0]] * 3), (0, x)):
        found = batched(call, in_dims=(0, dims))(weights, x[0] if dims is None else x)
        for n, module in enumerate(modules):
            expected = tree_leaves(module(inputs[n]))
            torch.testing.assert_close([part[n] for part in tree_leaves(found)], expected)


def test_vmap_refuses_a_state_that_would_broadcast():
    weights = list(make({}).parameters())
    x, hx = torch.randn(6, 5, 2, 3, dtype=torch.float64), torch.zeros(1, 1, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"hx must be \(1, 2, 4\), got \(1, 1, 4\)"):
        batched(lambda x: functional.rnn(x, hx, weights))(x)


@pytest.mark.parametrize("cls", [FastRNN, FastGRU, FastLSTM])
def test_vmap_of_tokens(cls):
    module = make({"num_layers": 2, "cls": cls})
    tokens = torch.randint(3, (6, 5, 2))
    expected = torch.stack([module(t)[0] for t in tokens])
    torch.testing.assert_close(batched(lambda t: module(t)[0])(tokens), expected)


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("cls", [FastGRU, FastLSTM])
def test_forward_mode_in_single_precision(cls, T):
    """nn.LSTM runs on oneDNN there, which has no forward-mode derivatives."""
    module = make({"cls": cls, "dtype": torch.float32})
    x, v = torch.randn(2, T, 2, 3)
    wide = copy.deepcopy(module).double()
    _, expected = jvp(lambda x: wide(x)[0], (x.double(),), (v.double(),))
    _, found = jvp(lambda x: module(x)[0], (x,), (v,))
    with forward_ad.dual_level():
        output, _ = module(forward_ad.make_dual(x, v))
        dual = forward_ad.unpack_dual(output).tangent
    assert torch.backends.mkldnn.enabled
    for tangent in (found, dual):
        torch.testing.assert_close(tangent.double(), expected, rtol=1e-4, atol=1e-5)


@options
def test_jvp(options):
    """The derivative along a direction agrees with central differences."""
    module = make(options)
    x, v = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    _, found = jvp(lambda x: module(x)[0], (x,), (v,))
    eps = 1e-6
    expected = (module(x + eps * v)[0] - module(x - eps * v)[0]) / (2 * eps)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gradient", [True, False])
@options
def test_dual_numbers(options, gradient):
    """Forward-mode AD without torch.func loses no tangent."""
    module = make(options)
    x, v = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    _, expected = jvp(lambda x: module(x)[0], (x,), (v,))
    with forward_ad.dual_level(), torch.set_grad_enabled(gradient):
        output, _ = module(forward_ad.make_dual(x, v))
        found = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(found, expected)


@options
def test_jacobians_and_hessian(options):
    module = make(options)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    found = jacrev(lambda x: module(x)[0])(x)
    torch.testing.assert_close(found, jacfwd(lambda x: module(x)[0])(x))
    torch.testing.assert_close(
        found, torch.autograd.functional.jacobian(lambda x: module(x)[0], x, vectorize=False)
    )

    def loss(x):
        return module(x)[0].pow(3).sum()

    torch.testing.assert_close(hessian(loss)(x), torch.autograd.functional.hessian(loss, x))


@options
def test_many_gradients_at_once(options):
    """``is_grads_batched`` runs a backward pass on a batch of gradients.

    The forward pass was made outside of vmap.
    """
    module = make(options)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    outputs = tree_leaves(module(x))
    seeds = [torch.randn(7, *o.shape, dtype=torch.float64) for o in outputs]
    wanted = [x, *module.parameters()]
    found = torch.autograd.grad(outputs, wanted, seeds, is_grads_batched=True, retain_graph=True)
    for n in range(7):
        one = [s[n] for s in seeds]
        expected = torch.autograd.grad(outputs, wanted, one, retain_graph=True)
        torch.testing.assert_close([g[n] for g in found], list(expected))
    _, pull = vjp(lambda x: module(x)[0], x.detach())
    torch.testing.assert_close(
        batched(pull)(seeds[0])[0],
        torch.stack(
            [torch.autograd.grad(outputs[0], x, s, retain_graph=True)[0] for s in seeds[0]]
        ),
    )


def test_dropout_under_vmap_asks_which_randomness():
    module = make({"num_layers": 2, "dropout": 0.5})
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="randomness"):
        batched(module)(x)
    assert batched(module, randomness="different")(x)[0].shape == (6, 5, 2, 4)


def test_compile():
    """Transforms over inputs, over weights and of gradients compile into one graph."""
    modules = [make({}, seed) for seed in range(3)]
    module, (stacked, _) = modules[0], stack_module_state(modules)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    x = torch.randn(6, 2, 2, 3, dtype=torch.float64)

    def transformed(weights, stacked, x):
        of_weights = grad(loss_of, argnums=1)
        return (
            batched(lambda x: module(x))(x),
            batched(lambda weights: functional_call(module, weights, (x[0],)))(stacked),
            batched(of_weights, in_dims=(None, None, 0))(module, weights, x),
            of_weights(module, weights, x[0]),
        )

    torch.compiler.reset()
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weights, stacked, x), transformed(weights, stacked, x))


def test_cell():
    cell = FastRNNCell(3, 4).double()
    x, h = torch.randn(6, 2, 3).double(), torch.randn(6, 2, 4).double()
    torch.testing.assert_close(batched(cell)(x, h), torch.stack([*map(cell, x, h)]))


@pytest.mark.parametrize(
    "classes", [(nn.RNN, FastRNN), (nn.GRU, FastGRU), (nn.LSTM, FastLSTM)], ids=str
)
def test_gradient_penalty_in_eval_mode(device, classes):
    """Second derivatives and a backward pass in ``eval()``; cuDNN refuses both."""
    results = []
    for cls in classes:
        torch.manual_seed(0)
        module = cls(3, 4, 2).double().to(device).eval()
        x = torch.randn(5, 2, 3, dtype=torch.float64).to(device).requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):
            score = module(x)[0].sum()
            (gradient,) = torch.autograd.grad(score, x, create_graph=True)
            penalty = (gradient.norm(dim=-1) - 1).square().mean()
            results.append([penalty, *torch.autograd.grad(penalty, list(module.parameters()))])
    torch.testing.assert_close(*results)


SECOND_DERIVATIVES = """
import sys

import torch
from torch import nn

import rnnfast

if sys.argv[1] == "frozen":  # the import of torch's test utilities does this
    torch.backends.disable_global_flags()
else:  # torch.backends.cudnn.flags raises an error after this
    torch.backends.cudnn.conv.fp32_precision = "ieee"
results = []
for cls in (nn.RNN, rnnfast.FastRNN):
    torch.manual_seed(0)
    module = cls(3, 4, 2, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    output, _ = module(x)
    (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), list(module.parameters()))
    jacobian = torch.autograd.functional.jacobian
    batched = jacobian(lambda x: module(x)[0], x, vectorize=cls is rnnfast.FastRNN)
    results.append([first, *second, batched])
torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
assert torch.backends.cudnn.enabled
"""


@pytest.mark.parametrize("flags", ["frozen", "separate"])
def test_second_derivatives_whatever_the_flags_of_torch_are(flags):
    """The flags belong to the whole process, so the test runs in a process of its own."""
    subprocess.run([sys.executable, "-c", SECOND_DERIVATIVES, flags], check=True)


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_module", [False, True], ids=["autocast", "module"])
@pytest.mark.parametrize("gradient", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("cls", [FastGRU, FastLSTM])
def test_16_bits_of_gated_cells_run_on_kernels(monkeypatch, cls, gradient, is_module, dtype):
    seen, kernel = [], _ops.gated_rnn

    def spy(x, h0, c0, weights, *rest):
        seen.append({t.dtype for t in (x, h0, c0, *weights) if t is not None})
        return kernel(x, h0, c0, weights, *rest)

    monkeypatch.setattr(_ops, "gated_rnn", spy)
    own = dtype if is_module else torch.float32
    module = cls(5, 6, 2, dtype=own)
    x, hx = torch.randn(4, 3, 5, dtype=own), torch.randn(2, 3, 6, dtype=own)
    hx = hx if cls is FastGRU else (hx, hx)
    with torch.set_grad_enabled(gradient), torch.autocast("cpu", dtype, enabled=not is_module):
        results = tree_leaves(module(x, hx))
    assert seen == [{dtype}]
    assert {t.dtype for t in results} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_module", [False, True], ids=["autocast", "module"])
@pytest.mark.parametrize("gradient", [True, False], ids=["training", "inference"])
def test_16_bits_run_on_kernels(monkeypatch, gradient, is_module, dtype):
    """The kernels run under autocast and in a module of that dtype."""
    seen, kernel = [], _ops.rnn_forward

    def spy(x, h0, weights, *rest):
        seen.append({t.dtype for t in (x, h0, *weights)})
        return kernel(x, h0, weights, *rest)

    monkeypatch.setattr(_ops, "rnn_forward", spy)
    own = dtype if is_module else torch.float32
    module = FastRNN(5, 6, 2, dtype=own)
    x, hx = torch.randn(4, 3, 5, dtype=own), torch.randn(2, 3, 6, dtype=own)
    with torch.set_grad_enabled(gradient), torch.autocast("cpu", dtype, enabled=not is_module):
        output, h_n = module(x, hx)
    assert seen == [{dtype}]
    assert output.dtype is h_n.dtype is dtype


def test_autocast_leaves_float64_alone():
    module = FastRNN(5, 6, 2, zoneout=0.5, dtype=torch.float64).eval()
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    expected, _ = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x)
    assert torch.equal(output, expected)


def test_autocast_of_zoneout():
    module = FastRNN(5, 6, 2, zoneout=0.5).eval()
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output, h_n = module(x, torch.randn(2, 3, 6))
    assert output.dtype is h_n.dtype is torch.bfloat16
    output.float().sum().backward()
    assert module.weight_hh_l0.grad.dtype is torch.float32
