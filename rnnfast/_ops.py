"""The operators `torch.ops.rnnfast.*`: schemas, fakes and implementations, nothing else.

One operator call is one layer, all its directions and all its time steps. Letters: T steps,
B batch, I input, H hidden, D directions, N rows of a packed batch. `x` is (T, B, I), (B, T, I)
with `batch_first`, or (N, I) with `batch_sizes`; `weights` is D times (w_ih, w_hh[, b_ih, b_hh]).
The operators carry no gradient of their own: rnnfast.functional has the autograd.Function.
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


def _rows(t):
    """`t` itself if its rows are contiguous, as the kernels want them, else a copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _address(t, offset=0):
    return 0 if t is None else t.data_ptr() + offset * t.element_size()


def _view(t, batch_sizes, batch_first, offset=0):
    """The kernels' Sequence: address, elements from step to step, elements from row to row."""
    if t is None:
        return (0, 0, 0)
    if batch_sizes is not None:
        return (_address(t, offset), 0, t.stride(0))
    step, row = (1, 0) if batch_first else (0, 1)
    return (_address(t, offset), t.stride(step), t.stride(row))


def _sizes(x, batch_sizes, batch_first):
    if batch_sizes is not None:
        return len(batch_sizes), int(batch_sizes[0])
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


def _check(x, h0, directions, batch_sizes, batch_first):
    """Everything the kernels trust. Returns (T, B, H)."""
    if x.dim() != (3 if batch_sizes is None else 2):
        wanted = "(T, B, I)" if batch_sizes is None else "(N, I), packed"
        raise RuntimeError(f"input must be {wanted}, got {tuple(x.shape)}")
    T, B = _sizes(x, batch_sizes, batch_first)
    if batch_sizes is not None and (
        batch_sizes.dtype != torch.int64 or int(batch_sizes.sum()) != len(x)
    ):
        raise RuntimeError(
            f"batch_sizes must be int64 and sum to the {len(x)} rows of input, "
            f"got {batch_sizes.dtype} and {int(batch_sizes.sum())}"
        )
    H = directions[0][1].shape[-1]
    shapes = ((H, x.shape[-1]), (H, H), (H,), (H,))
    for weights in directions:
        for name, w, shape in zip(
            ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, shapes, strict=True
        ):
            if w is not None:
                _check_like(name, w, shape, x)
    if h0 is not None:
        _check_like("hx", h0, (len(directions), B, H), x)
    return T, B, H


def _check_like(name, t, shape, x):
    if t.shape != shape:
        raise RuntimeError(f"{name} must be {tuple(shape)} for this input, got {tuple(t.shape)}")
    if t.dtype != x.dtype or t.device != x.device:
        raise RuntimeError(
            f"{name} must be {x.dtype} on {x.device} like the input, got {t.dtype} on {t.device}"
        )


def _layer_cpu(x, h0, weights, batch_sizes, batch_first, relu, bias):
    x = _rows(x)
    directions = _directions([w.contiguous() for w in weights], bias)
    T, B, hidden = _check(x, h0, directions, batch_sizes, batch_first)
    h0 = None if h0 is None else h0.contiguous()
    out = x.new_empty((*x.shape[:-1], len(directions) * hidden))
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(directions):
        _forward[x.dtype](
            T,
            B,
            x.shape[-1],
            hidden,
            _address(batch_sizes),
            d == 1,
            relu,
            torch.get_num_threads(),
            _view(x, batch_sizes, batch_first),
            _address(w_ih),
            _address(w_hh),
            _address(b_ih),
            _address(b_hh),
            0 if h0 is None else _address(h0, d * B * hidden),
            _view(out, batch_sizes, batch_first, d * hidden),
        )
    return out


