"""Resets inside of sequences: every part between two resets is as if it was run alone."""

import functools
from dataclasses import replace
from functools import partial

import pytest
import rule
import torch
from reset_rule import draw_resets, in_parts, reference_of_parts
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_map

import rnnfast
from rnnfast import FastRNN
from rnnfast.functional import rnn
from rnnfast.functional._stepwise import rnn_stepwise

CASES = [
    rule.Case(1, 3, 4, 5),
    rule.Case(7, 1, 3, 5),
    rule.Case(40, 9, 5, 33),
    rule.Case(40, 9, 5, 33, nonlinearity="relu", with_hx=False),
    rule.Case(130, 2, 17, 65, layout="batch", bias=False),
    rule.Case(23, 6, 7, 19, num_layers=2, bidirectional=True),
    rule.Case(23, 6, 7, 19, num_layers=3, layout="packed"),
    rule.Case(23, 6, 7, 19, num_layers=2, bidirectional=True, layout="packed", memory="strided"),
    rule.Case(300, 1, 8, 129, num_layers=2),
    rule.Case(300, 3, 8, 129, bidirectional=True),
    rule.Case(600, 4, 8, 128, layout="packed"),
    rule.Case(20, 70, 8, 24, layout="batch", bidirectional=True),
    rule.Case(25, 5, 6, 12, dtype=torch.float64, num_layers=2, bidirectional=True),
]


@functools.cache
def judged(case, probability):
    """Return the resets, torch's results and those of the reference."""
    data = rule.make(case)
    reset = draw_resets(data, probability)
    torchs = rule.run(partial(in_parts, reset=reset), case, data)
    return reset, torchs, reference_of_parts(case, data, reset)


