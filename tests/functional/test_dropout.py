"""`rnnfast.functional.dropout` compared with its random number generator written in Python."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from rnnfast import FastRNN, lm
from rnnfast.functional import dropout
from rnnfast.nn import Dropout

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [1, 2, 7, 65, 257, 5003]


def operator(x, p, seed=1):
    return torch.ops.rnnfast.dropout(x, torch.tensor(seed), p)


def splitmix64(seed, count):
    """Return the first numbers of the generator, computed one after the other by its definition."""
    numbers, state, mask = [], seed, 2**64 - 1
    for _ in range(count):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        numbers.append(z ^ z >> 31)
    return np.array(numbers, dtype="<u8")


def kept(n, p, seed=1):
    numbers = splitmix64(seed, (n + 1) // 2).view("<u4")[:n]
    return torch.from_numpy(numbers >= round(p * 2**32))


def test_the_reference_is_splitmix64():
    # Published values for the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(1234567, 3).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elements(isa, dtype):
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for n in SIZES:
        for seed, p in ((1, 0.3), (2**63 - 1, 0.9), (0, 2**-20), (5, 1 - 2**-20)):
            x = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype)
            before = x.clone()
            expected = x.to(wide) * kept(n, p, seed) * torch.tensor(1 / (1 - p), dtype=wide)
            torch.testing.assert_close(operator(x, p, seed), expected.to(dtype))
            assert torch.equal(x, before)


def test_the_generator_drops_as_often_as_it_should():
    ones = torch.ones(1_000_003)
    for p in (0.1, 0.5, 0.9):
        mask = operator(ones, p) == 0
        deviation = 5 * (p * (1 - p) / len(mask)) ** 0.5
        assert abs(mask.double().mean() - p) < deviation
        # Elements are independent of the element before them, and of the next seed.
        after, other = mask[:-1] & mask[1:], mask & (operator(ones, p, 2) == 0)
        for both in (after, other):
            assert abs(both.double().mean() - p * p) < 2 * deviation


def test_what_is_dropped_is_zero_whatever_it_was():
    x = torch.full((257,), torch.nan)
    out = operator(x, 0.5)
    assert torch.equal(out.isnan(), kept(257, 0.5)) and torch.equal(out == 0, ~kept(257, 0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(num_threads, dtype):
    x = torch.randn(400_009).to(dtype)
    num_threads(1)
    expected = operator(x, 0.4)
    for count in (2, 3, 8):
        num_threads(count)
        assert torch.equal(operator(x, 0.4), expected)


def test_seeds():
    x = torch.ones(7, 65)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)


def test_without_dropout_the_input_is_returned():
    x = torch.randn(3, requires_grad=True)
    for p, training in ((0, True), (0.0, True), (0.5, False), (1, False)):
        assert dropout(x, p, training) is x


def test_all_is_dropped():
    x = torch.randn(3, 7, requires_grad=True)
    out = dropout(x, 1)
    out.sum().backward()
    for t in (out, x.grad):
        assert torch.equal(t, torch.zeros(3, 7))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_wrong_probability(p):
    for training in (True, False):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got"):
            dropout(torch.ones(3), p, training)


def test_strides_and_shapes():
    x = torch.randn(5, 7, 9)
    for view in (x.transpose(0, 2), x[:, ::2], x[0, 0, 0], x[1:1]):
        torch.manual_seed(0)
        found = dropout(view, 0.5)
        torch.manual_seed(0)
        assert found.shape == view.shape
        assert torch.equal(found, dropout(view.contiguous(), 0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_has_the_same_mask(dtype):
    x = torch.randn(300, 700).to(dtype).requires_grad_()
    out = dropout(x, 0.3)
    dy = torch.randn(300, 700).to(dtype)
    (dx,) = torch.autograd.grad(out, x, dy)
    assert torch.equal(dx == 0, (out == 0) | (dy == 0))
    torch.testing.assert_close(dx[dx != 0], (dy / 0.7)[dx != 0])


def seeded(p, shape):
    """Return a function whose mask does not change from call to call, and an input for it."""

    def call(x):
        torch.manual_seed(4)
        return dropout(x, p)

    return call, torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_gradcheck():
    call, x = seeded(0.4, (3, 7))
    assert torch.autograd.gradcheck(call, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: call(x).square(), x)


def test_transforms_and_dual_numbers():
    call, x = seeded(0.4, (3, 7))
    tangent = torch.randn(3, 7, dtype=torch.float64)
    mask = torch.autograd.grad(call(x).sum(), x)[0]
    assert torch.func.vmap(lambda x: dropout(x, 0.4), randomness="different")(x).shape == (3, 7)
    out, dout = torch.func.jvp(call, (x.detach(),), (tangent,))
    torch.manual_seed(4)
    expected = F.dropout(x, 0.4)  # under a transform, torch's function runs with torch's mask
    torch.testing.assert_close(out, expected)
    assert torch.equal(dout == 0, out == 0)
    jacobian = torch.autograd.functional.jacobian(call, x, vectorize=True)
    torch.testing.assert_close(jacobian.sum((0, 1)), mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    for x in (torch.randn(3, 7), torch.randn(7, 3).mT, torch.randn(())):
        arguments = (x.to(dtype), torch.tensor(5), 0.3)
        torch.library.opcheck(torch.ops.rnnfast.dropout.default, arguments)


def test_wrong_calls_of_the_operator():
    with pytest.raises(RuntimeError, match=r"input must be .*, got torch\.int64"):
        operator(torch.ones(3, dtype=torch.int64), 0.5)
    with pytest.raises(RuntimeError, match=r"seed must be torch\.int64"):
        torch.ops.rnnfast.dropout(torch.ones(3), torch.tensor(1.0), 0.5)
    with pytest.raises(ValueError, match="p must be in"):
        operator(torch.ones(3), 1.5)


def test_compile():
    counter = CompileCounter()
    torch.compiler.reset()
    torch.compile(lambda x: dropout(x, 0.5) * 2, fullgraph=True, backend=counter)(torch.ones(7))
    assert counter.frame_count == 1
    compiled = torch.compile(dropout, fullgraph=True, backend="aot_eager")
    x = torch.randn(33, 65, requires_grad=True)
    out = compiled(x, 0.25)
    (dx,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert torch.equal(dx == 0, out == 0)
    assert 0.1 < (out == 0).double().mean() < 0.4
    torch.compiler.reset()


def test_module():
    module = Dropout(0.25)
    assert str(module) == "Dropout(p=0.25, inplace=False)"
    x = torch.ones(33, 65)
    torch.manual_seed(1)
    out = module(x)
    torch.manual_seed(1)
    assert torch.equal(out, dropout(x, 0.25))
    assert module.eval()(x) is x


def test_weight_dropout_and_language_models_use_it(monkeypatch):
    calls = []

    def count(x, p, training=True):
        calls.append((tuple(x.shape), p, training))
        return dropout(x, p, training)

    monkeypatch.setattr("rnnfast.functional.dropout", count)
    FastRNN(3, 4, weight_dropout=0.5)(torch.ones(2, 1, 3))
    assert calls == [((4, 4), 0.5, True)]
    vocab = lm.Vocabulary.build("word", ["a b c"])
    model = lm.RNNLM(vocab, 3, 4, dropout=0.25)
    model.features(torch.zeros(5, 2, dtype=torch.int64))
    assert calls[1:] == [((5, 2, 3), 0.25, True), ((5, 2, 4), 0.25, True)]
    calls.clear()
    model.eval().features(torch.zeros(5, 2, dtype=torch.int64))
    assert all(not training for *_, training in calls)
