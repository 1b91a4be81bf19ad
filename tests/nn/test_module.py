"""``FastRNN`` and ``FastRNNCell`` behave like their parent classes in ``torch.nn``."""

import copy
import io
import pickle
import subprocess
import sys
from functools import partial

import pytest
import rule
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast
from rnnfast import FastGRU, FastLSTM, FastRNN, FastRNNCell


def pair(*args, seed=0, classes=(nn.RNN, FastRNN), **kwargs):
    """Return an nn.RNN and a FastRNN with the same arguments and weights."""
    modules = []
    for cls in classes:
        torch.manual_seed(seed)
        modules.append(cls(*args, **kwargs))
    return modules


def flat(output):
    """Return a list of the tensors in the output of a module."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, PackedSequence):
        return [output.data]
    return [tensor for part in output for tensor in flat(part)]


def each(function, input):
    """Return ``function`` of the tensors of an input: a tensor, packed data or a pair of states."""
    if isinstance(input, PackedSequence):
        return PackedSequence(function(input.data), *input[1:])
    return tuple(map(function, input)) if isinstance(input, tuple) else function(input)


def differentiate(module, *inputs, seed=1):
    """Return outputs and gradients by name, for a random gradient of each output."""
    inputs = [each(lambda t: t.clone().requires_grad_(), i) for i in inputs]
    outputs = flat(module(*inputs))
    generator = torch.Generator().manual_seed(seed)
    # These numbers are exact in every dtype, also in bfloat16.
    seeds = [torch.randint(-64, 65, o.shape, generator=generator).to(o) / 64 for o in outputs]
    named = {f"input {i}": tensor for i, tensor in enumerate(flat(inputs))}
    named |= dict(module.named_parameters())
    gradients = torch.autograd.grad(outputs, list(named.values()), seeds)
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return results | {f"d {n}": g for n, g in zip(named, gradients, strict=True)}


def check(theirs, ours, *inputs):
    """Compare our module with that of torch by the rule; the reference is torch's in float64.

    In float64 the two may differ as much as sums of the same terms in different orders.
    """
    dtype = next(theirs.parameters()).dtype
    expected, found = differentiate(theirs, *inputs), differentiate(ours, *inputs)
    if dtype == torch.float64:
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-13, msg=name)
    else:
        check_rule(found, expected, in_float64(theirs, *inputs), dtype)


def check_rule(found, expected, wide, dtype):
    """Hold the results ``found`` to the rule. ``wide`` has the results of torch in float64."""
    rule.check(found, expected, {name: t.cpu().numpy() for name, t in wide.items()}, dtype)


def in_float64(module, *inputs):
    """Return what `differentiate` returns for the module and its inputs in float64."""
    wide = [each(torch.Tensor.double, i) for i in inputs]
    return differentiate(copy.deepcopy(module).double(), *wide)


# The textbook call and its options


def test_textbook(device):
    theirs, ours = pair(10, 20, 3, device=device)
    x, h0 = torch.randn(5, 64, 10, device=device), torch.randn(3, 64, 20, device=device)
    output, h_n = ours(x, h0)
    assert output.shape == (5, 64, 20) and h_n.shape == (3, 64, 20)
    check(theirs, ours, x, h0)


@settings(
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_configuration(device, data):
    draw, flag = data.draw, st.booleans()
    sizes = st.sampled_from([1, 2, 3, 5, 8, 17])
    num_layers, bidirectional = draw(st.integers(1, 3)), draw(flag)
    batch_first, with_hx = draw(flag), draw(flag)
    inputs, hidden, T, B = (draw(sizes) for _ in range(4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    theirs, ours = pair(
        inputs, hidden, num_layers, draw(st.sampled_from(["tanh", "relu"])),
        bias=draw(flag), batch_first=batch_first, bidirectional=bidirectional, dtype=dtype,
    )  # fmt: skip
    theirs.to(device), ours.to(device)
    states = num_layers * (2 if bidirectional else 1)
    batching = draw(st.sampled_from(["batched", "unbatched", "sorted", "unsorted"]))
    options = {"dtype": dtype, "device": device}
    torch.manual_seed(draw(st.integers(0, 100)))
    if batching == "unbatched":
        x, hx = torch.randn(T, inputs, **options), torch.randn(states, hidden, **options)
    else:
        hx = torch.randn(states, B, hidden, **options)
        if batching == "batched":
            x = torch.randn(*((B, T) if batch_first else (T, B)), inputs, **options)
        else:
            lengths = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
            lengths = sorted(lengths, reverse=True) if batching == "sorted" else lengths
            sequences = [torch.randn(length, inputs, **options) for length in lengths]
            x = pack_sequence(sequences, enforce_sorted=batching == "sorted")
    check(theirs, ours, x, *([hx] if with_hx else []))


def test_packed_output_is_packed_alike():
    theirs, ours = pair(3, 4)
    x = pack_sequence([torch.randn(n, 3) for n in (2, 5, 1)], enforce_sorted=False)
    expected, found = theirs(x)[0], ours(x)[0]
    assert isinstance(found, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_lengths(device, batch_first, tokens):
    """Each sequence of a padded batch gives the results it gives alone, whatever the padding is."""
    lengths, T = [4, 1, 6, 3], 7
    ours = FastRNN(3, 4, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    ours.to(device)
    x = torch.randint(3, (T, 4)) if tokens else torch.randn(T, 4, 3, dtype=torch.float64)
    x, hx = x.to(device), torch.randn(4, 4, 4, dtype=torch.float64, device=device)
    layout = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    for argument in (lengths, torch.tensor(lengths, device=device)):
        output, h_n = ours(layout(x), hx, lengths=argument)
        output = layout(output)
        assert output.shape == (T, 4, 8)
        for b, n in enumerate(lengths):
            own = layout(x[:n, b : b + 1])
            expected, expected_h_n = ours(own, hx[:, b : b + 1].contiguous())
            torch.testing.assert_close(output[:n, b : b + 1], layout(expected))
            torch.testing.assert_close(h_n[:, b : b + 1], expected_h_n)
            assert not output[n:, b].any()


@pytest.mark.parametrize(
    "lengths", [[4, 1], [4, 1, -1], [4, 1, 8], [4.0, 1.0, 6.0], [[4], [1], [6]]]
)
def test_wrong_lengths(lengths):
    with pytest.raises(ValueError, match="lengths must be"):
        FastRNN(3, 4)(torch.randn(7, 3, 3), lengths=lengths)


def test_state_of_a_padded_batch_of_another_size():
    for B in (2, 7):
        with pytest.raises(RuntimeError, match=rf"Expected hidden size .1, 3, 4.*1, {B}, 4"):
            FastRNN(3, 4)(torch.randn(7, 3, 3), torch.randn(1, B, 4), lengths=[4, 1, 6])


@pytest.mark.parametrize("x", [lambda: packed(3, 2), lambda: torch.randn(7, 3)])
def test_lengths_of_what_is_no_padded_batch(x):
    with pytest.raises(ValueError, match="lengths must be None"):
        FastRNN(3, 4)(x(), lengths=[3, 2])


def test_what_is_no_tensor():
    module, x = FastRNN(3, 4), torch.zeros(5, 2, 3)
    for arguments in ({}, {"lengths": [5, 5]}):
        for input in (None, [[[1.0]]], x.numpy()):
            with pytest.raises(AttributeError, match="input must be a tensor or PackedSeq"):
                module(input, **arguments)
        for steps in (x, x[:1]):
            with pytest.raises(AttributeError, match="hx must be a tensor, got tuple"):
                module(steps, (torch.zeros(1, 2, 4),) * 2, **arguments)


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((3, 4), {}),
        ((3, 4, 2, "relu", False, True, 0.5, True), {}),
        ((3, 4), {"num_layers": 2, "nonlinearity": "relu", "bias": False, "dropout": 0.25}),
        ((3, 4), {"batch_first": True, "bidirectional": True, "dtype": torch.float64}),
    ],
)
def test_construction(args, kwargs):
    theirs, ours = pair(*args, **kwargs)
    assert isinstance(ours, nn.RNN) and isinstance(ours, nn.RNNBase)
    assert repr(ours) == repr(theirs).replace("RNN", "FastRNN", 1)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), "the same seed, the same weights"
        assert ours.state_dict()[name].dtype == tensor.dtype


def test_state_dict_goes_both_ways():
    for source, sink in (pair(3, 4, 2), pair(3, 4, 2)[::-1]):
        with torch.no_grad():
            for p in source.parameters():
                p.mul_(0.5)
        sink.load_state_dict(source.state_dict())
        x = torch.randn(5, 2, 3)
        torch.testing.assert_close(sink(x)[0], source(x)[0])


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved],
    ids=["deepcopy", "pickle", "torch.save"],
)  # fmt: skip
@pytest.mark.parametrize("cls", [FastRNN, FastRNNCell])
def test_copies(cls, duplicate):
    module = cls(3, 4)
    x = torch.randn(5, 3)
    expected = flat(module(x))  # before the copy, so that it copies what a call leaves behind
    other = duplicate(module)
    assert type(other) is cls
    for found, tensor in zip(flat(other(x)), expected, strict=True):
        assert torch.equal(found, tensor)
    with torch.no_grad():
        other.get_parameter(next(iter(dict(other.named_parameters())))).zero_()
    for found, tensor in zip(flat(module(x)), expected, strict=True):
        assert torch.equal(found, tensor), "the copy shares nothing"


def test_to_another_dtype_and_back():
    theirs, ours = pair(3, 4)
    x = torch.randn(5, 2, 3)
    check(theirs.double(), ours.double(), x.double())
    check(theirs.float(), ours.float(), x)


# Training


def test_dropout_only_between_layers_and_only_in_training(device):
    ours = FastRNN(6, 8, 3, dropout=0.5, device=device)
    plain = FastRNN(6, 8, 3, device=device)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5, 6, device=device)
    expected, _ = plain(x)
    assert torch.equal(ours.eval()(x)[0], expected)
    torch.manual_seed(3)
    first, _ = ours.train()(x)
    torch.manual_seed(3)
    assert torch.equal(ours(x)[0], first)
    assert not torch.equal(ours(x)[0], first)
    assert not torch.allclose(first, expected)

    def all_but_one_layer(cls):
        with pytest.warns(UserWarning, match="dropout"):
            return cls(6, 8, 1, dropout=0.5, device=device)

    one = all_but_one_layer(FastRNN)
    assert torch.equal(one.train()(x)[0], one.eval()(x)[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_of_a_seed_is_that_of_nn_rnn(batch_first):
    theirs, ours = pair(6, 8, 3, dropout=0.5, bidirectional=True, batch_first=batch_first)
    x = torch.randn(4, 5, 6)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        output, h_n = module(x)
        loss = output.square().sum() + h_n.sum()
        results.append([output, h_n, *torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(*results)


def test_dropout_of_everything(device):
    """With p = 1 the second layer reads zeros, and the first layer has no gradient."""
    ours = FastRNN(6, 8, 2, dropout=1.0, device=device)
    x = torch.randn(4, 5, 6, device=device, requires_grad=True)
    output, _ = ours(x)
    second = FastRNN(8, 8, device=device)
    with torch.no_grad():
        for name, p in second.named_parameters():
            p.copy_(ours.get_parameter(name.replace("l0", "l1")))
    torch.testing.assert_close(output, second(torch.zeros(4, 5, 8, device=device))[0])
    output.sum().backward()
    assert not x.grad.any()
    assert ours.weight_hh_l1.grad.any()


def test_dropout_statistics(device):
    """The second layer copies its input: a share p is zero, the rest is scaled by 1 / (1 - p)."""
    H, p = 50, 0.3
    ours = FastRNN(H, H, 2, "relu", bias=False, dropout=p, device=device)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.zero_()
        for weight in (ours.weight_ih_l0, ours.weight_ih_l1):
            weight.copy_(torch.eye(H))
    torch.manual_seed(0)
    output, _ = ours(torch.ones(20, 30, H, device=device))
    zeros = (output == 0).double().mean().item()
    n = output.numel()
    assert abs(zeros - p) < 5 * (p * (1 - p) / n) ** 0.5
    kept = output[output != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))


def test_frozen_parameters(device):
    ours = FastRNN(3, 4, 2, bidirectional=True, device=device)
    frozen = {"weight_ih_l0", "weight_hh_l1_reverse", "bias_hh_l0"}
    for name, p in ours.named_parameters():
        p.requires_grad_(name not in frozen)
    ours(torch.randn(5, 2, 3, device=device))[0].sum().backward()
    assert {name for name, p in ours.named_parameters() if p.grad is None} == frozen


def test_everything_frozen_but_the_input(device):
    theirs, ours = pair(3, 4, device=device)
    grads = []
    for module in (theirs, ours):
        module.requires_grad_(False)
        x = torch.linspace(-1, 1, 30, device=device).reshape(5, 2, 3).requires_grad_()
        module(x)[0].square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(device, mode):
    ours = FastRNN(3, 4, 2, device=device)
    x = torch.randn(5, 2, 3, device=device)
    expected, _ = ours(x)
    with mode():
        output, h_n = ours(x)
    assert not output.requires_grad and not h_n.requires_grad
    assert torch.equal(output, expected)
    assert output.is_inference() == (mode is torch.inference_mode)


def test_backward_twice(device):
    ours = FastRNN(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    output, h_n = ours(x)
    first = torch.autograd.grad(output.sum() + h_n.sum(), x, retain_graph=True)[0]
    again = torch.autograd.grad(output.sum() + h_n.sum(), x)[0]
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output.sum() + h_n.sum(), x)


def test_output_changed_in_place_is_noticed(device):
    """The backward pass reads the output, so a change of the output in place must raise."""
    ours = FastRNN(3, 4, device=device)
    output, _ = ours(torch.randn(5, 2, 3, device=device))
    loss = output.sum()
    with torch.no_grad():
        output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_h_n_is_not_the_output(device):
    """Writing into one output leaves the other alone, as in nn.RNN."""
    ours = FastRNN(3, 4, device=device)
    with torch.no_grad():
        output, h_n = ours(torch.randn(5, 2, 3, device=device))
        kept = output.clone()
        h_n.zero_()
    assert torch.equal(output, kept)


@pytest.fixture
def without_cudnn():
    with torch.backends.cudnn.flags(enabled=False):
        yield


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_double_backward(device, nonlinearity, without_cudnn):
    """``create_graph=True`` gives the second derivatives of nn.RNN, which cuDNN cannot compute."""
    results = []
    for module in pair(3, 4, 2, nonlinearity, dtype=torch.float64, device=device):
        torch.manual_seed(5)
        x = torch.randn(5, 2, 3, dtype=torch.float64).to(device).requires_grad_()
        # ReLU is piecewise linear: without the square all second derivatives would be zero.
        loss = module(x)[0].square().sum()
        (gx,) = torch.autograd.grad(loss, x, create_graph=True)
        wanted = [x, *module.parameters()]
        results.append(torch.autograd.grad(gx.square().sum(), wanted, allow_unused=True))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def _carried(module, x):
    output, hx = module(x)
    return module(output + x, hx)[0]


def _state_from_input(module, x):
    return module(x, x[:1].tanh())[0]


def _tied(module, x):
    module.weight_hh_l1 = module.weight_hh_l0
    return module(x)[0]


@pytest.mark.parametrize("call", [_carried, _state_from_input, _tied])
def test_double_backward_of_inputs_that_depend_on_one_another(device, call, without_cudnn):
    """Inputs that are made from one another contribute to each gradient exactly once."""
    results = []
    for module in pair(4, 4, 1 + (call is _tied), dtype=torch.float64, device=device):
        torch.manual_seed(5)
        x = torch.randn(4, 4, 4, dtype=torch.float64).to(device).requires_grad_()
        loss = call(module, x).square().sum()
        wanted = [x, module.weight_hh_l0, module.weight_ih_l0]
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        results.append([*first, *second])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_batched_gradients_leave_the_graph_before_alone():
    """The batched backward pass of the second call ends at its own inputs."""
    jacobians = []
    for module in pair(4, 4, dtype=torch.float64):
        torch.manual_seed(5)
        x = torch.randn(3, 2, 4, dtype=torch.float64)
        batched = isinstance(module, FastRNN)
        jacobian = torch.autograd.functional.jacobian
        jacobians.append(jacobian(partial(_carried, module), x, vectorize=batched))
    torch.testing.assert_close(*jacobians, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_training(device, dtype):
    """A few steps of SGD end where those of nn.RNN end, within the rule for the float64 run."""
    ends = {}
    for name, cls, kind in (("theirs", nn.RNN, dtype), ("ours", FastRNN, dtype), *(
        [("truth", nn.RNN, torch.float64)] if dtype != torch.float64 else []
    )):  # fmt: skip
        torch.manual_seed(7)
        module = cls(5, 9, 2, bidirectional=True).to(device, kind)
        x, target = (torch.randn(11, 6, n).to(device, kind) for n in (5, 18))
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _ in range(10):
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(module(x)[0], target)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        ends[name] = {n: p.detach() for n, p in module.named_parameters()}
    if dtype == torch.float64:
        for name, p in ends["theirs"].items():
            torch.testing.assert_close(ends["ours"][name], p, rtol=1e-12, atol=1e-13)
    else:
        truth = {name: p.cpu().numpy() for name, p in ends["truth"].items()}
        rule.check(ends["ours"], ends["theirs"], truth, dtype)


def test_weights_changed_after_a_call_are_seen(device):
    """No copy of the weights is kept between calls."""
    theirs, ours = pair(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device)
    for module in (theirs, ours):
        module(x)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.25)
    check(theirs, ours, x)
    for module in (theirs, ours):
        module.weight_hh_l0 = nn.Parameter(torch.eye(4, device=device))
    check(theirs, ours, x)


def test_weight_norm_and_functional_call(device):
    """Some tools replace parameters by plain tensors."""
    results = []
    x = torch.linspace(-1, 1, 30, device=device).reshape(5, 2, 3)
    for module in pair(3, 4, device=device):
        halved = {name: p * 0.5 for name, p in module.named_parameters()}
        called = torch.func.functional_call(module, halved, (x,))[0]
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        output = module(x)[0]
        gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        results.append([called, output, *gradients])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


# 16 bits, autocast, empty input


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(device, dtype):
    theirs, ours = pair(5, 9, 2, bidirectional=True, dtype=dtype, device=device)
    x = torch.randn(7, 3, 5).to(device, dtype)
    check(theirs, ours, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(device, dtype):
    theirs, ours = pair(5, 9, 2, device=device)
    x = torch.randn(7, 3, 5, device=device, requires_grad=True)
    results = []
    for module in (theirs, ours):
        with torch.autocast(device, dtype):
            outputs = module(x)
        gradients = torch.autograd.grad(outputs[0].float().sum(), [x, *module.parameters()])
        results.append([*outputs, *gradients])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_meta_device():
    theirs, ours = pair(5, 9, 2, bidirectional=True, device="meta")
    for expected, found in zip(
        flat(theirs(torch.empty(7, 3, 5, device="meta"))),
        flat(ours(torch.empty(7, 3, 5, device="meta"))),
        strict=True,
    ):
        assert found.is_meta
        assert found.shape == expected.shape and found.dtype == expected.dtype


# Wrong use


def outcome(function):
    """Return the type of the exception that ``call`` raises, or None."""
    try:
        function()
    except Exception as raised:
        return type(raised)
    return None


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((3, 4, 2, "sigmoid"), {}),
        ((3, 4), {"nonlinearity": "sigmoid"}),
        ((3, 4), {"proj_size": 2}),
        ((3, 4), {"proj_size": 0}),
        ((3, 0), {}),
        ((3, -1), {}),
        ((3, 4, 0), {}),
        ((3, 4.0), {}),
        ((3, 4), {"dropout": 1.5}),
        ((3, 4), {"dropout": "a"}),
        ((3, 4), {"dropout": True}),
        ((3, 4), {"nosuch": 1}),
        ((3,), {}),
        ((), {}),
    ],
    ids=str,
)
def test_wrong_construction(args, kwargs):
    expected = outcome(lambda: nn.RNN(*args, **kwargs))
    assert expected is not None
    assert outcome(lambda: FastRNN(*args, **kwargs)) is expected


def packed(*lengths, features=3, dtype=torch.float32):
    return pack_sequence([torch.randn(n, features, dtype=dtype) for n in lengths])


def without_memory(t):
    """Return ``t`` without its memory, as libraries that shard parameters leave it behind."""
    t.untyped_storage().resize_(0)
    return t


WRONG_CALLS = {
    "rank 1": lambda: (torch.randn(3),),
    "rank 4": lambda: (torch.randn(1, 2, 5, 3),),
    "input size": lambda: (torch.randn(5, 2, 4),),
    "input size, unbatched": lambda: (torch.randn(5, 4),),
    "no steps": lambda: (torch.randn(0, 2, 3),),
    "no features": lambda: (torch.randn(5, 2, 0),),
    "no memory": lambda: (without_memory(torch.randn(5, 2, 3)),),
    "hx without memory": lambda: (torch.randn(5, 2, 3), without_memory(torch.randn(2, 2, 4))),
    "hx batch": lambda: (torch.randn(5, 2, 3), torch.randn(2, 3, 4)),
    "hx layers": lambda: (torch.randn(5, 2, 3), torch.randn(1, 2, 4)),
    "hx size": lambda: (torch.randn(5, 2, 3), torch.randn(2, 2, 5)),
    "hx rank, batched": lambda: (torch.randn(5, 2, 3), torch.randn(2, 4)),
    "hx rank, unbatched": lambda: (torch.randn(5, 3), torch.randn(2, 1, 4)),
    "hx dtype": lambda: (torch.randn(5, 2, 3), torch.randn(2, 2, 4, dtype=torch.float64)),
    "hx dtype, a single step": lambda: (
        torch.randn(1, 2, 3),
        torch.randn(2, 2, 4, dtype=torch.float64),
    ),
    "hx device": lambda: (torch.randn(5, 2, 3), torch.randn(2, 2, 4, device="meta")),
    "input dtype": lambda: (torch.randn(5, 2, 3, dtype=torch.float64),),
    "input of integers": lambda: (torch.ones(5, 2, 3, dtype=torch.int64),),
    "a list": lambda: ([[1.0, 2.0, 3.0]],),
    "None": lambda: (None,),
    "nothing": lambda: (),
    "packed, input size": lambda: (packed(3, 2, features=4),),
    "packed, dtype": lambda: (packed(3, 2, dtype=torch.float64),),
    "packed, hx batch": lambda: (packed(3, 2), torch.randn(2, 3, 4)),
    "packed, rank": lambda: (PackedSequence(torch.randn(5, 1, 3), torch.tensor([2, 2, 1])),),
    "packed, too few rows": lambda: (PackedSequence(torch.randn(4, 3), torch.tensor([2, 2, 1])),),
    "packed, growing": lambda: (PackedSequence(torch.randn(5, 3), torch.tensor([1, 2, 2])),),
    "packed, negative": lambda: (PackedSequence(torch.randn(2, 3), torch.tensor([3, -1])),),
    "packed, no steps": lambda: (
        PackedSequence(torch.randn(0, 3), torch.tensor([], dtype=torch.int64)),
    ),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    """The exception has the type that nn.RNN raises."""
    theirs, ours = pair(3, 4, 2)
    expected = outcome(lambda: theirs(*WRONG_CALLS[call]()))
    assert expected is not None
    found = outcome(lambda: ours(*WRONG_CALLS[call]()))
    assert found is not None and issubclass(found, expected)


CLEAR = {
    "no memory": "input must have memory",
    "hx without memory": "hx must have memory",
    "no steps": r"sequence length.*\(0, 2, 3\)",
    "hx dtype": "hx must be torch.float32.*got torch.float64",
    "hx dtype, a single step": "hx must be torch.float32.*got torch.float64",
    "hx device": "hx must be on cpu.*got meta",
    "rank 4": "2D or 3D.*got.*4D",
    "packed, growing": "batch_sizes must.*never increase",
    "packed, too few rows": "batch_sizes must sum to the 4 rows of input, got 5",
    "packed, no steps": "at least one time step",
}


@pytest.mark.parametrize("call", CLEAR)
def test_errors_name_the_argument(call):
    """nn.RNN instead raises errors from deep inside: "mat1 and mat2 must have the same dtype"."""
    with pytest.raises(Exception, match=CLEAR[call]):
        FastRNN(3, 4, 2)(*WRONG_CALLS[call]())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hx_of_another_dtype_elsewhere(dtype):
    """The check is also made on torch's operators, and where time steps run one by one."""
    x, hx = torch.randn(5, 2, 3, dtype=dtype), torch.randn(1, 2, 4, dtype=torch.float64)
    for options in ({}, {"zoneout": 0.5}):
        with pytest.raises(RuntimeError, match="hx must be"):
            FastRNN(3, 4, dtype=dtype, **options)(x, hx)