@pytest.mark.parametrize("probability", (0.02, 0.3, 1.0))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case, probability):
    reset, torchs, truth = judged(case, probability)
    rule.check(
        rule.run(partial(rnn, reset=reset), case, rule.make(case)), torchs, truth, case.dtype
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_on_every_instruction_set(case, isa):
    reset, torchs, truth = judged(case, 0.3)
    rule.check(
        rule.run(partial(rnn, reset=reset), case, rule.make(case)), torchs, truth, case.dtype
    )


@pytest.mark.parametrize("dtype", rule.HALF)
def test_16_bits(dtype, isa):
    """The reference is as wide as the kernel's sums, so rounding the results decides."""
    case = rule.Case(40, 9, 5, 33, bidirectional=True)
    wide = rule.make(replace(case, dtype=dtype))
    exact = tree_map(
        lambda t: (
            t.detach().double().requires_grad_(t.requires_grad)
            if isinstance(t, torch.Tensor) and t.is_floating_point()
            else t
        ),
        vars(wide),
    )
    reset = draw_resets(wide, 0.2)
    ours = rule.run(partial(rnn, reset=reset), case, wide)
    truth = rule.run(partial(rnn, reset=reset), case, rule.Data(**exact))
    for name, expected in truth.items():
        error = (ours[name].double() - expected).abs().max()
        assert ours[name].dtype == dtype
        assert error < 12 * torch.finfo(dtype).eps * expected.abs().max(), name


@pytest.mark.parametrize("case", [CASES[3], CASES[8], CASES[9], CASES[10]], ids=str)
def test_threads_do_not_change_a_bit(case, num_threads):
    data = rule.make(case)
    results = []
    for threads in (1, 2, 5):
        num_threads(threads)
        call = partial(rnn, reset=draw_resets(data, 0.1))
        results.append(rule.run(call, case, data))
    for other in results[1:]:
        assert all(torch.equal(other[name], t) for name, t in results[0].items())


def tensors(module, seed=0):
    """Return an input (T, B, I), an initial state and resets for a module."""
    generator = torch.Generator().manual_seed(seed)
    T, B, D = 9, 4, 2 if module.bidirectional else 1
    x = torch.randn(T, B, module.input_size, generator=generator)
    hx = torch.randn(D * module.num_layers, B, module.hidden_size, generator=generator)
    return x, hx, torch.rand(T, B, generator=generator) < 0.3


def module_in_parts(module, x, hx, reset):
    """Run an nn.RNN of one forward direction over each part between resets."""
    outputs, last = [], []
    for b in range(x.shape[1]):
        h, steps = hx[:, b : b + 1], []
        for t in range(len(x)):
            if reset[t, b]:
                h = torch.zeros_like(h)
            output, h = nn.RNN.forward(module, x[t : t + 1, b : b + 1], h)
            steps.append(output)
        outputs.append(torch.cat(steps))
        last.append(h)
    return torch.cat(outputs, 1), torch.cat(last, 1)


def test_layouts():
    """batch_first, no batch, single steps, lengths and packed input give the same states."""
    module = FastRNN(3, 5, 2)
    x, hx, reset = tensors(module)
    expected, last = module_in_parts(module, x, hx, reset)
    output, h_n = module(x, hx, reset=reset)
    torch.testing.assert_close((output, h_n), (expected, last))

    batch_first = FastRNN(3, 5, 2, batch_first=True)
    batch_first.load_state_dict(module.state_dict())
    output, h_n = batch_first(x.transpose(0, 1), hx, reset=reset.t())
    torch.testing.assert_close((output.transpose(0, 1), h_n), (expected, last))

    output, h_n = module(x[:, 1], hx[:, 1], reset=reset[:, 1])
    torch.testing.assert_close((output, h_n), (expected[:, 1], last[:, 1]))

    h = hx
    for t in range(len(x)):
        output, h = module(x[t : t + 1], h, reset=reset[t : t + 1])
        torch.testing.assert_close(output[0], expected[t])
        single, _ = batch_first(x[t, 1:2], h[:, 1], reset=reset[t, 1:2])
        assert single.shape == (1, 5)

    for lengths in ([9, 2, 5, 1], [9, 9, 3, 0]):
        output, h_n = module(x, hx, lengths=lengths, reset=reset)
        for b, length in enumerate(lengths):
            own, own_last = module_in_parts(
                module, x[:length, b : b + 1], hx[:, b : b + 1], reset[:length, b : b + 1]
            ) if length else (expected[:0, b : b + 1], hx[:, b : b + 1])  # fmt: skip
            torch.testing.assert_close(output[:length, b : b + 1], own)
            assert not output[length:, b].any()
            torch.testing.assert_close(h_n[:, b : b + 1], own_last)

    lengths = torch.tensor([4, 9, 1, 6])
    packed = [pack_padded_sequence(t, lengths, enforce_sorted=False) for t in (x, reset)]
    output, h_n = module(packed[0], hx, reset=packed[1])
    expected, last = module(x, hx, lengths=lengths, reset=reset)
    torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(output)[0], expected)
    torch.testing.assert_close(h_n, last)


def test_single_step_of_two_directions():
    """A reset before the only step concerns the forward direction alone."""
    module = FastRNN(3, 5, 2, bidirectional=True)
    x, hx, _ = tensors(module)
    reset = torch.tensor([[True, False, True, False]])
    kept = hx.clone()
    kept.view(2, 2, 4, 5)[:, 0, ::2] = 0
    torch.testing.assert_close(module(x[:1], hx, reset=reset), module(x[:1], kept))


def test_tokens():
    module = FastRNN(7, 5, bidirectional=True)
    tokens = torch.randint(7, (9, 4))
    reset = torch.rand(9, 4) < 0.3
    expected = module(nn.functional.one_hot(tokens, 7).float(), reset=reset)
    torch.testing.assert_close(module(tokens, reset=reset), expected)
    expected[0].sum().backward()
    gradient = module.weight_ih_l0.grad.clone()
    module.zero_grad()
    module(tokens, reset=reset)[0].sum().backward()
    torch.testing.assert_close(module.weight_ih_l0.grad, gradient)


