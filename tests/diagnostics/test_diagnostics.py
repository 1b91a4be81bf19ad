"""Gradient flow: the reported norms against autograd's, step by step, in float64."""

import numpy as np
import pytest
import torch
from lm_helpers import PERIODIC, small_model
from torch import nn

from rnnfast import FastRNN, diagnostics

CASES = [
    {},
    {"nonlinearity": "relu"},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 3, "bias": False},
]
T, B, I, H = 6, 3, 4, 7  # noqa: E741 - the letters that the whole project uses


def by_hand(rnn, x, hx):
    """Return the states of the last layer, (T, B, D * H), and all states as tensors, [l, d][t]."""
    D = 2 if rnn.bidirectional else 1
    f = torch.tanh if rnn.nonlinearity == "tanh" else torch.relu
    states = {}
    for layer in range(rnn.num_layers):
        for d in range(D):
            name = f"l{layer}" + "_reverse" * d
            w_ih, w_hh = getattr(rnn, f"weight_ih_{name}"), getattr(rnn, f"weight_hh_{name}")
            b = getattr(rnn, f"bias_ih_{name}") + getattr(rnn, f"bias_hh_{name}") if rnn.bias else 0
            h, own = hx[layer * D + d], [None] * T
            for t in reversed(range(T)) if d else range(T):
                h = own[t] = f(x[t] @ w_ih.t() + h @ w_hh.t() + b)
            states[layer, d] = own
        x = [torch.cat([states[layer, d][t] for d in range(D)], -1) for t in range(T)]
    return torch.stack(x), states


def example(case, seed=0):
    torch.manual_seed(seed)
    rnn = FastRNN(I, H, **case).double()
    x, target = torch.randn(T, B, I).double(), torch.randn(T, B, H * (1 + rnn.bidirectional))
    hx = torch.randn(rnn.num_layers * (1 + rnn.bidirectional), B, H).double()
    return rnn, x, hx, target.double()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["every step", "last step"])
