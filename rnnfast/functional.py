"""The stateless RNN: :func:`rnn`, and the autograd Function under it."""

import torch
from torch import _VF
from torch.autograd import forward_ad
from torch.nn import functional as F

from . import _ops

__all__ = ["rnn"]


def rnn(
    input,
    hx,
    weights,
    *,
    num_layers=1,
    nonlinearity="tanh",
    bidirectional=False,
    batch_first=False,
    dropout=0.0,
    training=False,
    batch_sizes=None,
):
    """Elman RNN, ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` (Elman 1990), as a function.

    With T time steps, B sequences, I inputs, H hidden units, L layers, D directions:

    Args:
        input: (T, B, I); (B, T, I) with ``batch_first``; or, with ``batch_sizes``, the data of a
            ``PackedSequence``, (N, I). Any strides. Or one-hot input, given as int64 tokens in
            [0, I): (T, B), (B, T) or (N). The product with ``w_ih`` is then a look-up of its
            columns, forward and backward, and no one-hot tensor is built.
        hx: initial state (L * D, B, H), or None for zeros.
        weights: flat list, for every layer and direction ``w_ih`` (H, I), ``w_hh`` (H, H) and, all
            or none, ``b_ih`` (H), ``b_hh`` (H): the order of ``nn.RNN``. In layers after the first
            I is D * H.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        dropout: probability of zeroing an output of every layer but the last, if ``training``.
        batch_sizes: int64 CPU tensor (T): rows at each step of a packed batch, never increasing.

    Returns:
        ``(output, h_n)``: the last layer's states, (T, B, D * H) in the layout of ``input``, and
        each layer's final state (L * D, B, H).

    float32 and float64 on the CPU run on rnnfast's kernels. Other dtypes and devices, autocast,
    torch.func transforms and forward-mode AD run on torch's own operators, with the same results.
    Differentiable, twice as well.

    Raises:
        ValueError: an unknown nonlinearity, or a number of weights that does not fit.
        RuntimeError: sizes, dtypes or devices that do not fit one another.
        IndexError: a token that is not in [0, I).
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    weights = list(weights)
    D = 2 if bidirectional else 1
    per_direction = len(weights) // (num_layers * D)
    if per_direction not in (2, 4) or len(weights) != per_direction * num_layers * D:
        raise ValueError(
            f"weights must hold 2 or 4 tensors for each of {num_layers} layers x {D} directions, "
            f"got {len(weights)}"
        )
    bias = per_direction == 4
    relu = nonlinearity == "relu"
    if batch_sizes is None and input.dim() > 1 and input.shape[1 if batch_first else 0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if not _has_kernel(input, weights[0].dtype):
        return _torch_rnn(
            input,
            hx,
            weights,
            batch_sizes,
            batch_first,
            relu,
            bias,
            num_layers,
            bidirectional,
            dropout,
            training,
        )
    device = input.device  # an operator would be run by whatever device is named last
    for w in weights:
        if w.device != device:
            raise RuntimeError(f"weights must be on {device} like the input, got {w.device}")
    if hx is not None:
        if hx.device != device:
            raise RuntimeError(f"hx must be on {device} like the input, got {hx.device}")
        if len(hx) != num_layers * D:
            raise RuntimeError(f"hx must be ({num_layers * D}, B, H), got {tuple(hx.shape)}")
    if num_layers == 1:
        return _layer(input, hx, batch_sizes, batch_first, relu, bias, weights)

    per_layer = per_direction * D
    states = []
    for layer in range(num_layers):
        if layer > 0 and training and dropout > 0:
            input = F.dropout(input, dropout)
        h0 = None if hx is None else hx[layer * D : (layer + 1) * D]
        layer_weights = weights[layer * per_layer : (layer + 1) * per_layer]
        input, h_n = _layer(input, h0, batch_sizes, batch_first, relu, bias, layer_weights)
        states.append(h_n)
    return input, torch.cat(states)


def _has_kernel(input, dtype):
    return (
        input.device.type == "cpu"
        and dtype in _ops.DTYPES
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
    )


def _torch_rnn(
    input,
    hx,
    weights,
    batch_sizes,
    batch_first,
    relu,
    bias,
    num_layers=1,
    bidirectional=False,
    dropout=0.0,
    training=False,
):
    """The same on torch's operators: what the kernels do not cover, and the second derivative."""
    if _ops.is_one_hot(input):
        input = F.one_hot(input, weights[0].shape[-1]).to(weights[0].dtype)
    if hx is None:
        B = input.shape[0 if batch_first else 1] if batch_sizes is None else int(batch_sizes[0])
        D = 2 if bidirectional else 1
        hx = input.new_zeros(num_layers * D, B, weights[1].shape[-1])
    call = _VF.rnn_relu if relu else _VF.rnn_tanh
    common = (hx, weights, bias, num_layers, dropout, training, bidirectional)
    if batch_sizes is None:
        return call(input, *common, batch_first)
    return call(input, batch_sizes, *common)


