"""The Elman recurrence and its back-propagation through time in plain NumPy.

This module is slow and short enough to read in one sitting. Tests and benchmarks compare the
kernels with it.

    h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh),    f = tanh or ReLU       (Elman 1990)

    dpre_t = (dy_t + W_hh^T dpre_{t+1}) * f'(pre_t)                           (Werbos 1990)
    dx_t   = W_ih^T dpre_t           dh_0 = W_hh^T dpre_1
    dW_ih  = sum_t dpre_t x_t^T      dW_hh = sum_t dpre_t h_{t-1}^T      db = sum_t dpre_t

The slope f' is computed from the output, as in PyTorch: 1 - h^2 for tanh, and for ReLU 1 where
h > 0, otherwise 0.

Letters: T time steps, B sequences, I inputs, H hidden units, L layers, D directions (1 or 2).
Every array keeps its dtype: float64 inputs give float64 results, and ``np.longdouble`` inputs give
wider ones. To run a batch of sequences with different lengths, run each sequence alone with B = 1.

J. L. Elman, "Finding structure in time", Cognitive Science 14(2), 1990.
P. J. Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the IEEE
78(10), 1990.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

__all__ = ["Gradients", "backward", "forward", "rnn", "rnn_backward"]

# The slice of time that a direction reads, its h0 and its weights.
_Cell: TypeAlias = tuple[slice, np.ndarray | None, Sequence[np.ndarray]]


class Gradients(NamedTuple):
    """The gradients that :func:`backward` returns, each with the shape and dtype of its array.

    Example:
        >>> from rnnfast.reference import Gradients
        >>> Gradients._fields
        ('x', 'h0', 'w_ih', 'w_hh', 'b')
    """

    x: np.ndarray  # (T, B, I)
    h0: np.ndarray  # (B, H)
    w_ih: np.ndarray  # (H, I)
    w_hh: np.ndarray  # (H, H)
    b: np.ndarray  # (H): b_ih and b_hh only appear as a sum, so they have the same gradient


def forward(
    x: np.ndarray,
    h0: np.ndarray | None,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    b_ih: np.ndarray | None = None,
    b_hh: np.ndarray | None = None,
    nonlinearity: str = "tanh",
) -> np.ndarray:
    """Run one layer in one direction (Elman 1990).

    Args:
        x: input, (T, B, I).
        h0: initial state, (B, H), or None for zeros.
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih, b_hh: (H), or None.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Returns:
        All hidden states, (T, B, H).

    Raises:
        KeyError: the nonlinearity is unknown.

    Example:
        >>> import numpy as np
        >>> from rnnfast import reference
        >>> w_ih, w_hh = np.eye(2), np.zeros((2, 2))
        >>> reference.forward(np.ones((5, 3, 2)), None, w_ih, w_hh, nonlinearity="relu").shape
        (5, 3, 2)
    """
    functions: dict[str, Callable[[np.ndarray], np.ndarray]]
    functions = {"tanh": np.tanh, "relu": lambda pre: np.maximum(pre, 0)}
    f = functions[nonlinearity]
    biases = sum(b for b in (b_ih, b_hh) if b is not None)
    h = np.empty((*x.shape[:2], len(w_hh)), x.dtype)
    state = np.zeros_like(h[0]) if h0 is None else h0
    for t in range(len(x)):
        state = h[t] = f(x[t] @ w_ih.T + state @ w_hh.T + biases)
    return h


def backward(
    x: np.ndarray,
    h0: np.ndarray | None,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    h: np.ndarray,
    dy: np.ndarray,
    dh_n: np.ndarray,
    nonlinearity: str = "tanh",
) -> Gradients:
    """Return the gradients of ``sum(dy * h) + sum(dh_n * h[-1])`` (Werbos 1990).

    Args:
        x, h0, w_ih, w_hh, nonlinearity: as in :func:`forward`.
        h: what :func:`forward` returned, (T, B, H).
        dy: gradient of ``h``, (T, B, H).
        dh_n: gradient of the final state, (B, H).

    Returns:
        :class:`Gradients`.

    Example:
        >>> import numpy as np
        >>> from rnnfast import reference
        >>> x, w_ih, w_hh = np.ones((5, 3, 2)), np.eye(2), np.zeros((2, 2))
        >>> h = reference.forward(x, None, w_ih, w_hh)
        >>> dy, dh_n = np.ones_like(h), np.zeros_like(h[-1])
        >>> reference.backward(x, None, w_ih, w_hh, h, dy, dh_n).w_ih.shape
        (2, 2)
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


