"""The RNN, the GRU and the LSTM as functions of their weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .. import _ops
from ._run import run_rnn
from ._shared import check_batch_sizes, check_hx, check_reset


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Iterable[Tensor],
    *,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run an Elman RNN, ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` (Elman 1990).

    This is :class:`rnnfast.FastRNN` as a function of its weights. With T time steps, B sequences,
    I inputs, H hidden units, L layers and D directions:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``. With ``batch_sizes`` it is the data of
            a ``PackedSequence``, (N, I). Strides are arbitrary. One-hot input is given as int64
            tokens in [0, I) of shape (T, B), (B, T) or (N): the product with ``w_ih`` is then a
            look-up of its columns, forward and backward, and no one-hot tensor is built.
        hx: initial state (L * D, B, H), or None for zeros.
        weights: flat list in the order of ``nn.RNN``. For each layer and direction it holds
            ``w_ih`` (H, I), ``w_hh`` (H, H) and, for all or for none, ``b_ih`` (H) and ``b_hh``
            (H). In layers after the first, I is D * H.
        num_layers: L.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bidirectional: whether D is 2.
        batch_first: whether ``input`` and ``output`` are (B, T, ...).
        dropout: probability of zeroing an output of each layer except the last, in training.
        training: whether dropout is active.
        batch_sizes: int64 CPU tensor (T), the number of rows at each step of a packed batch. It
            never increases.
        reset: bool tensor with one element for each row of ``input``: (T, B), (B, T) or (N), or
            None. Where it is true, the state of that sequence is zero before that time step, and no
            gradient passes. A reverse direction enters the part of a sequence between two resets at
            its last step, so that every part is as if it were run alone.

    Returns:
        ``(output, h_n)``: the states of the last layer, (T, B, D * H) in the layout of ``input``,
        and the final state of each layer, (L * D, B, H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels. bfloat16 and float16
    compute in float32. Under autocast its dtype is used. CUDA devices use rnnfast's kernels as
    :func:`rnnfast.set_cuda_kernel` says. There, a token that is not in [0, I) fails an assertion
    on the device.

    Other dtypes and devices, transforms of torch.func, forward-mode AD, ``torch.jit.trace`` and
    weights with a ``__torch_function__`` of their own run on torch's operators, with the same
    results. Under ``vmap`` the time steps run one by one. The result can be differentiated twice,
    or once if it runs on cuDNN.

    Raises:
        TypeError: ``input``, ``hx``, a weight or ``batch_sizes`` is not a tensor.
        ValueError: the nonlinearity is unknown, ``dropout`` is not in [0, 1], there is no layer, or
            the number of weights or ``reset`` does not fit.
        RuntimeError: sizes, dtypes or devices do not fit one another.
        IndexError: a token is not in [0, I).

    Example:
        >>> import torch
        >>> from rnnfast.functional import rnn
        >>> w_ih, w_hh = torch.randn(20, 10), torch.randn(20, 20)
        >>> output, h_n = rnn(torch.randn(5, 3, 10), None, [w_ih, w_hh])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    _check_tensors(dropout, input, hx)
    call = (input, hx, list(weights), num_layers, bidirectional, dropout if training else 0.0)
    options = (batch_first, nonlinearity)
    return _run(_ops.RNNDescriptor, *options, *call, batch_sizes, reset)


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Iterable[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a GRU, as ``nn.GRU`` does (Cho et al. 2014, arXiv:1406.1078)::

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t (W_hn h_{t-1} + b_hn))
        h_t = (1 - z_t) n_t + z_t h_{t-1}

    This is :class:`rnnfast.FastGRU` as a function of its weights. With T time steps, B sequences,
    I inputs, H hidden units, L layers and D directions:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``. With ``batch_sizes`` it is the data of
            a ``PackedSequence``, (N, I). One-hot input may be given as int64 tokens in [0, I), as
            for :func:`rnn`.
        hx: initial state (L * D, B, H), or None for zeros.
        weights: flat list in the order of ``nn.GRU``. For each layer and direction it holds
            ``w_ih`` (3 * H, I), ``w_hh`` (3 * H, H) and, for all or for none, ``b_ih`` (3 * H) and
            ``b_hh`` (3 * H), with the rows of r, z and n. In layers after the first, I is D * H.
        num_layers, bidirectional, batch_first, dropout, training, batch_sizes, reset: as for
            :func:`rnn`.

    Returns:
        ``(output, h_n)``: the states of the last layer, (T, B, D * H) in the layout of ``input``,
        and the final state of each layer, (L * D, B, H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels. CUDA devices run on
    torch's operator, which means cuDNN. What else runs on torch's operators is as for :func:`rnn`.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError: as for :func:`rnn`.

    Example:
        >>> import torch
        >>> from rnnfast.functional import gru
        >>> w_ih, w_hh = torch.randn(60, 10), torch.randn(60, 20)
        >>> output, h_n = gru(torch.randn(5, 3, 10), None, [w_ih, w_hh])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """
    _check_tensors(dropout, input, hx)
    call = (input, hx, list(weights), num_layers, bidirectional, dropout if training else 0.0)
    return _run(_ops.GatedDescriptor, batch_first, "gru", *call, batch_sizes, reset)


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Iterable[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM, as ``nn.LSTM`` does (Hochreiter & Schmidhuber 1997; Gers et al. 2000)::

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)
        f_t = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        o_t = sigmoid(W_io x_t + b_io + W_ho h_{t-1} + b_ho)
        c_t = f_t c_{t-1} + i_t g_t
        h_t = o_t tanh(c_t)

    This is :class:`rnnfast.FastLSTM` as a function of its weights. With T time steps, B sequences,
    I inputs, H hidden units, L layers and D directions:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``. With ``batch_sizes`` it is the data of
            a ``PackedSequence``, (N, I). One-hot input may be given as int64 tokens in [0, I), as
            for :func:`rnn`.
        hx: initial states ``(h_0, c_0)``, each (L * D, B, H), or None for zeros.
        weights: flat list in the order of ``nn.LSTM``. For each layer and direction it holds
            ``w_ih`` (4 * H, I), ``w_hh`` (4 * H, H) and, for all or for none, ``b_ih`` (4 * H) and
            ``b_hh`` (4 * H), with the rows of i, f, g and o. In layers after the first, I is D * H.
            With the projections of ``nn.LSTM(proj_size=P)``, the last weight of each direction is
            ``w_hr`` (P, H), and h has P elements in place of H.
        num_layers, bidirectional, batch_first, dropout, training, batch_sizes, reset: as for
            :func:`rnn`. A reset sets both states to zero.

    Returns:
        ``(output, (h_n, c_n))``: the states h of the last layer, (T, B, D * H) in the layout of
        ``input``, and the final states of each layer, each (L * D, B, H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels. CUDA devices and
    projections run on torch's operator, which means cuDNN on CUDA devices. What else runs on
    torch's operators is as for :func:`rnn`.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError: as for :func:`rnn`.

    Example:
        >>> import torch
        >>> from rnnfast.functional import lstm
        >>> w_ih, w_hh = torch.randn(80, 10), torch.randn(80, 20)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10), None, [w_ih, w_hh])
        >>> output.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """
    if hx is not None:
        is_pair = isinstance(hx, (tuple, list)) and len(hx) == 2
        if not is_pair or not all(isinstance(state, torch.Tensor) for state in hx):
            raise TypeError(f"hx must be a pair of tensors (h_0, c_0), got {type(hx).__name__}")
        hx = (hx[0], hx[1])
    _check_tensors(dropout, input)
    call = (input, hx, list(weights), num_layers, bidirectional, dropout if training else 0.0)
    return _run(_ops.GatedDescriptor, batch_first, "lstm", *call, batch_sizes, reset)


def _check_tensors(dropout, input, hx=None):
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be in [0, 1], got {dropout}")
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a tensor, got {type(input).__name__}")
    if hx is not None and not isinstance(hx, torch.Tensor):
        raise TypeError(f"hx must be a tensor, got {type(hx).__name__}")


def _run(
    describe, batch_first, cell, input, hx, weights, num_layers, bidirectional, dropout,
    batch_sizes, reset,
):  # fmt: skip
    """Check what the cells have in common, and run the one that ``describe`` describes."""
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    D = 2 if bidirectional else 1
    count = num_layers * D
    descriptor = describe(num_layers, D, batch_first, cell, len(weights) > 3 * count)
    expected = descriptor.weights_per_layer * num_layers
    if cell == "lstm" and len(weights) == expected + count:
        expected = len(weights)  # with projections
    if len(weights) != expected:
        numbers = "2 or 4 (3 or 5 with projections)" if cell == "lstm" else "2 or 4"
        raise ValueError(
            f"weights must hold {numbers} tensors for each of {num_layers} layers x {D} "
            f"directions, got {len(weights)}"
        )
    rows = _ops.shape_of_rows(input, batch_sizes)
    if batch_sizes is None:
        B = rows[0 if batch_first else 1]
    else:
        B = check_batch_sizes(batch_sizes, rows[0])
    _check_weights(weights, input, descriptor)
    if B is not None:
        check_hx(hx, weights, B, descriptor)
    if reset is not None:
        reset = check_reset(reset, rows)
    return run_rnn(input, hx, weights, batch_sizes, descriptor, dropout, reset=reset)


def _check_weights(weights, input, descriptor):
    """Raise an error that names the weight whose shape fits neither ``input`` nor the others.

    torch's operators would broadcast a bias of one element, and their messages name no argument.
    """
    for w in weights:
        if not isinstance(w, torch.Tensor):
            raise TypeError(f"weights must be tensors, got {type(w).__name__}")
    L, D, G = descriptor.num_layers, descriptor.directions, descriptor.gates
    per, biases = len(weights) // (L * D), 2 if descriptor.bias else 0
    is_projected, shape = per > 2 + biases, weights[1].shape
    if len(shape) != 2 or shape[0] % G or (shape[0] != G * shape[1] and not is_projected):
        rows, columns = "H" if G == 1 else f"{G} * H", "P" if is_projected else "H"
        raise RuntimeError(f"weight_hh_l0 must be ({rows}, {columns}), got {tuple(shape)}")
    rows, P = shape  # P is the size of h, which is H without projections
    inputs = (weights[0] if _ops.is_one_hot(input) else input).shape[-1:]
    others = [(rows, P), *[(rows,)] * biases, *[(P, rows // G)] * is_projected]
    wanted = [(rows, *inputs), *others] * D + [(rows, D * P), *others] * (D * (L - 1))
    found = [w.shape for w in weights]
    if found != wanted:
        n = next(n for n, w in enumerate(weights) if w.shape != wanted[n])
        kinds = ["weight_ih", "weight_hh", *["bias_ih", "bias_hh"][:biases], "weight_hr"]
        layer, direction = divmod(n // per, D)
        name = f"{kinds[n % per]}_l{layer}" + "_reverse" * direction
        raise RuntimeError(
            f"{name} must be {tuple(wanted[n])} to fit input and weight_hh_l0, got "
            f"{tuple(found[n])}"
        )