def _layer(x, h0, batch_sizes, batch_first, relu, bias, weights):
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (h0 is not None and h0.requires_grad)
        or any(w.requires_grad for w in weights)
    ):
        return _Layer.apply(x, h0, batch_sizes, batch_first, relu, bias, *weights)
    out = _ops.layer(x, h0, weights, batch_sizes, batch_first, relu, bias)
    return out, _final_states(out, weights[1].shape[0], batch_sizes, batch_first)


def _final_states(out, H, batch_sizes, batch_first):
    """Each direction's last computed state, (D, B, H), copied out of `out`."""
    if batch_sizes is None:
        if out.shape[-1] == H and not batch_first:
            return out[-1:].clone()
        last, first = (out[:, -1], out[:, 0]) if batch_first else (out[-1], out[0])
    else:
        first = out[: batch_sizes[0]]
        last_step = (batch_sizes.unsqueeze(1) > torch.arange(len(first))).sum(0) - 1
        starts = batch_sizes.cumsum(0) - batch_sizes
        last = out[starts[last_step] + torch.arange(len(first))]
    if out.shape[-1] == H:
        return last.unsqueeze(0).clone(memory_format=torch.contiguous_format)
    return torch.stack([last[:, :H], first[:, H:]])


class _Layer(torch.autograd.Function):
    """One layer, all its directions, all time steps; saves its outputs and nothing per step."""

    # No setup_context: with it every call binds its arguments through inspect.signature, 45 us, and
    # torch.func, which alone needs it, does not come this way.
    @staticmethod
    def forward(ctx, x, h0, batch_sizes, batch_first, relu, bias, *weights):
        out = _ops.layer(x, h0, weights, batch_sizes, batch_first, relu, bias)
        ctx.save_for_backward(out, x, h0, batch_sizes, *weights)
        ctx.batch_first, ctx.relu, ctx.bias = batch_first, relu, bias
        ctx.set_materialize_grads(False)
        return out, _final_states(out, weights[1].shape[0], batch_sizes, batch_first)

    @staticmethod
    def backward(ctx, dy, dh_n):
        if dy is None and dh_n is None:
            return (None,) * len(ctx.needs_input_grad)
        out, x, h0, batch_sizes, *weights = ctx.saved_tensors
        need_dx, need_dh0, *_ = ctx.needs_input_grad
        needs_dw = ctx.needs_input_grad[6:]
        if torch.is_grad_enabled():  # create_graph: these gradients will be differentiated again
            return _differentiable_backward(ctx, dy, dh_n, x, h0, batch_sizes, weights)
        dx, dh0, dw = _ops.layer_backward(
            dy,
            dh_n,
            out,
            x,
            h0,
            weights,
            batch_sizes,
            ctx.batch_first,
            ctx.relu,
            ctx.bias,
            need_dx,
            need_dh0,
            any(needs_dw),
        )
        dw = [g if need else None for g, need in zip(dw or weights, needs_dw, strict=True)]
        return (dx if need_dx else None, dh0 if need_dh0 else None, None, None, None, None, *dw)


def _differentiable_backward(ctx, dy, dh_n, x, h0, batch_sizes, weights):
    """The same gradients as a graph of torch operators, from a second forward."""
    D = len(weights) // (4 if ctx.bias else 2)
    outputs = _torch_rnn(
        x,
        h0,
        weights,
        batch_sizes,
        ctx.batch_first,
        ctx.relu,
        ctx.bias,
        bidirectional=D == 2,
    )
    given = [(o, g) for o, g in zip(outputs, (dy, dh_n), strict=True) if g is not None]
    inputs = (x, h0, None, None, None, None, *weights)
    wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
    gradients = torch.autograd.grad(
        [o for o, _ in given],
        [inputs[i] for i in wanted],
        [g for _, g in given],
        create_graph=True,
        allow_unused=True,
    )
    result = [None] * len(inputs)
    for i, g in zip(wanted, gradients, strict=True):
        result[i] = g
    return tuple(result)