@pytest.mark.parametrize("zoneout", (0.0, 0.3))
@pytest.mark.parametrize("bidirectional", (False, True))
def test_steps_one_by_one(bidirectional, zoneout):
    """The loop over time steps, which runs zoneout and vmap, has the same resets."""
    module = FastRNN(3, 5, 2, bidirectional=bidirectional, zoneout=zoneout).eval()
    x, hx, reset = tensors(module)
    lengths = torch.tensor([9, 2, 5, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, h_n = module(x, hx, lengths=lengths, reset=reset)
    descriptor = rnnfast._ops.RNNDescriptor(2, 1 + bidirectional, False, "tanh", True)
    weights = module._flat_weights
    expected, last = rnn_stepwise(
        x, hx, weights, None, descriptor, zoneout, lengths=lengths, reset=reset
    )
    torch.testing.assert_close((output, h_n), (expected, last))
    data = pack_padded_sequence(reset, lengths, enforce_sorted=False)
    output, h_n = module(packed, hx, reset=data)
    torch.testing.assert_close(nn.utils.rnn.pad_packed_sequence(output)[0], expected)
    torch.testing.assert_close(h_n, last)


def test_regularisers_between_layers():
    """Dropout between layers draws what it draws without resets."""
    module = FastRNN(3, 5, 3, dropout=0.5, variational_dropout=0.3)
    x, hx, reset = tensors(module)
    never = torch.zeros_like(reset)
    results = []
    for options in ({}, {"reset": never}):
        torch.manual_seed(1)
        results.append(module(x, hx, **options))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert not torch.equal(module(x, hx, reset=reset)[0], results[0][0])


def test_derivatives():
    module = FastRNN(2, 3, 2, bidirectional=True, dtype=torch.float64)
    x, hx, reset = tensors(module)
    x, hx, reset = x[:4, :2].double(), hx[:, :2].double(), reset[:4, :2]
    reset[2, 0] = True
    names = [name for name, _ in module.named_parameters()]

    def call(x, hx, *weights):
        return torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), (x, hx), {"reset": reset}
        )

    inputs = [t.detach().requires_grad_() for t in (x, hx, *module.parameters())]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_gradients_do_not_cross():
    module = FastRNN(3, 5)
    x = torch.randn(6, 1, 3, requires_grad=True)
    reset = torch.zeros(6, 1, dtype=torch.bool)
    reset[3] = True
    output, _ = module(x, reset=reset)
    output[3:].sum().backward()
    assert not x.grad[:3].any() and x.grad[3:].all()


def test_transforms():
    """torch.func, torch.compile, torch.export and torch.jit.trace."""
    module = FastRNN(3, 5, 2, bidirectional=True)
    x, hx, reset = tensors(module)
    expected = module(x, hx, reset=reset)
    other = ~reset
    several = torch.func.vmap(lambda r: module(x, hx, reset=r))(torch.stack((reset, other)))
    torch.testing.assert_close([t[0] for t in several], list(expected))
    torch.testing.assert_close([t[1] for t in several], list(module(x, hx, reset=other)))
    _, tangent = torch.func.jvp(lambda x: module(x, hx, reset=reset)[0], (x,), (x,))
    assert tangent.shape == expected[0].shape

    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, hx, reset=reset), expected)

    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    shapes = {"input": {0: T, 1: B}, "hx": {1: B}, "lengths": None, "reset": {0: T, 1: B}}
    program = torch.export.export(module, (x, hx, None, reset), dynamic_shapes=shapes, strict=False)
    longer, more = torch.cat((x, x)), torch.cat((other, reset))
    torch.testing.assert_close(
        program.module()(longer, hx, None, more), module(longer, hx, reset=more)
    )
    lengths = torch.tensor([9, 2, 5, 1])
    shapes = {"input": {0: T, 1: B}, "hx": {1: B}, "lengths": {0: B}, "reset": {0: T, 1: B}}
    program = torch.export.export(
        module, (x, hx, lengths, reset), dynamic_shapes=shapes, strict=False
    )
    torch.testing.assert_close(
        program.module()(x, hx, lengths.flip(0), other),
        module(x, hx, lengths=lengths.flip(0), reset=other),
    )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = module

        def forward(self, x, reset):
            return self.rnn(x, reset=reset)

    traced = torch.jit.trace(Model(), (x, reset))
    torch.testing.assert_close(traced(x, other), module(x, reset=other))