def _previous_hidden(h, h0, batch_sizes, batch_first, reverse):
    """h_{t-1} (h_{t+1} if reverse) beside every row of `h`, h0 or zeros at a row's first step."""
    if batch_sizes is None:
        dim = 1 if batch_first else 0
        first = h.new_zeros(h.select(dim, 0).shape) if h0 is None else h0
        kept = h.narrow(dim, 1 if reverse else 0, h.shape[dim] - 1)
        parts = [kept, first.unsqueeze(dim)] if reverse else [first.unsqueeze(dim), kept]
        return torch.cat(parts, dim)
    here = torch.repeat_interleave(batch_sizes)  # the step of every row
    rows = torch.arange(len(h))
    B = int(batch_sizes[0])
    first = h.new_zeros(B, h.shape[-1]) if h0 is None else h0
    table = torch.cat([h, first])
    if reverse:
        following = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)])
        row_in_step = rows - (batch_sizes.cumsum(0) - batch_sizes)[here]
        index = torch.where(
            row_in_step < following[here], rows + batch_sizes[here], len(h) + row_in_step
        )
    else:
        preceding = torch.cat([batch_sizes[:1], batch_sizes[:-1]])
        index = torch.where(here == 0, len(h) + rows, rows - preceding[here])
    return table[index]


def _weight_hh_gradient(dpre, h, h0, batch_sizes, batch_first, reverse):
    """dpre^T h_prev, summed over every row of every step."""
    if batch_sizes is None and not batch_first and len(dpre) > 1:  # slices of h are matrices as is
        later, first, earlier = (
            (dpre[:-1], dpre[-1], h[1:]) if reverse else (dpre[1:], dpre[0], h[:-1])
        )
        dw = torch.mm(later.flatten(0, 1).t(), earlier.flatten(0, 1))
        return dw if h0 is None else dw.addmm_(first.t(), h0)
    previous = _previous_hidden(h, h0, batch_sizes, batch_first, reverse)
    return torch.mm(dpre.flatten(0, -2).t(), previous.flatten(0, -2))


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
    directions = _directions([w.contiguous() for w in weights], bias)
    T, B, hidden = _check(x, h0, directions, batch_sizes, batch_first)
    _check_like("out", out, (*x.shape[:-1], len(directions) * hidden), x)
    out = _rows(out)
    if dy is not None:
        _check_like("the gradient of output", dy, out.shape, x)
        dy = _rows(dy)
    if dh_n is not None:
        _check_like("the gradient of h_n", dh_n, (len(directions), B, hidden), x)
        dh_n = dh_n.contiguous()
    dx = x.new_empty(x.shape if need_dx else 0)
    dh0 = x.new_empty(h0.shape if need_dh0 else 0)
    gradients = []
    for d, (w_ih, w_hh, *_) in enumerate(directions):
        dpre = x.new_empty((*x.shape[:-1], hidden))
        _backward[x.dtype](
            T,
            B,
            hidden,
            _address(batch_sizes),
            d == 1,
            relu,
            torch.get_num_threads(),
            _view(out, batch_sizes, batch_first, d * hidden),
            _address(w_hh),
            _view(dy, batch_sizes, batch_first, d * hidden),
            0 if dh_n is None else _address(dh_n, d * B * hidden),
            _view(dpre, batch_sizes, batch_first),
            _address(dh0, d * B * hidden) if need_dh0 else 0,
        )
        rows = dpre.flatten(0, -2)
        if need_dx:
            flat = dx.view(-1, x.shape[-1])
            if d == 0:
                torch.mm(rows, w_ih, out=flat)
            else:
                flat.addmm_(rows, w_ih)
        if need_dw:
            h = out[..., d * hidden : (d + 1) * hidden]
            gradients.append(torch.mm(rows.t(), x.flatten(0, -2)))
            gradients.append(
                _weight_hh_gradient(
                    dpre, h, None if h0 is None else h0[d], batch_sizes, batch_first, d == 1
                )
            )
            if bias:
                db = rows.sum(0)
                gradients += [db, db.clone()]
    return dx, dh0, gradients


_library.impl("layer", _layer_cpu, "CPU")
_library.impl("layer_backward", _layer_backward_cpu, "CPU")


@torch.library.register_fake("rnnfast::layer", lib=_library)
def _(x, h0, weights, batch_sizes, batch_first, relu, bias):
    directions = _directions(weights, bias)
    return x.new_empty((*x.shape[:-1], len(directions) * directions[0][1].shape[1]))


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
    dx = x.new_empty(x.shape if need_dx else 0)
    dh0 = x.new_empty(h0.shape if need_dh0 else 0)
    return dx, dh0, [w.new_empty(w.shape) for w in weights] if need_dw else []
