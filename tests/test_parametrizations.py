"""The constraints on weights: what they keep, and that they run on the kernels."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrize import cached, is_parametrized, register_parametrization

from rnnfast import FastRNN, _ops, diagnostics
from rnnfast.parametrizations import (
    DalesLaw,
    LowRank,
    Mask,
    NoSelfConnections,
    scale_spectral_radius_,
)

H = 6
SIGNS = torch.tensor([1, 1, -1, 1, -1, 1])
MASK = torch.tensor([[(i * j + i) % 3 != 1 for j in range(H)] for i in range(H)])


def has_signs(weight):
    return bool((weight * SIGNS.to(weight.device) >= 0).all())


def has_mask(weight):
    return not weight[~MASK.to(weight.device)].any()


def has_zero_diagonal(weight):
    return not weight.diagonal().any()


def has_rank_2(weight):
    return torch.linalg.matrix_rank(weight.double(), rtol=1e-6) == 2


# For each set of constraints: how they are made, and what they guarantee.
CONSTRAINTS = {
    "abs": (lambda: [DalesLaw(SIGNS)], [has_signs]),
    "relu": (lambda: [DalesLaw(SIGNS, "relu")], [has_signs]),
    "mask": (lambda: [Mask(MASK)], [has_mask]),
    "diagonal": (lambda: [NoSelfConnections()], [has_zero_diagonal]),
    "rank": (lambda: [LowRank(2)], [has_rank_2]),
    "mask, abs": (lambda: [Mask(MASK), DalesLaw(SIGNS)], [has_mask, has_signs]),
    "relu, mask, diagonal": (
        lambda: [DalesLaw(SIGNS, "relu"), Mask(MASK), NoSelfConnections()],
        [has_mask, has_signs, has_zero_diagonal],
    ),
    "rank, diagonal": (lambda: [LowRank(2), NoSelfConnections()], [has_zero_diagonal]),
}
every = pytest.mark.parametrize("name", CONSTRAINTS)
# Without its diagonal, a weight of rank 2 has a higher rank.
every_that_keeps = pytest.mark.parametrize(
    "name", [n for n in CONSTRAINTS if n != "rank, diagonal"]
)


def constrained(name, dtype=torch.float64, **options):
    torch.manual_seed(3)
    rnn = FastRNN(4, H, dtype=dtype, **options)
    for constraint in CONSTRAINTS[name][0]():
        register_parametrization(rnn, "weight_hh_l0", constraint)
    return rnn


def loop(rnn, x):
    """A plain loop over the time steps of one layer, (T, B, I)."""
    h, outputs, weight_hh = x.new_zeros(x.shape[1], H), [], rnn.weight_hh_l0
    for row in x @ rnn.weight_ih_l0.t() + rnn.bias_ih_l0:
        h = torch.tanh(row + h @ weight_hh.t() + rnn.bias_hh_l0)
        outputs.append(h)
    return torch.stack(outputs)


def input_of(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


@pytest.fixture
def weights_seen(monkeypatch):
    """The recurrent weight of each forward call of the native module."""
    seen, run = [], _ops.cpu._C.forward

    def forward(x, h0, weights, *arguments):
        seen.append(weights[1])
        return run(x, h0, weights, *arguments)

    monkeypatch.setattr(_ops.cpu._C, "forward", forward)
    return seen


@every
@pytest.mark.parametrize("T", [1, 7])
def test_is_that_of_a_loop(name, T, device):
    rnn = constrained(name).to(device)
    x = input_of(T, 3, 4).to(device)
    results = []
    for output in (rnn(x)[0], loop(rnn, x)):
        gradients = torch.autograd.grad(output.square().sum(), list(rnn.parameters()))
        results.append([output, *gradients])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(rnn(x)[0], results[1][0], rtol=1e-10, atol=1e-12)


@every
def test_gradcheck(name):
    rnn = constrained(name)
    named = dict(rnn.named_parameters())
    names = [name for name in named if name.startswith("parametrizations")]

    def call(*values):
        return functional_call(rnn, dict(zip(names, values, strict=True)), (input_of(3, 2, 4),))

    assert torch.autograd.gradcheck(call, [named[name].detach().requires_grad_() for name in names])


@every
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_kernel_reads_a_weight_that_is_made_once(name, T, gradients, weights_seen):
    made, rnn = [], constrained(name)
    last = rnn.parametrizations.weight_hh_l0[-1]
    last.register_forward_hook(lambda module, arguments, weight: made.append(weight))
    with torch.set_grad_enabled(gradients):
        rnn(input_of(T, 3, 4))
    assert len(made) == len(weights_seen) == 1
    assert made[0].is_contiguous() and weights_seen[0].data_ptr() == made[0].data_ptr()


@every
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_keeps_the_constraints(name, optimizer):
    rnn = constrained(name)
    x, target = input_of(5, 3, 4), input_of(5, 3, H)
    training = optimizer(rnn.parameters(), lr=0.1)
    before, losses = rnn.weight_hh_l0.detach(), []
    for _ in range(20):
        loss = (rnn(x)[0] - target).square().mean()
        training.zero_grad()
        loss.backward()
        training.step()
        losses.append(loss.item())
        assert all(holds(rnn.weight_hh_l0) for holds in CONSTRAINTS[name][1])
    assert losses[-1] < losses[0] and not torch.equal(before, rnn.weight_hh_l0)


@every_that_keeps
def test_a_weight_that_satisfies_the_constraints_stays(name):
    weight = constrained(name).weight_hh_l0.detach()
    rnn = FastRNN(4, H, dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(weight)
    for constraint in CONSTRAINTS[name][0]():
        register_parametrization(rnn, "weight_hh_l0", constraint)
        torch.testing.assert_close(rnn.weight_hh_l0.detach(), weight)
    with torch.no_grad():
        for original in rnn.parametrizations.weight_hh_l0.parameters():
            original.normal_()
    rnn.weight_hh_l0 = weight.clone()
    torch.testing.assert_close(rnn.weight_hh_l0.detach(), weight)


def test_other_weights_become_the_nearest():
    weight = FastRNN(4, H).weight_hh_l0.detach()
    for rectifier in ("abs", "relu"):
        dale = DalesLaw(SIGNS, rectifier)
        torch.testing.assert_close(dale(dale.right_inverse(weight)), weight.abs() * SIGNS)
    u, s, vh = torch.linalg.svd(weight)
    nearest = (u[:, :2] * s[:2]) @ vh[:2]
    torch.testing.assert_close(LowRank(2)(*LowRank(2).right_inverse(weight)), nearest)


def test_a_rectified_weight_of_the_wrong_sign_is_zero():
    weight = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], requires_grad=True)
    result = DalesLaw([1, -1], "relu")(weight)
    assert result.tolist() == [[0.5, -0.5], [0, 0]]
    result.sum().backward()
    assert weight.grad.tolist() == [[1, 1], [0, 0]]


def test_weights_of_any_shape():
    """Also those that are not recurrent, for example of the readout."""
    readout = nn.Linear(H, 2)
    register_parametrization(readout, "weight", DalesLaw(SIGNS))
    register_parametrization(readout, "weight", Mask(MASK[:2]))
    assert has_signs(readout.weight) and not readout.weight[~MASK[:2]].any()


@every
def test_state_dict_and_deepcopy(name):
    rnn, x = constrained(name), input_of(7, 3, 4)
    rnn(x)[0].sum().backward()
    other = FastRNN(4, H, dtype=torch.float64)
    for constraint in CONSTRAINTS[name][0]():
        register_parametrization(other, "weight_hh_l0", constraint)
    other.load_state_dict(rnn.state_dict())
    twin = copy.deepcopy(rnn)
    for copied in (other, twin):
        assert torch.equal(copied(x)[0], rnn(x)[0])
    with torch.no_grad():  # a copy has parameters of its own
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(other(x)[0], rnn(x)[0]) and not twin(x)[0].any()


def test_the_mask_is_part_of_the_state():
    rnn, other = constrained("mask"), FastRNN(4, H, dtype=torch.float64)
    register_parametrization(other, "weight_hh_l0", Mask(torch.ones(H, H)))
    other.load_state_dict(rnn.state_dict())
    assert has_mask(other.weight_hh_l0)


@every
def test_cached(name, weights_seen):
    rnn, x = constrained(name), input_of(7, 3, 4)
    expected = rnn(x)[0]
    with cached():
        for _ in range(2):
            assert torch.equal(rnn(x)[0], expected)
    assert weights_seen[1] is weights_seen[2] is not weights_seen[0]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(name, dtype, weights_seen):
    rnn = constrained(name, dtype)
    assert rnn(input_of(3, 2, 4, dtype=dtype))[0].dtype == dtype == weights_seen[0].dtype
    rnn = constrained(name).to(dtype)
    assert rnn(input_of(3, 2, 4, dtype=dtype))[0].dtype == dtype == weights_seen[1].dtype


@every
def test_autocast(name):
    rnn, x = constrained(name, torch.float32), input_of(3, 2, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = rnn(x)[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), rnn(x)[0], rtol=0.05, atol=0.05)


@every
def test_compile(name):
    rnn, x = constrained(name), input_of(5, 3, 4)
    torch.compiler.reset()  # what other tests have compiled counts against a limit
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    results = []
    for call in (compiled, rnn):
        output = call(x)[0]
        results.append([output, *torch.autograd.grad(output.sum(), list(rnn.parameters()))])
    torch.testing.assert_close(*results)


@every
def test_stepper(name):
    rnn, x = constrained(name), input_of(5, 3, 4)
    stepper = rnn.stepper(3)
    with torch.no_grad():
        for original in rnn.parametrizations.weight_hh_l0.parameters():
            original.mul_(0.5)
    for row, expected in zip(x, rnn(x)[0], strict=True):
        torch.testing.assert_close(stepper.step(row), expected)


def test_repr():
    text = repr(constrained("mask, abs"))
    assert f"connections={int(MASK.sum())}" in text
    assert "4 excitatory, 2 inhibitory, rectifier='abs'" in text
    assert "rank=2" in repr(LowRank(2))


WRONG = {
    "signs 2": (lambda: DalesLaw([1, 2]), "signs must be a vector of 1 and -1"),
    "signs 0": (lambda: DalesLaw(torch.zeros(3)), "signs must be a vector of 1 and -1"),
    "signs rank": (lambda: DalesLaw(torch.ones(2, 2)), "signs must be a vector of 1 and -1"),
    "rectifier": (lambda: DalesLaw([1], "exp"), "rectifier must be 'abs' or 'relu', got 'exp'"),
    "mask": (lambda: Mask([[0.5]]), "mask must have no elements except 0 and 1"),
    "rank 0": (lambda: LowRank(0), "rank must be an integer of at least 1, got 0"),
    "rank True": (lambda: LowRank(True), "rank must be an integer of at least 1, got True"),
    "radius": (lambda: scale_spectral_radius_(torch.eye(2), -1), "radius must be at least 0"),
    "radius inf": (lambda: scale_spectral_radius_(torch.eye(2), float("inf")), "radius must be"),
    "not square": (lambda: scale_spectral_radius_(torch.ones(2, 3), 1), r"square.*got \(2, 3\)"),
    "integers": (lambda: scale_spectral_radius_(torch.ones(2, 2).int(), 1), "floating-point"),
    "NaN": (lambda: scale_spectral_radius_(torch.full((2, 2), torch.nan), 1), "must be finite"),
    "nilpotent": (lambda: scale_spectral_radius_(torch.ones(3, 3).triu(1), 1), "eigenvalue"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


WRONG_FOR_THE_WEIGHT = {
    "signs": (DalesLaw([1] * 5), "signs must have one element for each of the 6 columns.*got 5"),
    "mask": (Mask(torch.ones(H)), r"mask must have the shape of the weight, \(6, 6\), got \(6,\)"),
    "rank": (LowRank(7), r"rank must be in \[1, 6\] for this weight, got 7"),
    "input": (NoSelfConnections(), r"weight must be square, \(H, H\), got \(6, 4\)"),
    "low-rank input": (LowRank(2), r"weight must be square, \(H, H\), got \(6, 4\)"),
}


@pytest.mark.parametrize("name", WRONG_FOR_THE_WEIGHT)
def test_wrong_weights(name):
    constraint, message = WRONG_FOR_THE_WEIGHT[name]
    rnn = FastRNN(4, H)
    weight = "weight_ih_l0" if "input" in name else "weight_hh_l0"
    with pytest.raises(ValueError, match=message):
        register_parametrization(rnn, weight, constraint)
    assert not is_parametrized(rnn)
    rnn(torch.randn(3, 2, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scale_spectral_radius(dtype):
    rnn = FastRNN(4, 30, dtype=dtype)
    weight = rnn.weight_hh_l0
    expected = weight.double() / diagnostics.spectral_radius(rnn).item() * 1.3
    assert scale_spectral_radius_(weight, 1.3) is weight and weight.requires_grad
    torch.testing.assert_close(weight, expected.to(dtype))
    scale_spectral_radius_(weight, 0)
    assert not weight.any()


@every_that_keeps
def test_scale_a_constrained_weight(name):
    rnn = constrained(name)
    rnn.weight_hh_l0 = scale_spectral_radius_(rnn.weight_hh_l0.detach(), 0.9)
    assert diagnostics.spectral_radius(rnn).item() == pytest.approx(0.9)
    assert all(holds(rnn.weight_hh_l0) for holds in CONSTRAINTS[name][1])
