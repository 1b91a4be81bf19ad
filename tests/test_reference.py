"""The NumPy reference compared with central differences and with autograd, in float64."""

import numpy as np
import pytest
import torch

from rnnfast import reference

NONLINEARITIES = ["tanh", "relu"]


def draw(rng, *shape):
    return rng.uniform(-1, 1, shape)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_forward_is_the_equation(nonlinearity):
    """One unit and two time steps agree with a calculation by hand."""
    f = {"tanh": np.tanh, "relu": lambda a: max(a, 0.0)}[nonlinearity]
    x = np.array([[[0.5]], [[-0.25]]])
    one = np.array
    h = reference.forward(
        x, one([[0.3]]), one([[2.0]]), one([[-0.7]]), one([0.1]), one([0.2]), nonlinearity
    )
    first = f(2.0 * 0.5 + 0.1 - 0.7 * 0.3 + 0.2)
    second = f(2.0 * -0.25 + 0.1 - 0.7 * first + 0.2)
    np.testing.assert_allclose(h.ravel(), [first, second], rtol=1e-15)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_gradients_against_central_differences(nonlinearity):
    rng = np.random.default_rng(1)
    T, B, inputs, H = 4, 3, 2, 5
    arrays = {
        "x": draw(rng, T, B, inputs),
        "h0": draw(rng, B, H),
        "w_ih": draw(rng, H, inputs),
        "w_hh": draw(rng, H, H),
        "b_ih": draw(rng, H),
        "b_hh": draw(rng, H),
    }
    dy, dh_n = draw(rng, T, B, H), draw(rng, B, H)

    def loss():
        h = reference.forward(**arrays, nonlinearity=nonlinearity)
        return (dy * h).sum() + (dh_n * h[-1]).sum()

    h = reference.forward(**arrays, nonlinearity=nonlinearity)
    read = [arrays[name] for name in ("x", "h0", "w_ih", "w_hh")]
    gradients = reference.backward(*read, h, dy, dh_n, nonlinearity)._asdict()
    for name, array in arrays.items():
        analytic = gradients["b" if name.startswith("b_") else name]
        numeric = np.empty_like(array)
        for i in np.ndindex(array.shape):
            kept, step = array[i], 1e-6
            array[i] = kept + step
            above = loss()
            array[i] = kept - step
            numeric[i] = (above - loss()) / (2 * step)
            array[i] = kept
        # A central difference has an error of step^2 times the third derivative, plus eps / step.
        np.testing.assert_allclose(analytic, numeric, rtol=1e-7, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
def test_rnn_against_autograd(nonlinearity, bias, bidirectional, with_hx):
    torch.manual_seed(2)
    T, B, H, L = 6, 3, 5, 3
    D = 2 if bidirectional else 1
    module = torch.nn.RNN(
        4, H, L, nonlinearity, bias, bidirectional=bidirectional, dtype=torch.float64
    )
    x = torch.randn(T, B, 4, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(L * D, B, H, dtype=torch.float64, requires_grad=True) if with_hx else None
    weights = list(module.parameters())
    output, h_n = module(x, hx)
    dy, dh_n = torch.randn_like(output), torch.randn_like(h_n)
    wanted = [x, *([hx] if with_hx else []), *weights]
    expected = torch.autograd.grad((output, h_n), wanted, (dy, dh_n))

    inputs = (x.detach().numpy(), hx.detach().numpy() if with_hx else None)
    inputs = (*inputs, [w.detach().numpy() for w in weights])
    stack = {"num_layers": L, "nonlinearity": nonlinearity, "bidirectional": bidirectional}
    outputs, last = reference.rnn(*inputs, **stack)
    dx, dhx, dweights = reference.rnn_backward(*inputs, outputs, dy.numpy(), dh_n.numpy(), **stack)

    close = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(outputs[-1], output.detach(), **close)
    np.testing.assert_allclose(last, h_n.detach(), **close)
    found = [dx, *([dhx] if with_hx else []), *dweights]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **close)


def test_wider_floats_are_kept():
    """A longdouble reference judges float64 kernels, so it must not round to float64."""
    rng = np.random.default_rng(3)
    arrays = [draw(rng, *shape).astype(np.longdouble) for shape in ((3, 2, 4), (5, 4), (5, 5))]
    x, w_ih, w_hh = arrays
    h = reference.forward(x, None, w_ih, w_hh)
    gradients = reference.backward(x, None, w_ih, w_hh, h, np.ones_like(h), np.ones_like(h[-1]))
    assert h.dtype == np.longdouble
    assert {g.dtype for g in gradients} == {np.dtype(np.longdouble)}
    assert np.any(h != h.astype(np.float64))
