"""The method `stepper` of FastRNN, FastGRU and FastLSTM, which gets one time step at a time."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import rnnfast
from rnnfast import FastGRU, FastLSTM, FastRNN

SIZES = [(1, 16, 128, 1), (3, 5, 7, 3), (2, 3, 17, 2), (9, 1, 65, 2), (1, 1, 33, 1)]
CELLS = {
    "tanh": FastRNN,
    "relu": partial(FastRNN, nonlinearity="relu"),
    "gru": FastGRU,
    "lstm": FastLSTM,
}
classes = pytest.mark.parametrize("cls", (FastRNN, FastGRU, FastLSTM))


def random_state(module, B):
    """Return a state, which is a tensor, or a pair of them for an LSTM."""
    shape, dtype = (module.num_layers, B, module.hidden_size), module.weight_hh_l0.dtype
    states = [torch.randn(shape, dtype=dtype) for _ in range(2)]
    return tuple(states) if isinstance(module, FastLSTM) else states[0]


def equal(a, b):
    return all(map(torch.equal, tree_leaves(a), tree_leaves(b)))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("B", "inputs", "H", "layers"), SIZES)
def test_steps(B, inputs, H, layers, cell, dtype, isa):
    torch.manual_seed(0)
    module = CELLS[cell](inputs, H, layers, bias=B != 3, dtype=dtype)
    x, hx = torch.randn(6, B, inputs, dtype=dtype), random_state(module, B)
    with torch.no_grad():
        expected, h_n = module(x, hx)
    stepper = module.stepper(B)
    stepper.state = hx
    assert equal(stepper.state, hx)
    # The sums have another order. A step rounds once more in 16 bits.
    close = {"rtol": 0, "atol": 64 * torch.finfo(dtype).eps}
    for step, output in zip(x, expected, strict=True):
        torch.testing.assert_close(stepper.step(step), output, **close)
    torch.testing.assert_close(stepper.state, h_n, **close)


@classes
def test_threads_do_not_change_a_bit(cls, num_threads):
    module, x = cls(300, 700, 2), torch.randn(4, 2, 300)
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        stepper = module.stepper(2)
        results.append([stepper.step(step).clone() for step in x])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_layouts():
    module, x = FastRNN(4, 5), torch.randn(2, 6)
    single, batch = module.stepper(), module.stepper(2)
    output = batch.step(x[:, 1:5])
    assert output.data_ptr() == batch.step(x[:, ::2].repeat(1, 2)[:, :4]).data_ptr()
    batch.reset()
    for _ in range(3):
        torch.testing.assert_close(single.step(x[1, 1:5]), batch.step(x[:, 1:5])[1])
    assert single.step(x[:1, :4]).shape == (1, 5)
    assert not single.step(x[0, :4]).requires_grad


MASK = [False, True, False]


@classes
@pytest.mark.parametrize(
    "rows", ([1], torch.tensor([1]), MASK, np.array(MASK), torch.tensor(MASK), np.array([1]))
)
def test_reset_of_rows(rows, cls):
    module, x = cls(4, 5, 2), torch.randn(2, 3, 4)
    stepper = module.stepper(3)
    stepper.step(x[0])
    before = stepper.state
    stepper.reset(rows)
    for part in tree_leaves(before):
        part[:, 1] = 0
    assert equal(stepper.state, before)
    mask = torch.tensor([[False, False, False], [False, True, False]])
    torch.testing.assert_close(stepper.step(x[1]), module(x, reset=mask)[0][1])
    stepper.reset()
    assert not any(part.any() for part in tree_leaves(stepper.state))


@classes
def test_changed_weights(cls):
    module, x = cls(4, 5), torch.randn(3, 1, 4)
    stepper = module.stepper()
    stepper.step(x[0])
    state = stepper.state
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    expected, h_n = module(x[1:2], state)
    torch.testing.assert_close(stepper.step(x[1]), expected[0])
    module.weight_hh_l0 = torch.nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    stepper.refresh()
    torch.testing.assert_close(stepper.step(x[2]), module(x[2:], h_n)[0][0])


@classes
def test_changed_dtype_and_memory(cls):
    module, x = cls(4, 5), torch.randn(3, 1, 4)
    stepper = module.stepper()
    stepper.step(x[0])
    state = stepper.state
    module.double()
    output = stepper.step(x[1].double())
    state = tree_map(torch.Tensor.double, state)
    torch.testing.assert_close(output, module(x[1:2].double(), state)[0][0])
    output = output.clone()
    module.to("meta")
    with pytest.raises(RuntimeError, match=r"on the CPU, got torch\.float64 on meta"):
        stepper.refresh()
    assert torch.equal(tree_leaves(stepper.state)[0][0], output)


@classes
def test_weights_of_a_parametrization(cls):
    module, x = cls(4, 5), torch.randn(2, 4)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    stepper = module.stepper(2)
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(3)
    state = random_state(module, 2)
    stepper.state = state
    torch.testing.assert_close(stepper.step(x), module(x.unsqueeze(0), state)[0][0])


def test_gradients_of_a_head_that_reads_the_output():
    stepper, head = FastRNN(4, 5).stepper(2), torch.nn.Linear(5, 1)
    loss = sum(head(stepper.step(x)).sum() for x in torch.randn(3, 2, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    x = torch.randn(2, 4)
    head(stepper.step(x).clone()).sum().backward()


def test_inference_mode():
    with torch.inference_mode():
        module = FastRNN(4, 5)
        stepper = module.stepper()
    x = torch.randn(1, 4)
    torch.testing.assert_close(stepper.step(x), module(x.unsqueeze(1))[0][:, 0].clone())
    torch.nn.Linear(5, 1)(stepper.step(x)).sum().backward()


@classes
def test_copies(cls):
    stepper, x = cls(4, 5).stepper(), torch.randn(1, 4)
    stepper.step(x)
    state = stepper.state
    for other in (
        copy.copy(stepper),
        copy.deepcopy(stepper),
        pickle.loads(pickle.dumps(stepper)),
    ):
        assert equal(other.state, state)
        other.step(x)
        assert equal(stepper.state, state) and not equal(other.state, state)


def test_default_device():
    with torch.device("meta"):
        stepper = FastRNN(4, 5, device="cpu").stepper()
        stepper.reset()
    stepper.step(torch.zeros(1, 4))


def test_strides_and_negated_views():
    module = FastRNN(4, 5)
    x = torch.randn(4, 2)
    expected = module.stepper(2).step(x.t().contiguous()).clone()
    assert torch.equal(module.stepper(2).step(x.t()), expected)
    assert torch.equal(module.stepper(2).step(torch._neg_view(-x.t())), expected)


@pytest.mark.parametrize("cls", (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM))
def test_after_accelerate(cls):
    module = rnnfast.accelerate(cls(4, 5))
    x = torch.randn(1, 4)
    torch.testing.assert_close(module.stepper().step(x), module(x.unsqueeze(1))[0][:, 0])


def test_errors():
    module = FastRNN(4, 5)
    for size in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got"):
            module.stepper(size)
    with pytest.raises(ValueError, match="bidirectional RNN has no stepper"):
        FastRNN(4, 5, bidirectional=True).stepper()
    with pytest.raises(ValueError, match="bidirectional LSTM has no stepper"):
        FastLSTM(4, 5, bidirectional=True).stepper()
    with pytest.raises(ValueError, match=r"proj_size must be 0 for a stepper, because .*, got 2"):
        FastLSTM(4, 5, proj_size=2).stepper()
    for cls in (FastRNN, FastGRU, FastLSTM):
        with pytest.raises(ValueError, match=r"zoneout must be 0 for a stepper, got 0\.1"):
            cls(4, 5, zoneout=0.1).stepper()
    with pytest.raises(RuntimeError, match=r"needs weights of .* on the CPU, got .* on meta"):
        FastRNN(4, 5, device="meta").stepper()
    stepper = module.stepper(2)
    wrong = (torch.zeros(4), torch.zeros(1, 4), torch.zeros(2, 5), torch.zeros(2, 4).double())
    for x in wrong:
        with pytest.raises(RuntimeError, match=r"input must be torch.float32 \(2, 4\)"):
            stepper.step(x)
    with pytest.raises(RuntimeError, match=r"state must be torch.float32 \(1, 2, 5\)"):
        stepper.state = torch.zeros(2, 5)
    for row in (-1, 2):
        with pytest.raises(IndexError, match=rf"rows must be in \[0, 2\), got {row}"):
            stepper.reset([0, row])
    for rows in ([True] * 3, 1, [[1]], [0.5], torch.ones(2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="rows must be a list of numbers or 2 bools, got"):
            stepper.reset(rows)
    with pytest.raises(TypeError, match="input must be a tensor, got list"):
        stepper.step([[1.0] * 4] * 2)
    with pytest.raises(TypeError, match="state must be a tensor, got list"):
        stepper.state = []
    stepper, state = FastLSTM(4, 5).stepper(2), torch.zeros(1, 2, 5)
    for wrong in (state, [state], (state,) * 3):
        with pytest.raises(TypeError, match=r"state must be a pair of tensors \(h, c\), got"):
            stepper.state = wrong
    with pytest.raises(TypeError, match="state must be a tensor, got NoneType"):
        stepper.state = (state, None)
    with pytest.raises(RuntimeError, match=r"state must be torch.float32 \(1, 2, 5\)"):
        stepper.state = (state, state[0])
    hooked = FastRNN(4, 5)
    hooked.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match="does not run the forward pre-hooks"):
        hooked.stepper()
