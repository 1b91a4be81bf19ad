"""Leaky units on the CUDA kernels: their Python side on the CPU, and all of it on a GPU."""

import functools
from dataclasses import replace

import pytest
import torch
from leaky_rule import KINDS, Case, check_case, make, run
from test_cuda import GPU_DTYPES, length_of, row_of

from rnnfast import LeakyRNN
from rnnfast._ops import NONLINEARITIES, LeakyDescriptor, cuda, cuda_leaky, dispatch

# The derivative of each nonlinearity as a function of its value.
SLOPES = {
    "tanh": lambda y: 1 - y * y,
    "relu": lambda y: (y > 0).to(y.dtype),
    "sigmoid": lambda y: y * (1 - y),
    "softplus": lambda y: -torch.expm1(-y),
    "linear": torch.ones_like,
}


def stand_in(layout, H, backward, relu, dtype, directions, device, leak):
    """Do what csrc/cuda/recurrence.h describes of leaky units, step by step."""
    current, nonlinearity, alpha, first, dstates, kept, carry = leak
    f, slope = NONLINEARITIES[nonlinearity], SLOPES[nonlinearity]
    ((reverse, w_hh, given, h, out, bias, _, begin, end),) = directions
    at = functools.partial(row_of, layout)
    zeros = torch.zeros(layout.B, H, dtype=dtype)
    begin, first = (zeros if t is None else t for t in (begin, first))
    state_before, r0 = (begin, first) if backward else (first, begin)
    assert not reverse and carry.shape == (layout.B, H)
    for b in range(layout.B):
        steps = range(length_of(layout, b))
        state = state_before[b]
        r, dr = r0[b], zeros[b]
        for t in reversed(steps) if backward else steps:
            is_reset = layout.reset is not None and bool(at(layout.reset, t, b))
            if not backward:
                if is_reset and t > 0:
                    state = zeros[b]
                    r = f(state) if current else state
                p = at(given, t, b) + w_hh @ r + (0 if bias is None else bias)
                target = p if current else f(p)
                state = (1 - alpha) * state + alpha * target
                r = f(state) if current else state
                at(out, t, b).copy_(r)
                saved = state if current else target
            else:
                dr = dr if given is None else dr + at(given, t, b)
                y = at(h, t, b)
                state = state + (dr * slope(y) if current else dr)
                state = state if dstates is None else state + at(dstates, t, b)
                saved, dp = state, alpha * state * (1 if current else slope(y))
                at(out, t, b).copy_(dp)
                dr = zeros[b] if is_reset else dp @ w_hh
                state = zeros[b] if is_reset else (1 - alpha) * state
            if kept is not None:
                at(kept, t, b).copy_(saved)
        if end is not None:
            end[b] = state + (dr * slope(r0[b]) if current else dr) * backward


def pretend(patch):
    """Run calls on CPU tensors like calls on CUDA tensors, except for the kernels."""
    patch.setattr(cuda, "launch", stand_in)
    patch.setattr(cuda, "_upload", lambda numbers, device: torch.tensor(numbers))
    patch.setattr(dispatch, "leaky_rnn_cpu", cuda_leaky.leaky_rnn_cuda)
    patch.setattr(dispatch, "leaky_rnn_backward_cpu", cuda_leaky.leaky_rnn_backward_cuda)


