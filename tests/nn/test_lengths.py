"""Padded batches with sequences that have no time steps, such as empty documents."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from rnnfast import FastGRU, FastLSTM, FastRNN, LeakyRNN

CLASSES = {nn.RNN: FastRNN, nn.GRU: FastGRU, nn.LSTM: FastLSTM}
OPTIONS = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
L, H = 4, 4  # L counts the layers of both directions


def pair(cls=nn.RNN, **options):
    """Return a module of torch and ours with the same weights."""
    modules = []
    for kind in (cls, CLASSES[cls]):
        torch.manual_seed(0)
        modules.append(kind(3, H, **OPTIONS, **options))
    return modules


def one_by_one(module, x, hx, lengths):
    """Return what torch's module computes for each sequence alone, as a padded batch."""
    output, final = torch.zeros(*x.shape[:2], 2 * H, dtype=x.dtype), tree_map(torch.clone, hx)
    for b, length in enumerate(lengths):
        if length:
            alone, last = module(x[:length, b], tree_map(lambda t, b=b: t[:, b], hx))
            output[:length, b] = alone
            for whole, part in zip(tree_leaves(final), tree_leaves(last), strict=True):
                whole[:, b] = part
    return output, final


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [[3, 0, 5], [0, 4, 0], [0, 1, 1], [0, 0, 0]], ids=str)
def test_sequences_without_steps(lengths, batch_first, with_hx, cls):
    """Their outputs are zeros, they keep their initial state, and they have no gradients."""
    theirs, ours = pair(cls)
    ours.batch_first = batch_first
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    for b, length in enumerate(lengths):
        x[length:, b] = torch.nan  # the padding has no influence
    states = [torch.randn(L, 3, H, dtype=torch.float64) * with_hx for _ in range(2)]
    x.requires_grad_(), [state.requires_grad_() for state in states]
    states = states if cls is nn.LSTM else states[:1]
    hx = tuple(states) if cls is nn.LSTM else states[0]

    expected = one_by_one(theirs, x, hx, lengths)
    layout = x.transpose(0, 1) if batch_first else x
    output, h_n = ours(layout, hx if with_hx else None, lengths=torch.tensor(lengths))
    found = output.transpose(0, 1) if batch_first else output, h_n
    assert output.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    gradients = []
    for module, outputs in ((theirs, expected), (ours, found)):
        wanted = [x, *module.parameters()] + states * with_hx
        # The second term makes torch's module depend on what no sequence uses.
        loss = sum(t.square().sum() for t in tree_leaves(outputs)) + 0 * sum(
            t.sum() for t in wanted
        )
        gradients.append(torch.autograd.grad(loss, wanted))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_without_steps(batch_first):
    """The longest document of a batch may be empty too."""
    module = FastRNN(3, H, batch_first=batch_first, **OPTIONS)
    x = torch.randn(*((2, 0) if batch_first else (0, 2)), 3, dtype=torch.float64)
    hx = torch.randn(L, 2, H, dtype=torch.float64, requires_grad=True)
    output, h_n = module(x, hx, lengths=[0, 0])
    assert output.shape == (*x.shape[:2], 2 * H)
    assert torch.equal(h_n, hx) and h_n is not hx
    weights = list(module.parameters())
    *of_weights, of_hx = torch.autograd.grad(output.sum() + h_n.sum(), [*weights, hx])
    assert torch.equal(of_hx, torch.ones_like(hx))
    assert not any(gradient.any() for gradient in of_weights)


@pytest.mark.parametrize("gradients", [True, False])
def test_empty_sequences_of_tokens(gradients):
    theirs, ours = pair()
    tokens, lengths = torch.randint(3, (5, 3)), [3, 0, 5]
    hx = torch.randn(L, 3, H, dtype=torch.float64)
    vectors = nn.functional.one_hot(tokens).double()
    with torch.set_grad_enabled(gradients):
        expected = one_by_one(theirs, vectors, hx, lengths)
        found = ours(tokens, hx, lengths=lengths)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_empty_sequences_with_zoneout_and_autocast():
    module = FastRNN(3, H, zoneout=0.5).eval()
    x, hx = torch.randn(5, 3, 3), torch.randn(1, 3, H)
    expected, expected_h_n = module(x[:, [0, 2]], hx[:, [0, 2]], lengths=[3, 5])
    output, h_n = module(x, hx, lengths=[3, 0, 5])
    assert torch.equal(output[:, [0, 2]], expected) and not output[:, 1].any()
    assert torch.equal(h_n[:, [0, 2]], expected_h_n) and torch.equal(h_n[:, 1], hx[:, 1])
    with torch.autocast("cpu", torch.bfloat16):
        output, h_n = module(x, hx, lengths=[3, 0, 5])
    assert output.dtype is h_n.dtype is torch.bfloat16
    assert torch.equal(h_n[:, 1], hx[:, 1].bfloat16())


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_of_any_dtype(dtype):
    theirs, ours = pair()
    x, hx, lengths = torch.randn(5, 3, 3).double(), torch.randn(L, 3, H).double(), [3, 1, 5]
    found = ours(x, hx, lengths=torch.tensor(lengths, dtype=dtype))
    torch.testing.assert_close(found, one_by_one(theirs, x, hx, lengths), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_integers_of_numpy(dtype):
    theirs, ours = pair()
    x, hx, lengths = torch.randn(5, 3, 3).double(), torch.randn(L, 3, H).double(), [3, 1, 5]
    expected = one_by_one(theirs, x, hx, lengths)
    for argument in (np.array(lengths, dtype), list(np.array(lengths, dtype))):
        found = ours(x, hx, lengths=argument)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_what_is_no_integer_is_refused(dtype):
    with pytest.raises(ValueError, match=rf"lengths must be integers \(3,\), got {dtype}"):
        FastRNN(3, 4)(torch.randn(5, 3, 3), lengths=torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("lengths", ["ab", [None, 1, 1], [[1], [1, 2], [1]]], ids=str)
def test_lengths_that_are_no_numbers(lengths):
    with pytest.raises(ValueError, match=r"lengths must be integers \(B,\), got ['\[]"):
        FastRNN(3, H)(torch.zeros(5, 3, 3), lengths=lengths)


@pytest.mark.parametrize("cls", [FastRNN, FastLSTM, LeakyRNN])
def test_lengths_without_values(cls):
    lengths = torch.ones(3, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"lengths must have values, got .* on the device meta"):
        cls(3, H)(torch.zeros(5, 3, 3), lengths=lengths)
