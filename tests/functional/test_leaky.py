"""The kernels of leaky units, held to the rule of tests/leaky_rule.py."""

import leaky_rule
import numpy as np
import pytest
import torch
from leaky_rule import KINDS, Case, run
from leaky_rule import check_case as check

import rnnfast
from rnnfast import _ops
from rnnfast.functional import leaky_rnn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("state", "nonlinearity"), KINDS)
def test_rule(state, nonlinearity, dtype, isa):
    kind = {"state": state, "nonlinearity": nonlinearity, "dtype": dtype}
    check(Case(9, 5, 3, 65, **kind))
    check(Case(7, 3, 4, 7, with_reset=True, **kind))
    check(Case(1, 7, 3, 1, bias=False, with_hx=False, with_xi=False, **kind))
    check(Case(33, 1, 2, 33, with_hx=False, with_reset=True, **kind))


# With ReLU a rounding of the state may change the mask of the gradient, so that two correct results
# differ by whole elements. Softplus has no such point.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("state", "nonlinearity"), [k for k in KINDS if k[1] != "relu"])
def test_16_bits(state, nonlinearity, dtype, isa):
    kind = {"state": state, "nonlinearity": nonlinearity, "dtype": dtype}
    check(Case(6, 5, 3, 65, **kind))
    check(Case(9, 7, 4, 33, with_reset=True, with_hx=False, **kind))


@pytest.mark.parametrize("state", ["rate", "current"])
def test_long_and_wide(state):
    """Several blocks of steps, several threads and groups of threads."""
    check(Case(300, 17, 5, 65, state=state, with_reset=True))
    check(Case(40, 2, 3, 257, state=state, nonlinearity="softplus"))


@pytest.mark.parametrize(("state", "nonlinearity"), KINDS)
def test_gradcheck(state, nonlinearity):
    case = Case(4, 3, 2, 5, state, nonlinearity, with_reset=True, dtype=torch.float64)
    tensors, reset, _ = leaky_rule.make(case)
    names = list(tensors)

    def call(*values):
        outputs = run(dict(zip(names, values, strict=True)), reset, case)
        return outputs if state == "current" else outputs[:2]

    values = tuple(tensors.values())
    assert torch.autograd.gradcheck(call, values)
    assert torch.autograd.gradgradcheck(call, values)


