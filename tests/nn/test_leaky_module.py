"""The module LeakyRNN: its arguments, layouts, noise, gradients and graphs."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnfast import FastRNN, LeakyRNN

STATES = ["rate", "current"]


def module(state="rate", **options):
    torch.manual_seed(0)
    options = {"alpha": 0.3, "state": state, "nonlinearity": "tanh", "noise": 0.1, **options}
    return LeakyRNN(3, 9, **options)


def slow(rnn, x, h0=None, xi=None):
    """Run one layer of ``rnn`` as a loop over the time steps of (T, B, I)."""
    f = {"tanh": torch.tanh, "relu": torch.relu}[rnn.nonlinearity]
    alpha, current = rnn.alpha[0], rnn.state == "current"
    state = x.new_zeros(x.shape[1], rnn.hidden_size) if h0 is None else h0
    outputs = []
    for t, x_t in enumerate(x):
        r = f(state) if current else state
        p = x_t @ rnn.weight_ih_l0.T + r @ rnn.weight_hh_l0.T + rnn.bias_l0
        if xi is not None:
            p = p + (2 / alpha).sqrt() * rnn.noise * xi[t]
        state = (1 - alpha) * state + alpha * (p if current else f(p))
        outputs.append(f(state) if current else state)
    return torch.stack(outputs), state


@pytest.mark.parametrize("state", STATES)
def test_layouts(state):
    rnn = module(state)
    x, hx, xi = torch.randn(6, 4, 3), torch.randn(1, 4, 9), torch.randn(6, 4, 9)
    expected, last = slow(rnn, x, hx[0], xi)
    output, h_n, states = rnn(x, hx, noise=xi, return_state=True)
    torch.testing.assert_close((output, h_n[0]), (expected, last))
    torch.testing.assert_close(states[-1], last)
    assert (states is output) == (state == "rate")
    rnn.batch_first = True
    first, h_n = rnn(x.transpose(0, 1), hx, noise=xi.transpose(0, 1))
    torch.testing.assert_close((first.transpose(0, 1), h_n[0]), (expected, last))
    for batch_first in (False, True):
        rnn.batch_first = batch_first
        alone, h_n = rnn(x[:, 1], hx[:, 1], noise=xi[:, 1])
        torch.testing.assert_close((alone, h_n[0]), (expected[:, 1], last[1]))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_and_packed(state, batch_first):
    rnn = module(state, learn_h0=True, batch_first=batch_first)
    with torch.no_grad():
        rnn.h0.normal_()
    lengths = [3, 6, 0, 1]
    x, xi, reset = torch.randn(6, 4, 3), torch.randn(6, 4, 9), torch.rand(6, 4) < 0.3
    x[3:, 0] = torch.nan  # steps past the end are never read
    swap = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    results = rnn(swap(x), lengths=lengths, noise=swap(xi), reset=swap(reset), return_state=True)
    output, h_n, states = swap(results[0]), results[1], swap(results[2])
    for b, n in enumerate(lengths):
        assert not output[n:, b].any()
        assert not states[n:, b].any()
        if n == 0:
            torch.testing.assert_close(h_n[0, b], rnn.h0[0])
            continue
        one = {"noise": swap(xi[:n, b : b + 1]), "reset": swap(reset[:n, b : b + 1])}
        alone, last, s = rnn(swap(x[:n, b : b + 1]), return_state=True, **one)
        torch.testing.assert_close(output[:n, b], swap(alone)[:, 0])
        torch.testing.assert_close(states[:n, b], swap(s)[:, 0])
        torch.testing.assert_close(h_n[:, b], last[:, 0])
    output.sum().backward()
    assert rnn.weight_hh_l0.grad.isfinite().all()

    kept = [0, 1, 3]
    options = {"enforce_sorted": False, "batch_first": batch_first}
    pack = lambda t: pack_padded_sequence(swap(t[:, kept]), [3, 6, 1], **options)  # noqa: E731
    packed, h_packed = rnn(pack(x), noise=pack(xi), reset=pack(reset))
    padded, _ = pad_packed_sequence(packed)
    torch.testing.assert_close(padded, output[:, kept])
    torch.testing.assert_close(h_packed, h_n[:, kept])


def test_it_is_a_fast_rnn_without_leak():
    torch.manual_seed(0)
    rnn = LeakyRNN(3, 9, num_layers=2, nonlinearity="tanh")
    theirs = FastRNN(3, 9, num_layers=2)
    with torch.no_grad():
        for layer in range(2):
            for name in ("weight_ih", "weight_hh"):
                getattr(theirs, f"{name}_l{layer}").copy_(getattr(rnn, f"{name}_l{layer}"))
            getattr(theirs, f"bias_ih_l{layer}").copy_(getattr(rnn, f"bias_l{layer}"))
            getattr(theirs, f"bias_hh_l{layer}").zero_()
    x, hx = torch.randn(6, 4, 3), torch.randn(2, 4, 9)
    for ours, expected in zip(rnn(x, hx), theirs(x, hx), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("state", STATES)
def test_noise(state):
    rnn, x = module(state, noise=0.5), torch.randn(6, 4, 3)

    def seeded(**options):
        torch.manual_seed(3)
        return rnn(x, **options)[0]

    quiet = seeded(noise=False)
    torch.testing.assert_close(quiet, slow(rnn, x)[0])
    assert torch.equal(seeded(), seeded())
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    assert torch.equal(seeded(noise=True), seeded())
    rnn.eval()
    assert torch.equal(seeded(), quiet)
    assert not torch.equal(seeded(noise=True), quiet)
    # The increments of a linear network at rest have the variance 2 alpha sigma^2 of a current.
    rest = LeakyRNN(1, 50, alpha=0.1, state=state, nonlinearity="linear", noise=0.5, bias=False)
    with torch.no_grad():
        rest.weight_hh_l0.zero_()
        states = rest(torch.zeros(400, 50, 1), return_state=True)[2]
    increments = states[1:] - 0.9 * states[:-1]
    assert abs(increments.var() / (2 * 0.1 * 0.25) - 1) < 0.01


@pytest.mark.parametrize("state", STATES)
def test_learnt_alpha_and_h0(state):
    rnn = module(state, learn_alpha=True, learn_h0=True, num_layers=2, dtype=torch.float64)
    assert set(dict(rnn.named_parameters())) >= {"alpha_logit", "h0"}
    torch.testing.assert_close(rnn.alpha, torch.full((2, 9), 0.3, dtype=torch.float64))
    x, parameters = torch.randn(4, 2, 3, dtype=torch.float64), list(rnn.parameters())

    def call(*values):
        torch.manual_seed(1)
        names = [name for name, _ in rnn.named_parameters()]
        return torch.func.functional_call(rnn, dict(zip(names, values, strict=True)), (x,))[0]

    torch.manual_seed(1)
    assert torch.autograd.gradcheck(call, parameters)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_stepper(state, dtype):
    options = {"num_layers": 2, "learn_h0": True, "dtype": dtype, "nonlinearity": "softplus"}
    rnn = module(state, **options).eval()
    with torch.no_grad():
        rnn.h0.normal_()
    x = torch.randn(7, 3, 3, dtype=dtype)
    expected, h_n = rnn(x)
    stepper = rnn.stepper(3)
    ours = torch.stack([stepper.step(x_t).clone() for x_t in x])
    tolerance = {"atol": 0.05, "rtol": 0.05} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(ours, expected, **tolerance)
    torch.testing.assert_close(stepper.state, h_n, **tolerance)
    stepper.state = stepper.state  # reading and writing change nothing
    stepper.reset([1])
    after = rnn(x, h_n * torch.tensor([1, 0, 1]).view(1, 3, 1))[0]
    ours = torch.stack([stepper.step(x_t).clone() for x_t in x])
    torch.testing.assert_close(ours, after, **tolerance)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(0.5)
        rnn._alpha.fill_(0.7)
    stepper.reset()
    expected = rnn(x, torch.zeros_like(h_n))[0]
    ours = torch.stack([stepper.step(x_t).clone() for x_t in x])
    torch.testing.assert_close(ours, expected, **tolerance)


def test_rates():
    assert LeakyRNN(2, 3, tau=100, dt=20).alpha.tolist() == [[pytest.approx(0.2)] * 3]
    rates = LeakyRNN(2, 3, tau=[10.0, 20.0, 40.0], dt=10, num_layers=2).alpha
    torch.testing.assert_close(rates, torch.tensor([[1, 0.5, 0.25]]).expand(2, 3))
    assert LeakyRNN(2, 3).alpha.tolist() == [[1.0] * 3]
    for options, message in (
        ({"alpha": 0}, r"alpha must be in \(0, 1\]"),
        ({"alpha": 1.1}, r"alpha must be in \(0, 1\]"),
        ({"alpha": 1, "learn_alpha": True}, r"alpha must be in \(0, 1\)"),
        ({"alpha": [0.1, 0.2]}, r"alpha must be a number or \(3,\)"),
        ({"tau": 10}, "tau and dt must be given together"),
        ({"tau": 10, "dt": 1, "alpha": 0.1}, "alpha must not be given together"),
        ({"tau": 10, "dt": 20}, "dt / tau must be in"),
        ({"tau": 10, "dt": -1}, "dt must be greater than 0"),
        ({"noise": -0.1}, "noise must be a number"),
        ({"state": "x"}, "state must be"),
        ({"nonlinearity": "elu"}, "nonlinearity must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            LeakyRNN(2, 3, **options)
    for sizes in ((2, 0), (-1, 3), (2, 3.0), (2, 3, 0)):
        with pytest.raises(ValueError, match="must be an integer of at least"):
            LeakyRNN(*sizes)


def test_wrong_calls():
    rnn, x = module(), torch.randn(6, 4, 3)
    for arguments, options, error, message in (
        (([1.0],), {}, TypeError, "input must be a tensor or PackedSequence, got list"),
        ((x[..., :2],), {}, RuntimeError, "Expected 3, got 2"),
        ((x[0, 0],), {}, ValueError, r"input must be \(T, B, I\)"),
        ((x, x), {}, RuntimeError, r"hx must be \(1, 4, 9\)"),
        ((x[:, 0], torch.zeros(1, 1, 9)), {}, RuntimeError, r"hx must be \(L, H\)"),
        ((x,), {"noise": x}, RuntimeError, "xi must be"),
        ((x,), {"lengths": [7, 1, 1, 1]}, ValueError, r"lengths must be in \[0, 6\]"),
        ((x,), {"lengths": [0, 0, 0, 0]}, ValueError, "only zeros"),
        ((x,), {"lengths": [1]}, ValueError, "lengths must be integers"),
        ((x,), {"reset": torch.zeros(4, 6, dtype=torch.bool)}, ValueError, "reset must be bool"),
    ):
        with pytest.raises(error, match=message):
            rnn(*arguments, **options)
    with pytest.raises(ValueError, match="made with noise=0"):
        module(noise=0.0)(x, noise=torch.randn(6, 4, 9))


def test_copies_and_repr():
    rnn = module(tau=None, learn_h0=True)
    other = LeakyRNN(3, 9, alpha=0.9, nonlinearity="tanh", noise=0.1, learn_h0=True)
    other.load_state_dict(rnn.state_dict())
    x = torch.randn(6, 4, 3)
    for clone in (other, copy.deepcopy(rnn)):
        assert torch.equal(clone(x, noise=False)[0], rnn(x, noise=False)[0])
    assert repr(rnn) == "LeakyRNN(3, 9, alpha=0.3, nonlinearity=tanh, noise=0.1, learn_h0=True)"


@pytest.mark.parametrize("state", STATES)
def test_other_ways_to_run(state):
    """vmap, autocast and a dtype without a kernel give what the kernel gives."""
    rnn, x = module(state), torch.randn(6, 4, 3)
    rnn.eval()
    expected = rnn(x)[0]
    mapped = torch.func.vmap(lambda one: rnn(one)[0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(mapped, expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = rnn(x)[0]
    assert low.dtype is torch.bfloat16
    torch.testing.assert_close(low.float(), expected, atol=0.03, rtol=0.03)
    meta = LeakyRNN(3, 9, state=state, device="meta")(torch.randn(6, 4, 3, device="meta"))
    assert meta[0].shape == (6, 4, 9)


@pytest.mark.parametrize("state", STATES)
def test_compile(state):
    rnn, x = module(state, learn_alpha=True), torch.randn(6, 4, 3)
    reset = torch.rand(6, 4) < 0.3

    def step(x, reset):
        output, _, states = rnn(x, reset=reset, noise=False, return_state=True)
        return (output.square() + states).sum()

    torch.compiler.reset()  # what other tests have compiled counts against a limit
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    results = []
    for run in (step, compiled):
        loss = run(x, reset)
        results.append((loss, *torch.autograd.grad(loss, list(rnn.parameters()))))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("state", STATES)
def test_operators(state):
    rnn = module(state)
    x, hx, reset = torch.randn(5, 4, 3), torch.randn(1, 4, 9), torch.rand(5, 4) < 0.2
    weights = [w.detach() for w in rnn._weights()]
    kind = (False, state == "current", "tanh")
    call = (x, hx, weights, rnn.alpha[0], None, torch.ones(9), torch.tensor(3), None, *kind)
    ops = torch.ops.rnnfast
    torch.library.opcheck(ops.leaky_rnn.default, (*call, True, True), {"reset": reset})
    torch.library.opcheck(ops.leaky_rnn.default, (*call, False, False))
    output, h_n, states, saved = ops.leaky_rnn(*call, state == "current", True)
    given = (output, h_n, None, output, states, saved, x, hx, weights, rnn.alpha[0], None, *kind)
    torch.library.opcheck(ops.leaky_rnn_backward.default, (*given, *[True] * 5), {"reset": reset})
    torch.library.opcheck(ops.leaky_rnn_backward.default, (*given, *[False] * 5))
    torch.library.opcheck(ops.normal.default, (torch.tensor(3), x, 5, 9))


@pytest.mark.parametrize("state", STATES)
def test_export(state):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = module(state, num_layers=2)

        def forward(self, x, reset):
            return self.rnn(x, reset=reset, return_state=True)

    model = Model().eval()
    steps, sequences = torch.export.Dim("T", min=2, max=99), torch.export.Dim("B", min=2, max=99)
    shapes = ({0: steps, 1: sequences},) * 2
    example = (torch.randn(6, 4, 3), torch.rand(6, 4) < 0.3)
    program = torch.export.export(model, example, dynamic_shapes=shapes)
    other = (torch.randn(11, 5, 3), torch.rand(11, 5) < 0.3)
    for ours, expected in zip(program.module()(*other), model(*other), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_sparse_weights(state, batch_first):
    rnn = module(state, batch_first=batch_first, learn_h0=True)
    x = torch.randn(4, 4, 3)
    w = torch.where(torch.rand(9, 9) < 0.3, rnn.weight_hh_l0.detach(), 0.0)
    given = {"reset": torch.rand(4, 4) < 0.2, "noise": torch.randn(4, 4, 9)}
    results = []
    for weight in (w, w.to_sparse_csr()):
        rnn.weight_hh_l0 = torch.nn.Parameter(weight, requires_grad=False)
        with torch.no_grad():
            torch.manual_seed(2)  # for the noise
            calls = ({"return_state": True}, {"lengths": [2, 0, 3, 2]}, given)
            results.append([rnn(x, **options) for options in calls])
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense)
    with pytest.raises(RuntimeError, match="sparse weight_hh has no gradients"):
        rnn(x)
    with pytest.raises(RuntimeError, match="dense weights"):
        rnn.stepper()