CASES = [
    Case(6, 3, 4, 7, with_reset=True),
    Case(1, 7, 3, 1, bias=False, with_hx=False, with_xi=False),
    Case(9, 4, 2, 5, with_hx=False, with_reset=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("state", "nonlinearity"), KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(monkeypatch, case, state, nonlinearity, dtype):
    pretend(monkeypatch)
    check_case(replace(case, state=state, nonlinearity=nonlinearity, dtype=dtype))


def run_in_layout(case, layout, tokens=False, device="cpu"):
    """Return the outputs and the gradients of a case with 6 time steps and 4 sequences."""
    tensors, reset, _ = make(case)
    if tokens:
        tensors["input"] = torch.arange(24).view(6, 4) % case.inputs
    sizes = torch.tensor([4, 4, 3, 1, 1, 1])
    rows = torch.arange(4) < sizes[:, None]

    def arranged(t):
        return t.transpose(0, 1).contiguous() if layout == "batch" else t[rows]

    options = {"batch_first": True} if layout == "batch" else {"batch_sizes": sizes}
    given = {n: arranged(t) if n in ("input", "xi") else t for n, t in tensors.items()}
    given = {name: t.to(device) for name, t in given.items()}
    outputs = run(given, arranged(reset).to(device), case, **options)
    outputs = outputs[: 3 if case.state == "current" else 2]
    wanted = [t for t in tensors.values() if t.requires_grad]
    return outputs, torch.autograd.grad(sum(t.square().sum() for t in outputs), wanted)


@pytest.mark.parametrize("state", ["rate", "current"])
@pytest.mark.parametrize("layout", ["batch", "packed"])
@pytest.mark.parametrize("tokens", [False, True])
def test_layouts(monkeypatch, state, layout, tokens):
    """The outputs and gradients are those of the CPU kernels."""
    case = Case(6, 4, 3, 5, state, "softplus", with_reset=True, dtype=torch.float64)
    expected = run_in_layout(case, layout, tokens)
    with monkeypatch.context() as patch:
        pretend(patch)
        found = run_in_layout(case, layout, tokens)
    torch.testing.assert_close(found, expected)


def test_without_gradients(monkeypatch):
    """Without gradients, only what is asked for is kept."""
    pretend(monkeypatch)
    tensors, _, _ = make(Case(3, 2, 4, 5))
    x, alpha, hx = (tensors[name].detach() for name in ("input", "alpha", "hx"))
    weights = [tensors[name].detach() for name in ("w_ih", "w_hh", "b")]
    call = (x, hx.unsqueeze(0), weights, alpha, None)
    for current in (False, True):
        descriptor = LeakyDescriptor(False, current, "tanh")
        for keeps in ((False, False), (True, True)):
            _, _, states, saved = cuda_leaky.leaky_rnn_cuda(
                *call, None, None, None, descriptor, keeps
            )
            assert (states is not None) == (current and keeps[0])
            assert (saved is not None) == keeps[1]
    with pytest.raises(RuntimeError, match="noise_scale must be None"):
        cuda_leaky.leaky_rnn_cuda(*call, alpha, torch.tensor(1), None, descriptor, keeps)


# On a GPU


@pytest.fixture
def launches(monkeypatch):
    """The kernels that have been asked for, as the test goes on."""
    launch, names = cuda._run_kernel, []

    def counted(force, *arguments):
        names.append(force)
        launch(force, *arguments)

    monkeypatch.setattr(cuda, "_run_kernel", counted)
    return names


# Without ReLU where states are rounded to 10 bits or fewer; test_16_bits in tests/functional says
# why.
GPU_KINDS = [
    (state, nonlinearity, dtype)
    for dtype in GPU_DTYPES
    for state, nonlinearity in KINDS
    if nonlinearity != "relu" or dtype in (torch.float32, torch.float64)
]


@pytest.mark.parametrize(("state", "nonlinearity", "dtype"), GPU_KINDS, ids=str)
@pytest.mark.parametrize("case", [*CASES, Case(20, 9, 5, 130, with_reset=True)], ids=str)
def test_rule_on_a_gpu(cuda_kernel, precision, launches, case, state, nonlinearity, dtype):
    case = replace(case, state=state, nonlinearity=nonlinearity, dtype=precision(dtype))
    # The loop has no TF32. float16 has the same number of bits.
    loops_dtype = torch.float16 if dtype == "tf32" else None
    check_case(case, device="cuda", loops_dtype=loops_dtype)
    assert len(launches) == 2  # forward and backward, and no kernel failed


# The largest difference that is allowed from the results of the CPU kernels in float64, as a part
# of the largest result.
TOLERANCES = {
    torch.float32: 1e-4,
    "tf32": 1e-2,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
    torch.float64: 1e-9,
}


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("state", ["rate", "current"])
@pytest.mark.parametrize("layout", ["batch", "packed"])
@pytest.mark.parametrize("tokens", [False, True])
def test_layouts_on_a_gpu(cuda_kernel, precision, launches, state, layout, tokens, dtype):
    case = Case(6, 4, 3, 40, state, "softplus", with_reset=True, dtype=precision(dtype))
    found = run_in_layout(case, layout, tokens, "cuda")
    assert len(launches) == 2
    expected = run_in_layout(replace(case, dtype=torch.float64), layout, tokens)
    for ours, wanted in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        error = (ours.cpu().double() - wanted).abs().max()
        assert error <= TOLERANCES[dtype] * wanted.abs().max()


@pytest.mark.parametrize("state", ["rate", "current"])
def test_noise_on_a_gpu(cuda_kernel, state):
    """The noise depends on torch's seed, and its scale on alpha."""
    rnn = LeakyRNN(3, 40, alpha=0.3, state=state, noise=0.2, learn_alpha=True, device="cuda")
    x = torch.randn(5, 4, 3, device="cuda")
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(rnn(x)[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    assert not torch.equal(outputs[0], outputs[2])
    (gradient,) = torch.autograd.grad(outputs[2].sum(), rnn.alpha_logit)
    assert gradient.isfinite().all() and gradient.count_nonzero() > 0