@pytest.mark.parametrize("batch_first", [False, True])
def test_empty_batch(device, batch_first):
    """Without rows, FastRNN raises an error exactly if nn.RNN does."""
    theirs, ours = pair(3, 4, 2, batch_first=batch_first, device=device)
    x = torch.randn(*((0, 5) if batch_first else (5, 0)), 3, device=device)
    expected = outcome(lambda: theirs(x))
    assert outcome(lambda: ours(x)) is expected
    if expected is None:
        assert [t.shape for t in ours(x)] == [t.shape for t in theirs(x)]


# accelerate


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.RNN(3, 4, 2)), nn.ModuleDict({"lstm": nn.LSTM(4, 4)})]
        )
        self.cell = nn.RNNCell(4, 5)
        self.gru = nn.GRU(4, 4)
        self.shared = self.blocks[0][0]

    def forward(self, x):
        output, _ = self.blocks[0](x)
        return self.cell(output[-1])


def test_accelerate_swaps_in_place():
    model = Model()
    parameters = dict(model.named_parameters())
    expected = model(x := torch.randn(5, 2, 3))
    assert rnnfast.accelerate(model) is model
    assert type(model.blocks[0][0]) is FastRNN and model.shared is model.blocks[0][0]
    assert type(model.cell) is nn.RNNCell, "single steps would not be faster"
    assert type(model.gru) is FastGRU and type(model.blocks[1]["lstm"]) is FastLSTM
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is p for name, p in parameters.items())
    torch.testing.assert_close(model(x), expected)
    assert rnnfast.accelerate(model) is model, "a second time changes nothing"
    assert type(model.shared) is FastRNN


