"""The operators `torch.ops.rnnfast.*`: schemas, fakes and implementations, nothing else.

One operator call is one layer, all its directions and all its time steps. Letters: T steps,
B batch, I input, H hidden, D directions, N rows of a packed batch. `x` is (T, B, I), (B, T, I)
with `batch_first`, or (N, I) with `batch_sizes`; `weights` is D times (w_ih, w_hh[, b_ih, b_hh]).
An `x` of int64 is one-hot input, (T, B), (B, T) or (N): W_ih x_t is then the column w_ih[:, x_t],
and no one-hot tensor is ever built. The operators carry no gradient of their own:
rnnfast.functional has the autograd.Function.
"""

import torch

from . import _C

_library = torch.library.Library("rnnfast", "DEF")
_tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
_library.define(
    "layer(Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, bool batch_first, "
    "bool relu, bool bias) -> Tensor",
    tags=_tags,
)
_library.define(
    "layer_backward(Tensor? dy, Tensor? dh_n, Tensor out, Tensor x, Tensor? h0, Tensor[] weights, "
    "Tensor? batch_sizes, bool batch_first, bool relu, bool bias, bool need_dx, bool need_dh0, "
    "bool need_dw) -> (Tensor, Tensor, Tensor[])",
    tags=_tags,
)

DTYPES = (torch.float32, torch.float64)
_forward = {torch.float32: _C.forward_float32, torch.float64: _C.forward_float64}
_backward = {torch.float32: _C.backward_float32, torch.float64: _C.backward_float64}


def _directions(weights, bias):
    """[(w_ih, w_hh, b_ih or None, b_hh or None), ...], one a direction."""
    if bias:
        return [weights[i : i + 4] for i in range(0, len(weights), 4)]
    return [[*weights[i : i + 2], None, None] for i in range(0, len(weights), 2)]


_NOTHING = (0, 0, 0)  # the _view of no tensor


def _rows(t):
    """`t` itself if its rows are contiguous, as the kernels want them, else a copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _address(t, offset=0):
    return 0 if t is None else t.data_ptr() + offset * t.element_size()


def _row_shape(x):
    return x.shape if is_one_hot(x) else x.shape[:-1]


def _new_dw_ih(w_ih, one_hot):
    """The gradient of w_ih; of a table of columns it is made column by column."""
    return w_ih.new_empty(w_ih.shape[::-1]).t() if one_hot else w_ih.new_empty(w_ih.shape)


def _view(t, batch_sizes, batch_first, offset=0):
    """The kernels' Sequence: address, elements from step to step, elements from row to row."""
    if t is None:
        return _NOTHING
    if batch_sizes is not None:
        return (_address(t, offset), 0, t.stride(0))
    step, row = (1, 0) if batch_first else (0, 1)
    return (_address(t, offset), t.stride(step), t.stride(row))


def _sizes(x, batch_sizes, batch_first):
    if batch_sizes is not None:
        return len(batch_sizes), int(batch_sizes[0])
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


def is_one_hot(x):
    return x.dtype == torch.int64


def _check(x, h0, directions, batch_sizes, batch_first):
    """Everything the kernels trust, but for the range of tokens. Returns (T, B, I, H)."""
    if x.dim() + is_one_hot(x) != (3 if batch_sizes is None else 2):
        wanted = "(T, B, I), or int64 (T, B)" if batch_sizes is None else "(N, I), or int64 (N)"
        raise RuntimeError(f"input must be {wanted}, got {x.dtype} {tuple(x.shape)}")
    if batch_sizes is not None:
        if batch_sizes.dim() != 1 or len(batch_sizes) == 0 or batch_sizes.dtype != torch.int64:
            raise RuntimeError(
                f"batch_sizes must be int64 (T), got {batch_sizes.dtype} {tuple(batch_sizes.shape)}"
            )
        if int(batch_sizes.sum()) != len(x):
            raise RuntimeError(
                f"batch_sizes must sum to the {len(x)} rows of input, got {int(batch_sizes.sum())}"
            )
    T, B = _sizes(x, batch_sizes, batch_first)
    like = directions[0][1] if is_one_hot(x) else x
    H, I = directions[0][1].shape[-1], directions[0][0].shape[-1] if is_one_hot(x) else x.shape[-1]  # noqa: E741
    for w_ih, w_hh, b_ih, b_hh in directions:
        _check_like("weight_ih", w_ih, (H, I), like)
        _check_like("weight_hh", w_hh, (H, H), like)
        if b_ih is not None:
            _check_like("bias_ih", b_ih, (H,), like)
            _check_like("bias_hh", b_hh, (H,), like)
    if h0 is not None:
        _check_like("hx", h0, (len(directions), B, H), like)
    return T, B, I, H


def _check_like(name, t, shape, like):
    if t.shape != shape:
        raise RuntimeError(f"{name} must be {tuple(shape)} for this input, got {tuple(t.shape)}")
    if t.dtype != like.dtype or t.device != like.device:
        raise RuntimeError(
            f"{name} must be {like.dtype} on {like.device} like the input and the weights, "
            f"got {t.dtype} on {t.device}"
        )