@pytest.mark.parametrize("dtype", _ops.cpu.DTYPES, ids=str)
def test_without_leak_it_is_the_rnn(dtype):
    """With alpha = 1 and no noise, outputs and gradients equal those of `rnn` bit for bit."""
    case = Case(12, 5, 3, 33, with_xi=False, dtype=dtype)
    tensors, reset, gradients = leaky_rule.make(case)
    tensors["alpha"] = torch.ones_like(tensors["alpha"])
    del gradients
    names = ("w_ih", "w_hh", "b")
    wanted = [tensors[name] for name in ("input", "hx", *names)]
    output, h_n, _ = run(tensors, reset, case)
    dy, dh_n = torch.randn_like(output), torch.randn_like(h_n)
    ours = torch.autograd.grad((output, h_n), wanted, (dy, dh_n))
    weights = [*(tensors[name] for name in names), torch.zeros_like(tensors["b"])]
    expected, h = rnnfast.functional.rnn(tensors["input"], tensors["hx"].unsqueeze(0), weights)
    theirs = torch.autograd.grad((expected, h[0]), wanted, (dy, dh_n))
    assert torch.equal(output, expected)
    assert torch.equal(h_n, h[0])
    if dtype in (torch.float32, torch.float64):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("state", ["rate", "current"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_layouts_and_tokens(state, batch_first):
    T, B, V, H, L = 6, 4, 5, 9, 3
    torch.manual_seed(0)
    tokens = torch.randint(V, (B, T) if batch_first else (T, B))
    weights = [torch.randn(H, n) / 3 for layer in range(L) for n in (H if layer else V, H)]
    alpha, hx = torch.rand(L, H) * 0.9 + 0.1, torch.randn(L, B, H)
    options = {"state": state, "batch_first": batch_first}
    reset = torch.rand(tokens.shape) < 0.2
    output, h_n, states = leaky_rnn(tokens, hx, weights, alpha, reset=reset, **options)
    x = torch.nn.functional.one_hot(tokens, V).float()
    if batch_first:
        x, reset = x.transpose(0, 1), reset.T
    final = []
    for layer in range(L):
        case = Case(T, B, V, H, state, "relu", with_xi=False)
        names = {"input": x, "hx": hx[layer], "alpha": alpha[layer]}
        names |= dict(zip(("w_ih", "w_hh"), weights[2 * layer : 2 * layer + 2], strict=True))
        x, last, expected = leaky_rule.loop(names, reset, case, 0.0)
        final.append(last)
    if batch_first:
        x, expected = x.transpose(0, 1), expected.transpose(0, 1)
    torch.testing.assert_close(output, x)
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(h_n, torch.stack(final))
    assert output.is_contiguous()


def numbers(seed, rows, N):
    """The definition in csrc/api/leaky.h, in plain NumPy."""
    blocks = -(-N // 32)
    outputs = np.arange(1, rows * blocks * 16 + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + outputs * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    words = z.view(np.uint32).reshape(rows, blocks, 2, 16)  # the lower half comes first
    u = ((words[:, :, 0] >> 8) + 1.0) / 2**24
    v = words[:, :, 1].astype(np.int32) / 2.0**32
    radius = np.sqrt(-2 * np.log(u))
    pairs = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], 2)
    return pairs.reshape(rows, blocks * 32)[:, :N]


@pytest.mark.parametrize("dtype", _ops.cpu.DTYPES, ids=str)
def test_normal(dtype, isa):
    like = torch.empty(0, dtype=dtype)
    for rows, N, seed in ((1, 1, 0), (3, 7, 5), (4, 33, 2**63 - 1), (50, 100, 12345)):
        ours = _ops.normal(torch.tensor(seed), like, rows, N).double().numpy()
        expected = numbers(seed, rows, N)
        tolerance = 1e-13 if dtype is torch.float64 else 8 * torch.finfo(dtype).eps
        np.testing.assert_allclose(ours, expected, atol=tolerance * 6, rtol=tolerance)


def test_normal_is_normal():
    x = _ops.normal(torch.tensor(1), torch.empty(0, dtype=torch.float64), 2000, 500)
    assert abs(x.mean()) < 4e-3
    assert abs(x.std() - 1) < 3e-3
    assert abs((x**4).mean() - 3) < 0.05
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 4e-3
    assert abs((x[:, 16:] * x[:, :-16]).mean()) < 4e-3
    assert abs((x[1:] * x[:-1]).mean()) < 4e-3
    # The largest of a million numbers, and the share of those beyond two standard deviations.
    assert 4.2 < x.abs().max() < 6
    assert abs((x.abs() > 2).double().mean() - 0.0455) < 2e-3


@pytest.mark.parametrize("state", ["rate", "current"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_drawn_noise(state, batch_first):
    """The kernel adds the numbers that `normal` gives, on any number of threads."""
    T, B, inputs, H = 20, 13, 3, 70
    torch.manual_seed(0)
    x = torch.randn((B, T, inputs) if batch_first else (T, B, inputs))
    w_ih, w_hh = (torch.randn(H, n).div(n).requires_grad_() for n in (inputs, H))
    alpha = torch.rand(H) * 0.9 + 0.1
    options = {"state": state, "noise": 0.2, "batch_first": batch_first}

    def call(**more):
        torch.manual_seed(7)
        output, _, _ = leaky_rnn(x, None, [w_ih, w_hh], alpha, **options, **more)
        return output, *torch.autograd.grad(output.square().sum(), (w_ih, w_hh))

    drawn = call()
    torch.manual_seed(7)
    seed = torch.randint(torch.iinfo(torch.int64).max, ())
    xi = _ops.normal(seed, x, T * B, H).view(T, B, H)
    given = call(xi=xi.transpose(0, 1) if batch_first else xi)
    torch.testing.assert_close(drawn, given)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - threads if threads < 3 else 1)
        assert all(map(torch.equal, drawn, call()))
    finally:
        torch.set_num_threads(threads)


def test_double_backward_draws_the_same_noise():
    torch.manual_seed(0)
    weights = [torch.randn(4, n, dtype=torch.float64).div(2).requires_grad_() for n in (3, 4)]
    x, alpha = torch.randn(5, 2, 3, dtype=torch.float64), torch.full((4,), 0.3).double()

    def call(*weights):
        torch.manual_seed(3)
        return leaky_rnn(x, None, weights, alpha, noise=0.5, nonlinearity="tanh")[0]

    assert torch.autograd.gradgradcheck(call, weights)


def test_packed():
    T, inputs, H, lengths = 7, 3, 9, torch.tensor([7, 4, 4, 1])
    torch.manual_seed(0)
    x, weights = torch.randn(T, 4, inputs), [torch.randn(H, n) / 3 for n in (inputs, H)]
    alpha, hx = torch.rand(H) * 0.9 + 0.1, torch.randn(1, 4, H)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    for state in ("rate", "current"):
        output, h_n, _ = leaky_rnn(
            packed.data, hx, weights, alpha, state=state, batch_sizes=packed.batch_sizes
        )
        output = torch.nn.utils.rnn.PackedSequence(output, packed.batch_sizes)
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
        for b, length in enumerate(lengths):
            alone, last, _ = leaky_rnn(
                x[:length, b : b + 1], hx[:, b : b + 1], weights, alpha, state=state
            )
            torch.testing.assert_close(output[:length, b], alone[:, 0])
            torch.testing.assert_close(h_n[:, b], last[:, 0])


def test_wrong_arguments():
    x, w, alpha = torch.randn(5, 3, 2), [torch.randn(4, 2), torch.randn(4, 4)], torch.ones(4)
    for arguments, options, error, message in (
        ((x, None, w, alpha), {"state": "s"}, ValueError, "state must be"),
        ((x, None, w, alpha), {"nonlinearity": "elu"}, ValueError, "nonlinearity must be one of"),
        ((x, None, w, alpha), {"noise": -1.0}, ValueError, "noise must be at least 0"),
        ((x, None, w, alpha), {"xi": torch.randn(5, 3, 4)}, ValueError, "xi must not be given"),
        ((x, None, w[:1], alpha), {}, ValueError, "weights must hold 2 or 3 tensors"),
        ((x, None, w, alpha[:3]), {}, RuntimeError, r"alpha must be \(4,\)"),
        ((x, torch.zeros(1, 2, 4), w, alpha), {}, RuntimeError, r"hx must be \(1, 3, 4\)"),
        ((x, None, w, alpha), {"noise": 1.0, "xi": x}, RuntimeError, "xi must be"),
        ((x.double(), None, w, alpha), {}, RuntimeError, "input must be torch.float32"),
        ((x, None, w, 1.0), {}, TypeError, "alpha must be a tensor"),
        ((x[:0], None, w, alpha), {}, RuntimeError, "at least one time step"),
        ((x[:, 0], None, w, alpha), {}, RuntimeError, "input must be"),
        ((x, None, w, alpha), {"reset": torch.zeros(5, 3)}, ValueError, "reset must be bool"),
        ((torch.full((5, 3), 2), None, w, alpha), {}, IndexError, "token 2"),
    ):
        with pytest.raises(error, match=message):
            leaky_rnn(*arguments, **options)
