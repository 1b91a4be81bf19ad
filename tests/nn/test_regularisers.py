"""Regularisers that ``nn.RNN`` does not have: variational dropout, DropConnect and zoneout."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import FastRNN, functional

EACH = ["variational_dropout", "weight_dropout", "zoneout"]


def sequences(lengths, features, device="cpu"):
    """Return a padded batch (T, B, I) and the same batch packed."""
    padded = torch.randn(max(lengths), len(lengths), features, device=device)
    return padded, pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False)


@pytest.mark.parametrize("name", EACH)
def test_off_by_default_and_in_the_name(name):
    assert getattr(FastRNN(3, 4), name) == 0
    assert name not in repr(FastRNN(3, 4))
    assert f"{name}=0.5" in repr(FastRNN(3, 4, 2, **{name: 0.5}))


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan"), True, "a", None])
@pytest.mark.parametrize("name", EACH)
def test_wrong_probability(name, wrong):
    with pytest.raises(ValueError, match=name):
        FastRNN(3, 4, 2, **{name: wrong})


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("T", [1, 6])
def test_seed_decides(device, name, T):
    ours = FastRNN(3, 40, 2, bidirectional=True, **{name: 0.5}).to(device)
    x, hx = torch.randn(T, 5, 3, device=device), torch.randn(4, 5, 40, device=device)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(ours(x, hx)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", EACH)
def test_evaluation_has_no_chance_in_it(device, name):
    ours = FastRNN(3, 4, 2, **{name: 0.5}).to(device).eval()
    x = torch.randn(6, 5, 3, device=device)
    assert torch.equal(ours(x)[0], ours(x)[0])
    plain = FastRNN(3, 4, 2).to(device)
    plain.load_state_dict(ours.state_dict())
    assert torch.allclose(ours(x)[0], plain(x)[0]) == (name != "zoneout")


@pytest.mark.parametrize("name", EACH)
def test_copies_keep_them(name):
    assert getattr(copy.deepcopy(FastRNN(3, 4, 2, **{name: 0.5})), name) == 0.5
    assert getattr(rnnfast.accelerate(nn.RNN(3, 4, 2)), name) == 0


# Variational dropout


def copying(p, H=30, **options):
    """Return two layers that copy positive inputs, so that the output shows the mask."""
    ours = FastRNN(H, H, 2, "relu", bias=False, variational_dropout=p, **options)
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            weight.copy_(torch.eye(H) * name.startswith("weight_ih"))
    return ours


@pytest.mark.parametrize("batch_first", [False, True])
def test_variational_dropout_is_one_mask_for_all_steps(device, batch_first):
    H, p = 30, 0.3
    ours = copying(p, H, batch_first=batch_first).to(device)
    torch.manual_seed(0)
    output, _ = ours(torch.ones(*((40, 7) if batch_first else (7, 40)), H, device=device))
    output = output.transpose(0, 1) if batch_first else output
    assert torch.equal(output, output[:1].expand_as(output))
    mask = output[0]
    kept = mask[mask != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
    share = (mask == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / mask.numel()) ** 0.5
    assert not torch.equal(mask[0], mask[1]), "each sequence has its own mask"


def test_variational_dropout_of_packed_sequences(device):
    """Every sequence has its own mask, in whichever rows packing has put it."""
    ours = copying(0.5).to(device)
    lengths = [3, 9, 1, 5]
    _, packed = sequences(lengths, 30, device)
    ones = PackedSequence(torch.ones_like(packed.data), *packed[1:])
    output, _ = pad_packed_sequence(ours(ones)[0])
    masks = []
    for b, length in enumerate(lengths):
        own = output[:length, b]
        assert torch.equal(own, own[:1].expand_as(own))
        masks.append(own[0])
    assert not torch.equal(masks[0], masks[1])


def test_variational_dropout_of_packed_sequences_under_a_default_device():
    """batch_sizes stays on the CPU although new tensors are made on the default device."""
    _, packed = sequences([4, 2], 3, "meta")
    with torch.device("meta"):
        module = FastRNN(3, 4, 2, variational_dropout=0.5)
        assert module(packed)[0].data.shape == (6, 4)


# Recurrent weight dropout


@pytest.mark.parametrize("bidirectional", [False, True])
def test_weight_dropout_masks_weight_hh_alone(device, bidirectional):
    torch.manual_seed(0)
    p, options = 0.5, {"num_layers": 2, "bidirectional": bidirectional}
    ours = FastRNN(3, 4, weight_dropout=p, **options).to(device)
    theirs = nn.RNN(3, 4, **options).to(device)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 5, 3, device=device)
    torch.manual_seed(3)
    output, h_n = ours(x)
    found = torch.autograd.grad(output.square().sum() + h_n.sum(), list(ours.parameters()))
    torch.manual_seed(3)
    weights = {
        name: functional.dropout(weight, p) if name.startswith("weight_hh") else weight
        for name, weight in theirs.named_parameters()
    }
    expected, expected_h_n = torch.func.functional_call(theirs, weights, (x,))
    loss = expected.square().sum() + expected_h_n.sum()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, torch.autograd.grad(loss, list(theirs.parameters())))


# Zoneout


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_zoneout_in_eval_is_a_leaky_unit(alpha):
    """The states are those of a loop over nn.RNNCell, (1 - alpha) h + alpha f(...)."""
    module = FastRNN(3, 4, zoneout=1 - alpha, dtype=torch.float64).eval()
    cell = nn.RNNCell(3, 4, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in module.named_parameters()})
    x, h = torch.randn(7, 2, 3, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    states = []
    for step in x:
        h = (1 - alpha) * h + alpha * cell(step, h)
        states.append(h)
    output, h_n = module(x)
    torch.testing.assert_close((output, h_n), (torch.stack(states), h[None]))
    gradients = [
        torch.autograd.grad(states.square().sum(), list(weights.parameters()))
        for states, weights in ((output, module), (torch.stack(states), cell))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_zoneout_expectation(device, nonlinearity):
    """In ``eval()`` both directions follow the equations, here in NumPy."""
    p, T, B, inputs, H = 0.3, 7, 3, 5, 4
    ours = FastRNN(inputs, H, nonlinearity=nonlinearity, bidirectional=True, zoneout=p).double()
    ours.to(device).eval()
    x = torch.randn(T, B, inputs, device=device, dtype=torch.float64)
    h0 = torch.randn(2, B, H, device=device, dtype=torch.float64)
    output, h_n = ours(x, h0)
    f = np.tanh if nonlinearity == "tanh" else lambda a: np.maximum(a, 0)
    weights = [w.detach().cpu().numpy() for w in ours.parameters()]
    for d, order in enumerate((range(T), reversed(range(T)))):
        w_ih, w_hh, b_ih, b_hh = weights[4 * d : 4 * d + 4]
        h = h0[d].cpu().numpy()
        for t in order:
            h = p * h + (1 - p) * f(x[t].cpu().numpy() @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
            np.testing.assert_allclose(
                output[t, :, d * H : (d + 1) * H].detach().cpu().numpy(), h, rtol=1e-12, atol=1e-14
            )
        np.testing.assert_allclose(h_n[d].detach().cpu().numpy(), h, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch_first", [False, True])
def test_zoneout_keeps_or_replaces_each_unit(device, batch_first):
    p, T, B, H = 0.3, 20, 10, 30
    ours = FastRNN(5, H, batch_first=batch_first, zoneout=p).double().to(device)
    x = torch.randn(T, B, 5, device=device, dtype=torch.float64)
    h0 = torch.randn(1, B, H, device=device, dtype=torch.float64)
    output, h_n = ours(x.transpose(0, 1) if batch_first else x, h0)
    output = output.transpose(0, 1) if batch_first else output
    before = torch.cat([h0, output[:-1]])
    new = torch.tanh(
        F.linear(x, ours.weight_ih_l0, ours.bias_ih_l0)
        + F.linear(before, ours.weight_hh_l0, ours.bias_hh_l0)
    )
    kept = output == before
    torch.testing.assert_close(output, torch.where(kept, before, new), rtol=1e-12, atol=1e-13)
    share = kept.double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert torch.equal(h_n[0], output[-1])


@pytest.mark.parametrize("one_hot", [False, True])
def test_zoneout_of_almost_nothing_is_a_plain_rnn(device, one_hot):
    """The loop over steps agrees with the kernels for layers, directions and packed sequences."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, "device": device}
    ours, plain = FastRNN(5, 6, zoneout=1e-300, **options), FastRNN(5, 6, **options)
    plain.load_state_dict(ours.state_dict())
    _, packed = sequences([3, 9, 1, 5], 5, device)
    data = packed.data.double()
    data = data.argmax(-1) if one_hot else data
    packed = PackedSequence(data, *packed[1:])
    results = []
    for module in (ours, plain):
        output, h_n = module(packed)
        loss = output.data.square().sum() + h_n.sum()
        results.append([output.data, h_n, *torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_zoneout_gradients():
    ours = FastRNN(3, 4, 2, zoneout=0.4, dtype=torch.float64)
    names = [name for name, _ in ours.named_parameters()]

    def call(x, hx, *weights):
        torch.manual_seed(0)
        return torch.func.functional_call(ours, dict(zip(names, weights, strict=True)), (x, hx))

    x, hx = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 2, 3), (2, 2, 4))
    )
    weights = [w.detach().requires_grad_() for w in ours.parameters()]
    assert torch.autograd.gradcheck(call, (x, hx, *weights), fast_mode=True)


def test_all_of_them_train():
    torch.manual_seed(0)
    ours = FastRNN(3, 16, 2, dropout=0.1, variational_dropout=0.1, weight_dropout=0.1, zoneout=0.1)
    x = torch.randn(8, 32, 3)
    target = x.cumsum(0).sum(-1, keepdim=True).tanh()
    head = nn.Linear(16, 1)
    optimiser = torch.optim.Adam([*ours.parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.mse_loss(head(ours(x)[0]), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