def test_accelerate_a_bare_rnn_keeps_hooks_and_mode():
    module = nn.RNN(3, 4, 2, dropout=0.5).eval()
    seen = []
    module.register_forward_hook(lambda *_: seen.append("hook"))
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    x = torch.randn(5, 2, 3)
    expected, _ = module(x)
    same = rnnfast.accelerate(module)
    assert same is module and type(same) is FastRNN and not same.training
    torch.testing.assert_close(same(x)[0], expected)
    assert seen == ["pre", "hook"] * 2


def test_accelerate_leaves_other_classes_alone():
    """A subclass may have changed ``forward``."""

    class Own(nn.RNN):
        def forward(self, input, hx=None):
            return "own"

    model = nn.Sequential(Own(3, 4))
    rnnfast.accelerate(model)
    assert type(model[0]) is Own
    assert rnnfast.accelerate(nn.Linear(2, 3)).__class__ is nn.Linear


# The cell


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [None, 1, 13])
@pytest.mark.parametrize("with_hx", [True, False])
def test_cell(device, with_hx, batch, bias, nonlinearity, dtype):
    theirs, ours = pair(
        7, 33, bias, nonlinearity, dtype=dtype, device=device, classes=(nn.RNNCell, FastRNNCell)
    )
    assert isinstance(ours, nn.RNNCell)
    assert repr(ours) == repr(theirs).replace("RNN", "FastRNN", 1)
    rows = () if batch is None else (batch,)
    x = torch.randn(*rows, 7, dtype=dtype, device=device)
    hx = torch.randn(*rows, 33, dtype=dtype, device=device)
    check(theirs, ours, x, *([hx] if with_hx else []))


