"""The Elman recurrence and its back-propagation through time in plain NumPy.

Short enough to read in one sitting and slow: tests and benchmarks measure the kernels against it.

    h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh),    f = tanh or ReLU       (Elman 1990)

    dpre_t = (dy_t + W_hh^T dpre_{t+1}) * f'(pre_t)                           (Werbos 1990)
    dx_t   = W_ih^T dpre_t           dh_0 = W_hh^T dpre_1
    dW_ih  = sum_t dpre_t x_t^T      dW_hh = sum_t dpre_t h_{t-1}^T      db = sum_t dpre_t

f' is read off the output: 1 - h^2 for tanh, and 1 where h > 0 for ReLU, as in PyTorch.

Letters: T time steps, B batch rows, I input size, H hidden size, L layers, D directions (1 or 2).
Every array keeps its dtype: float64 inputs give float64 results, ``np.longdouble`` wider ones.
A batch of sequences of different lengths is each sequence run alone with B = 1.

J. L. Elman, "Finding structure in time", Cognitive Science 14(2), 1990.
P. J. Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the IEEE
78(10), 1990.
"""

from typing import NamedTuple

import numpy as np


class Gradients(NamedTuple):
    x: np.ndarray  # [T, B, I]
    h0: np.ndarray  # [B, H]
    w_ih: np.ndarray  # [H, I]
    w_hh: np.ndarray  # [H, H]
    b: np.ndarray  # [H]: the gradient of b_ih and of b_hh alike, which only ever appear as a sum


def forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None, nonlinearity="tanh"):
    """One layer, one direction.

    ``x`` is [T, B, I], ``h0`` [B, H] or None for zeros, ``w_ih`` [H, I], ``w_hh`` [H, H], the
    biases [H] or None. Returns every hidden state, [T, B, H].
    """
    f = {"tanh": np.tanh, "relu": lambda pre: np.maximum(pre, 0)}[nonlinearity]
    biases = sum(b for b in (b_ih, b_hh) if b is not None)
    h = np.empty((*x.shape[:2], len(w_hh)), x.dtype)
    state = np.zeros_like(h[0]) if h0 is None else h0
    for t in range(len(x)):
        state = h[t] = f(x[t] @ w_ih.T + state @ w_hh.T + biases)
    return h


def backward(x, h0, w_ih, w_hh, h, dy, dh_n, nonlinearity="tanh"):
    """The gradients of ``sum(dy * h) + sum(dh_n * h[-1])``.

    ``h`` is what `forward` returned, ``dy`` [T, B, H] and ``dh_n`` [B, H].
    """
    before = np.concatenate([(np.zeros_like(h[0]) if h0 is None else h0)[None], h[:-1]])
    slope = 1 - h * h if nonlinearity == "tanh" else h > 0
    dpre = np.empty_like(h)
    dstate = dh_n
    for t in reversed(range(len(h))):
        dpre[t] = (dy[t] + dstate) * slope[t]
        dstate = dpre[t] @ w_hh
    rows = dpre.reshape(-1, dpre.shape[-1])  # all steps and sequences at once
    return Gradients(
        x=dpre @ w_ih,
        h0=dstate,
        w_ih=rows.T @ x.reshape(len(rows), -1),
        w_hh=rows.T @ before.reshape(len(rows), -1),
        b=rows.sum(0),
    )


def rnn(x, hx, weights, *, num_layers=1, nonlinearity="tanh", bidirectional=False):
    """The layers of ``torch.nn.RNN``: each reads both directions of the one below.

    ``x`` is [T, B, I], ``hx`` [L*D, B, H] or None for zeros, and ``weights`` the flat list of
    ``nn.RNN``: per layer and direction w_ih, w_hh and, if there are biases, b_ih, b_hh.
    Returns the outputs of every layer, L arrays [T, B, D*H] of which the last is the RNN's output,
    and h_n [L*D, B, H].
    """
    outputs, h_n = [], []
    for below in _cells(hx, weights, num_layers, bidirectional):
        halves = []
        for time, h0, cell in below:
            h = forward(x[time], h0, *cell, nonlinearity=nonlinearity)
            h_n.append(h[-1])
            halves.append(h[time])
        x = np.concatenate(halves, axis=-1)
        outputs.append(x)
    return outputs, np.stack(h_n)


def rnn_backward(
    x, hx, weights, outputs, dy, dh_n, *, num_layers=1, nonlinearity="tanh", bidirectional=False
):
    """The gradients of ``sum(dy * output) + sum(dh_n * h_n)`` for `rnn`, which gave ``outputs``.

    ``dy`` is [T, B, D*H] and ``dh_n`` [L*D, B, H]. Returns dx, dhx and the list of the gradients of
    ``weights``, each in the shape of what it belongs to.
    """
    layers = list(_cells(hx, weights, num_layers, bidirectional))
    directions = len(layers[0])
    dhx, dweights = [], []
    for layer in reversed(range(num_layers)):
        below = outputs[layer - 1] if layer else x
        h = np.split(outputs[layer], directions, axis=-1)
        dh = np.split(dy, directions, axis=-1)
        gradients = [
            backward(
                below[time], h0, *cell[:2], h[d][time], dh[d][time],
                dh_n[layer * directions + d], nonlinearity,
            )
            for d, (time, h0, cell) in enumerate(layers[layer])
        ]  # fmt: skip
        dy = sum(g.x[time] for g, (time, _, _) in zip(gradients, layers[layer], strict=True))
        dhx = [g.h0 for g in gradients] + dhx
        biases = len(layers[layer][0][2]) - 2
        dweights = [d for g in gradients for d in (g.w_ih, g.w_hh, *[g.b] * biases)] + dweights
    return dy, np.stack(dhx), dweights


def _cells(hx, weights, num_layers, bidirectional):
    """Layer by layer, the (slice of time, h0, weights) of each direction."""
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    for layer in range(num_layers):
        first = layer * directions
        yield [
            (
                slice(None, None, -1 if d else 1),
                None if hx is None else hx[first + d],
                weights[(first + d) * each : (first + d + 1) * each],
            )
            for d in range(directions)
        ]