def test_operator():
    data = rule.make(rule.Case(5, 3, 4, 6, num_layers=2))
    reset = draw_resets(data, 0.3)
    arguments = (data.input, data.hx, data.weights, None, 2, False, False, True)
    with torch.no_grad():
        torch.library.opcheck(torch.ops.rnnfast.rnn.default, (*arguments, True), {"reset": reset})
        outs, _ = torch.ops.rnnfast.rnn(*arguments, True, reset=reset)
        torch.library.opcheck(
            torch.ops.rnnfast.rnn_backward.default,
            (data.dy, data.dh_n, outs, *arguments, True, True, True),
            {"reset": reset},
        )


def test_autocast():
    module = FastRNN(3, 5)
    x, hx, reset = tensors(module)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x, hx, reset=reset)
    assert output.dtype == torch.bfloat16
    expected, _ = module(x, hx, reset=reset)
    assert (output.float() - expected).abs().max() < 0.05


def wrong(shape, dtype=torch.bool):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize("T", (1, 6))
@pytest.mark.parametrize("value", (wrong((6, 5)), wrong((6, 4), torch.int64), [[True]], True))
def test_wrong_resets(value, T):
    module, x = FastRNN(3, 5), torch.randn(T, 4, 3)
    calls = [lambda: module(x, reset=value), lambda: module(x, lengths=[1] * 4, reset=value)]
    calls.append(lambda: rnn(x, None, module._flat_weights, reset=value))
    for call in calls:
        with pytest.raises(ValueError, match=r"reset must be"):
            call()


def test_wrong_packed_resets():
    module, x, reset = FastRNN(3, 5), torch.randn(6, 4, 3), wrong((6, 4))
    lengths, other = [6, 5, 2, 1], [6, 5, 2, 2]
    packed = pack_padded_sequence(x, lengths)
    for value in (reset, pack_padded_sequence(reset, other), pack_padded_sequence(x, lengths)):
        with pytest.raises(ValueError, match=r"reset must be"):
            module(packed, reset=value)


def test_empty_batch():
    module = FastRNN(3, 5)
    for T in (1, 4):
        reset = torch.zeros(T, 0, dtype=torch.bool)
        output, h_n = module(torch.zeros(T, 0, 3), torch.zeros(1, 0, 5), reset=reset)
        assert output.shape == (T, 0, 5) and h_n.shape == (1, 0, 5)


@pytest.mark.parametrize("shape", [(3, 1, 5), (4, 6, 5), (3, 5)])
def test_wrong_hx_of_a_single_step(shape):
    module = FastRNN(3, 5, 3)
    x, reset = torch.zeros(1, 3, 3), torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises((RuntimeError, ValueError), match=r"hidden|hx"):
        module(x, torch.zeros(shape), reset=reset)


def test_default_device():
    data = rule.make(CASES[6])
    reset = draw_resets(data, 0.3)
    options = {"batch_first": False, "batch_sizes": data.batch_sizes, **CASES[6].options}
    expected = in_parts(data.input, data.hx, data.weights, **options, reset=reset)
    with torch.device("meta"):
        found = in_parts(data.input, data.hx, data.weights, **options, reset=reset)
    torch.testing.assert_close(found, expected)