WRONG_CELL_CALLS = {
    "rank 0": lambda: (torch.tensor(1.0),),
    "rank 3": lambda: (torch.randn(1, 2, 3),),
    "input size": lambda: (torch.randn(2, 4),),
    "input size, unbatched": lambda: (torch.randn(4),),
    "hx rank 3": lambda: (torch.randn(2, 3), torch.randn(1, 2, 4)),
    "hx batch": lambda: (torch.randn(2, 3), torch.randn(3, 4)),
    "hx size": lambda: (torch.randn(2, 3), torch.randn(2, 5)),
    "hx dtype": lambda: (torch.randn(2, 3), torch.randn(2, 4, dtype=torch.float64)),
    "input dtype": lambda: (torch.randn(2, 3, dtype=torch.float64),),
    "None": lambda: (None,),
}


@pytest.mark.parametrize("call", WRONG_CELL_CALLS)
def test_wrong_cell_calls(call):
    theirs, ours = pair(3, 4, classes=(nn.RNNCell, FastRNNCell))
    expected = outcome(lambda: theirs(*WRONG_CELL_CALLS[call]()))
    assert expected is not None
    found = outcome(lambda: ours(*WRONG_CELL_CALLS[call]()))
    assert found is not None and issubclass(found, expected)


def test_wrong_cell_nonlinearity():
    """nn.RNNCell raises the error in the call, not in the constructor."""
    theirs, ours = pair(3, 4, nonlinearity="sigmoid", classes=(nn.RNNCell, FastRNNCell))
    expected = outcome(lambda: theirs(torch.randn(2, 3)))
    assert expected is RuntimeError
    assert outcome(lambda: ours(torch.randn(2, 3))) is expected


PEAK_MEMORY = """
import re
import sys
from pathlib import Path

import torch
from torch import nn

import rnnfast

torch.set_num_threads(1)  # those of nn.RNN wait for one another where other processes compute
cls = {"nn.RNN": nn.RNN, "FastRNN": rnnfast.FastRNN}[sys.argv[1]]
rnn = cls(128, 128, num_layers=2)


def peak():  # in KiB; ru_maxrss would start at the value of the parent process
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])


def step(T):
    x = torch.randn(T, 32, 128, requires_grad=True)
    before = peak()
    out, _ = rnn(x)
    torch.autograd.grad(out, (x, *rnn.parameters()), torch.ones_like(out))
    return peak() - before


step(4)  # the first call loads libraries and allocates memory that later calls reuse
print(step(512))
"""


def test_training_takes_half_the_memory_of_nn_rnn():
    peak = {
        name: int(subprocess.run([sys.executable, "-c", PEAK_MEMORY, name],
                                 check=True, capture_output=True, text=True).stdout)
        for name in ("nn.RNN", "FastRNN")
    }  # fmt: skip
    assert peak["FastRNN"] < peak["nn.RNN"] / 2