def test_gradient_norms_are_autograds(case, last):
    rnn, x, hx, target = example(case)

    def loss(output):
        error = (output - target).square()
        return error[-1].sum() if last else error.sum()

    output, states = by_hand(rnn, x, hx)
    expected = np.zeros((rnn.num_layers, 1 + rnn.bidirectional, T))
    for (layer, d), own in states.items():
        gradients = torch.autograd.grad(loss(output), own, retain_graph=True, allow_unused=True)
        expected[layer, d] = [0.0 if g is None else g.norm() for g in gradients]
    batch_first = rnn.batch_first
    got = diagnostics.gradient_norms(
        rnn,
        x.transpose(0, 1) if batch_first else x,
        lambda output: loss(output.transpose(0, 1) if batch_first else output),
        hx,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
    assert all(parameter.grad is None for parameter in rnn.parameters())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_jacobian_norms_are_autograds(case):
    rnn, x, hx, _ = example(case, seed=1)
    _, states = by_hand(rnn, x, hx)
    got = diagnostics.jacobian_norms(rnn, x.transpose(0, 1) if rnn.batch_first else x, hx)
    assert got.shape == (rnn.num_layers, 1 + rnn.bidirectional, T, B)
    for (layer, d), own in states.items():
        end = own[0] if d else own[-1]
        for t in range(T):
            for b in range(B):
                rows = [
                    torch.autograd.grad(end[b, i], own[t], retain_graph=True)[0][b]
                    for i in range(H)
                ]
                expected = torch.linalg.svdvals(torch.stack(rows))[0]
                assert got[layer, d, t, b] == pytest.approx(float(expected), rel=1e-11, abs=1e-14)


def test_float32_and_tokens():
    """float32 agrees with float64 up to rounding, and tokens with their one-hot vectors."""
    rnn, *_ = example({"num_layers": 2})
    tokens = torch.tensor([[0, 3], [1, 1], [2, 0], [3, 2]])
    one_hot = nn.functional.one_hot(tokens, I).double()

    def norms(rnn, x):
        gradients = diagnostics.gradient_norms(rnn, x, lambda output: output[-1].sum())
        return gradients, diagnostics.jacobian_norms(rnn, x)

    expected = norms(rnn, one_hot)
    for ours, theirs in zip(norms(rnn, tokens), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    for ours, theirs in zip(norms(rnn.float(), one_hot.float()), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_spectral_radius():
    rnn = FastRNN(2, 4, 2, bidirectional=True)
    matrices = [
        torch.diag(torch.tensor([0.5, -2.0, 1.0, 0.0])),
        torch.block_diag(torch.tensor([[0.0, -3.0], [3.0, 0.0]]), torch.eye(2)),  # ±3i
        torch.zeros(4, 4),
        torch.triu(torch.ones(4, 4)),
    ]
    with torch.no_grad():
        for name, matrix in zip(diagnostics._names(rnn), matrices, strict=True):
            getattr(rnn, f"weight_hh_{name}").copy_(matrix)
    # The last matrix has a defective eigenvalue, which is exact only to a root of the rounding.
    np.testing.assert_allclose(diagnostics.spectral_radius(rnn), [[2, 3], [0, 1]], atol=1e-3)


@pytest.mark.parametrize("radius", [0.8, 1.0, 1.25])
def test_gradients_vanish_or_explode_with_the_spectral_radius(radius):
    """ReLU of positive states is linear, and W_hh is a multiple of a permutation."""
    torch.manual_seed(0)
    rnn = FastRNN(1, 16, nonlinearity="relu", bias=False).double()
    order = torch.randperm(16)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(radius * torch.eye(16, dtype=torch.double)[order])
        rnn.weight_ih_l0.copy_(torch.ones(16, 1))
    x = torch.ones(20, 2, 1).double()
    assert diagnostics.spectral_radius(rnn)[0, 0] == pytest.approx(radius)
    gradients = diagnostics.gradient_norms(rnn, x, lambda output: output[-1].sum())[0, 0]
    expected = radius ** np.arange(19, -1, -1.0)
    np.testing.assert_allclose(gradients / gradients[-1], expected, rtol=1e-12)
    jacobians = diagnostics.jacobian_norms(rnn, x)[0, 0]
    np.testing.assert_allclose(jacobians, np.stack([expected, expected], 1), rtol=1e-12)


def test_errors_name_the_argument():
    rnn, x, hx, _ = example({})
    with pytest.raises(TypeError, match="rnn must be a FastRNN, got RNN"):
        diagnostics.spectral_radius(nn.RNN(2, 3))
    with pytest.raises(ValueError, match="zoneout"):
        diagnostics.jacobian_norms(FastRNN(I, H, zoneout=0.1).double(), x)
    with pytest.raises(ValueError, match="input must be a batch"):
        diagnostics.jacobian_norms(rnn, x[0])
    with pytest.raises(ValueError, match=r"hx must be \(1, 3, 7\), got \(1, 3, 6\)"):
        diagnostics.jacobian_norms(rnn, x, hx[..., 1:])
    for loss in (lambda output: output, lambda output: 3.0, lambda output: torch.ones(())):
        with pytest.raises(ValueError, match="loss must return a scalar"):
            diagnostics.gradient_norms(rnn, x, loss)


def test_curves_of_the_picture():
    """The curves show what the documentation says about the picture."""
    pytest.importorskip("matplotlib")
    from rnnfast.diagnostics import figures

    panels = figures.curves()
    radii, starts, remedies = panels.values()
    assert radii["0.8"][0] < 1e-5 and 0.1 < radii["1"][0] < 10 and radii["1.25"][0] > 1e3
    assert all(norms[-1] == pytest.approx(1, rel=1e-5) for norms in radii.values())
    uniform, orthogonal, identity = starts.values()
    assert uniform[0] < 1e-10 and orthogonal[0] == pytest.approx(1, rel=1e-3) and identity[0] > 0.1
    nothing, truncated, clipped = remedies.values()
    assert np.isnan(truncated[: -figures.TRUNCATION]).all()
    np.testing.assert_allclose(
        truncated[-figures.TRUNCATION :], nothing[-figures.TRUNCATION :], rtol=1e-4
    )
    assert np.ptp(np.log(nothing / clipped)) < 1e-9 and clipped[0] < nothing[0]
    assert len(figures.draw(panels).axes) == 3


@pytest.mark.parametrize("level, layers", [("char", 1), ("word", 2)])
def test_flow_of_a_language_model_is_autograds(level, layers):
    """The norms are those of autograd, from a loop over the steps in which states are tensors."""
    from rnnfast.diagnostics.flow import LANES, flow

    text = "the cat sat on the mat\n" * 30 if level == "word" else PERIODIC
    model = small_model(level, nlayers=layers, text=text).double()
    report = flow(model, text, 7)
    assert report["steps"] == 7 and report["lanes"] == LANES
    assert np.shape(report["gradient_norms"]) == np.shape(report["jacobian_norms"]) == (layers, 7)
    ids = model.vocab.encode_stream(text)
    starts = np.linspace(0, len(ids) - 8, LANES).astype(int)
    windows = torch.from_numpy(np.stack([ids[s : s + 8] for s in starts], 1))
    h = [torch.zeros(LANES, 16).double() for _ in range(layers)]
    steps = []
    for t in range(7):
        x = model.encoder(windows[t])
        for k in range(layers):
            p = [getattr(model.rnn, f"{name}_l{k}") for name in ("weight_ih", "bias_ih")]
            q = [getattr(model.rnn, f"{name}_l{k}") for name in ("weight_hh", "bias_hh")]
            x = h[k] = torch.tanh(x @ p[0].t() + p[1] + h[k] @ q[0].t() + q[1])
        steps.append(list(h))
    loss = nn.functional.cross_entropy(model.decoder(x), windows[7])
    gradients = torch.autograd.grad(loss, [state for step in steps for state in step])
    expected = np.array([float(g.norm()) for g in gradients]).reshape(7, layers).T
    np.testing.assert_allclose(report["gradient_norms"], expected, rtol=1e-10)
    assert np.allclose(np.array(report["jacobian_norms"])[:, -1], 1)