def _layer_cpu(x, h0, weights, batch_sizes, batch_first, relu, bias):
    one_hot = is_one_hot(x)
    x = x if one_hot else _rows(x)
    directions = _directions(weights, bias)
    T, B, inputs, hidden = _check(x, h0, directions, batch_sizes, batch_first)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    h0 = None if h0 is None else h0.contiguous()
    out = weights[0].new_empty((*_row_shape(x), len(directions) * hidden))
    view = _view(x, batch_sizes, batch_first)
    for d, (w_ih, *others) in enumerate(directions):
        w_ih = w_ih.t().contiguous() if one_hot else w_ih.contiguous()
        w_hh, b_ih, b_hh = (None if w is None else w.contiguous() for w in others)
        _forward[out.dtype](
            T,
            B,
            inputs,
            hidden,
            _address(batch_sizes),
            d == 1,
            relu,
            torch.get_num_threads(),
            _NOTHING if one_hot else view,
            _address(w_ih),
            _address(w_hh),
            _address(b_ih),
            _address(b_hh),
            0 if h0 is None else _address(h0, d * B * hidden),
            _view(out, batch_sizes, batch_first, d * hidden),
            view if one_hot else _NOTHING,
            _address(w_ih),
        )
    return out


def _layer_backward_cpu(
    dy,
    dh_n,
    out,
    x,
    h0,
    weights,
    batch_sizes,
    batch_first,
    relu,
    bias,
    need_dx,
    need_dh0,
    need_dw,
):
    one_hot = is_one_hot(x)
    x = x if one_hot else _rows(x)
    directions = _directions(weights, bias)
    T, B, inputs, hidden = _check(x, h0, directions, batch_sizes, batch_first)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    h0 = None if h0 is None else h0.contiguous()
    _check_like("out", out, (*_row_shape(x), len(directions) * hidden), weights[0])
    out = _rows(out)
    if dy is not None:
        _check_like("the gradient of output", dy, out.shape, out)
        dy = _rows(dy)
    if dh_n is not None:
        _check_like("the gradient of h_n", dh_n, (len(directions), B, hidden), out)
        dh_n = dh_n.contiguous()
    dx = out.new_empty(x.shape if need_dx else 0)
    dh0 = out.new_empty(h0.shape if need_dh0 else 0)
    view = _view(x, batch_sizes, batch_first)
    # The kernels' own, in the layout of x.
    step, row = (0, 1) if batch_sizes is not None else (1, T) if batch_first else (B, 1)
    dpre = (0, step * hidden, row * hidden)
    gradients = []
    for d, (w_ih, w_hh, *_) in enumerate(directions):
        dw_ih = _new_dw_ih(w_ih, one_hot) if need_dw else None
        dw_hh = w_hh.new_empty(w_hh.shape) if need_dw else None
        db = out.new_empty(hidden) if need_dw and bias else None
        w_ih, w_hh = w_ih.contiguous(), w_hh.contiguous()
        _backward[out.dtype](
            T,
            B,
            inputs,
            hidden,
            _address(batch_sizes),
            d == 1,
            relu,
            torch.get_num_threads(),
            _view(out, batch_sizes, batch_first, d * hidden),
            _address(w_hh),
            _view(dy, batch_sizes, batch_first, d * hidden),
            0 if dh_n is None else _address(dh_n, d * B * hidden),
            dpre,
            _address(dh0, d * B * hidden) if need_dh0 else 0,
            _NOTHING if one_hot else view,
            _address(w_ih),
            0 if h0 is None else _address(h0, d * B * hidden),
            _view(dx if need_dx else None, batch_sizes, batch_first),
            d > 0,
            0 if one_hot else _address(dw_ih),
            _address(dw_hh),
            _address(db),
            view if one_hot else _NOTHING,
            _address(dw_ih) if one_hot else 0,
        )
        if need_dw:
            gradients += [dw_ih, dw_hh, *([db, db.clone()] if bias else [])]
    return dx, dh0, gradients


_library.impl("layer", _layer_cpu, "CPU")
_library.impl("layer_backward", _layer_backward_cpu, "CPU")


@torch.library.register_fake("rnnfast::layer", lib=_library)
def _(x, h0, weights, batch_sizes, batch_first, relu, bias):
    directions = _directions(weights, bias)
    return weights[0].new_empty((*_row_shape(x), len(directions) * directions[0][1].shape[1]))


@torch.library.register_fake("rnnfast::layer_backward", lib=_library)
def _(
    dy,
    dh_n,
    out,
    x,
    h0,
    weights,
    batch_sizes,
    batch_first,
    relu,
    bias,
    need_dx,
    need_dh0,
    need_dw,
):
    dx = out.new_empty(x.shape if need_dx else 0)
    dh0 = out.new_empty(h0.shape if need_dh0 else 0)
    dw = []
    for w_ih, *others in _directions(weights, bias) if need_dw else []:
        dw.append(_new_dw_ih(w_ih, is_one_hot(x)))
        dw += [w.new_empty(w.shape) for w in others if w is not None]
    return dx, dh0, dw


# Looked up once: through torch.ops it costs microseconds a call.
layer = torch.ops.rnnfast.layer.default
layer_backward = torch.ops.rnnfast.layer_backward.default