def rnn(
    x: np.ndarray,
    hx: np.ndarray | None,
    weights: Sequence[np.ndarray],
    *,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Run the layers of ``torch.nn.RNN``; each layer reads both directions of the layer below.

    Args:
        x: input, (T, B, I).
        hx: initial states, (L * D, B, H), or None for zeros.
        weights: flat list in the order of ``nn.RNN``: for each layer and direction w_ih, w_hh and,
            for all or for none, b_ih and b_hh.
        num_layers: L.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bidirectional: whether D is 2.

    Returns:
        ``(outputs, h_n)``: a list of the outputs of all layers, L arrays (T, B, D * H), and the
        final states (L * D, B, H). The last output is the output of the RNN.

    Example:
        >>> import numpy as np
        >>> from rnnfast import reference
        >>> weights = [np.eye(2), np.zeros((2, 2))]
        >>> outputs, h_n = reference.rnn(np.ones((5, 3, 2)), None, weights)
        >>> outputs[-1].shape, h_n.shape
        ((5, 3, 2), (1, 3, 2))
    """
    outputs, h_n = [], []
    for below in _cells(hx, weights, num_layers, bidirectional):
        halves = []
        for time, h0, cell in below:
            w_ih, w_hh, *biases = cell
            b_ih, b_hh = biases or (None, None)
            h = forward(x[time], h0, w_ih, w_hh, b_ih, b_hh, nonlinearity)
            h_n.append(h[-1])
            halves.append(h[time])
        x = np.concatenate(halves, axis=-1)
        outputs.append(x)
    return outputs, np.stack(h_n)


def rnn_backward(
    x: np.ndarray,
    hx: np.ndarray | None,
    weights: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    dy: np.ndarray,
    dh_n: np.ndarray,
    *,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return the gradients of ``sum(dy * outputs[-1]) + sum(dh_n * h_n)`` for :func:`rnn`.

    Args:
        x, hx, weights, num_layers, nonlinearity, bidirectional: as in :func:`rnn`.
        outputs: the list that :func:`rnn` returned.
        dy: gradient of the last output, (T, B, D * H).
        dh_n: gradient of the final states, (L * D, B, H).

    Returns:
        ``(dx, dhx, dweights)`` in the shapes of ``x``, ``hx`` and ``weights``.

    Example:
        >>> import numpy as np
        >>> from rnnfast import reference
        >>> x, weights = np.ones((5, 3, 2)), [np.eye(2), np.zeros((2, 2))]
        >>> outputs, h_n = reference.rnn(x, None, weights)
        >>> dy, dh_n = np.ones_like(outputs[-1]), np.zeros_like(h_n)
        >>> dx, dhx, dweights = reference.rnn_backward(x, None, weights, outputs, dy, dh_n)
        >>> dx.shape, dhx.shape, len(dweights)
        ((5, 3, 2), (1, 3, 2), 2)
    """
    layers = list(_cells(hx, weights, num_layers, bidirectional))
    directions = len(layers[0])
    dhx: list[np.ndarray] = []
    dweights: list[np.ndarray] = []
    for layer in reversed(range(num_layers)):
        below = outputs[layer - 1] if layer else x
        h = np.split(outputs[layer], directions, axis=-1)
        dh = np.split(dy, directions, axis=-1)
        gradients = [
            backward(
                below[time], h0, cell[0], cell[1], h[d][time], dh[d][time],
                dh_n[layer * directions + d], nonlinearity,
            )
            for d, (time, h0, cell) in enumerate(layers[layer])
        ]  # fmt: skip
        halves = [g.x[time] for g, (time, _, _) in zip(gradients, layers[layer], strict=True)]
        dy = np.sum(halves, axis=0)
        dhx = [g.h0 for g in gradients] + dhx
        biases = len(layers[layer][0][2]) - 2
        dweights = [d for g in gradients for d in (g.w_ih, g.w_hh, *[g.b] * biases)] + dweights
    return dy, np.stack(dhx), dweights


def _cells(
    hx: np.ndarray | None, weights: Sequence[np.ndarray], num_layers: int, bidirectional: bool
) -> Iterator[list[_Cell]]:
    """Yield for each layer a list with the (slice of time, h0, weights) of each direction."""
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
