"""The operators `torch.ops.rnnfast.*`: schemas, fakes and implementations, nothing else.

One operator call is a stack of layers, all their directions and all time steps. Letters: T steps,
B batch, I input, H hidden, L layers, D directions, N rows of a packed batch. `x` is (T, B, I),
(B, T, I) with `batch_first`, or (N, I) with `batch_sizes`; `weights` is L * D times
(w_ih, w_hh[, b_ih, b_hh]). An `x` of int64 is one-hot input, (T, B), (B, T) or (N): W_ih x_t is
then the column w_ih[:, x_t], and no one-hot tensor is ever built. `outs` are the outputs of every
layer with `keep`, as the backward needs them, else of the last one alone.

`linear_cross_entropy` is what csrc/loss.h says: with `reduction` "none" `loss` is (N,) and the
gradients are for `dloss`, (N,); with "mean" or "sum" it is (), the gradients are of that, and there
is no `dloss`. A gradient that is not wanted is an empty tensor.

`dropout` is what csrc/dropout.h says, of a contiguous result; `seed` is int64 ().

The operators carry no gradient of their own: rnnfast.functional has the autograd.Functions.
"""

import torch

from . import _C, _ops_cuda
from ._torch import disable_dynamo, is_dispatcher_observed

_library = torch.library.Library("rnnfast", "DEF")
_tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
_library.define(
    "rnn(Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, int num_layers, "
    "bool batch_first, bool relu, bool bias, bool keep) -> (Tensor[] outs, Tensor h_n)",
    tags=_tags,
)
_library.define(
    "rnn_backward(Tensor? dy, Tensor? dh_n, Tensor[] outs, Tensor x, Tensor? h0, Tensor[] weights, "
    "Tensor? batch_sizes, int num_layers, bool batch_first, bool relu, bool bias, bool need_dx, "
    "bool need_dh0, bool need_dw) -> (Tensor dx, Tensor dh0, Tensor[] dw)",
    tags=_tags,
)
_library.define(
    "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, "
    "Tensor? dloss, str reduction, bool need_dx, bool need_dw, bool need_db) "
    "-> (Tensor loss, Tensor dx, Tensor dw, Tensor db)",
    tags=_tags,
)
_library.define("dropout(Tensor x, Tensor seed, float p) -> Tensor", tags=_tags)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def has_kernel(device_type, dtype):
    if device_type == "cuda":
        return _ops_cuda.has_kernel(dtype)
    return device_type == "cpu" and dtype in DTYPES


def has_dropout_kernel(device_type, dtype):
    return device_type == "cpu" and dtype in DTYPES


def has_loss_kernel(device_type, dtype):
    return device_type == "cpu" and dtype in (torch.float32, torch.float64)


def is_one_hot(x):
    return x.dtype is torch.int64


def _contiguous(t):
    return t if t is None or t.is_contiguous() else t.contiguous()


def _rows(t):
    """`t` itself if its rows are contiguous, as the kernels want them, else a copy."""
    return t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _inputs(x, h0, weights, batch_sizes, num_layers, bias):
    """The layout that the kernels want, without a copy where it is the layout already."""
    if is_one_hot(x):  # the first W_ih as tables
        weights, first = list(weights), len(weights) // num_layers
        for n in range(0, first, 4 if bias else 2):
            weights[n] = weights[n].t()
    else:
        x = _rows(x)
    weights = [w if w.is_contiguous() else w.contiguous() for w in weights]
    return x, _contiguous(h0), weights, _contiguous(batch_sizes)


def _new_outputs(x, weights, batch_sizes, num_layers, batch_first, bias):
    """An output of every layer, for those of a stack may run at the same time; and h_n."""
    like = weights[1]
    H = like.shape[-1]
    D = len(weights) // (num_layers * (4 if bias else 2))
    rows = x.shape if is_one_hot(x) else x.shape[:-1]
    B = rows[not batch_first] if batch_sizes is None else int(batch_sizes[0])
    shape = (*rows, D * H)
    outs = [_C.empty(shape, like) for _ in range(num_layers)]
    return outs, _C.empty((num_layers * D, B, H), like)


def _rnn_cpu(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    if x.dim() + is_one_hot(x) != (3 if batch_sizes is None else 2):
        wanted = "(T, B, I), or int64 (T, B)" if batch_sizes is None else "(N, I), or int64 (N)"
        raise RuntimeError(f"input must be {wanted}, got {x.dtype} {tuple(x.shape)}")
    outs, h_n = _new_outputs(x, weights, batch_sizes, num_layers, batch_first, bias)
    x, h0, weights, batch_sizes = _inputs(x, h0, weights, batch_sizes, num_layers, bias)
    threads = torch.get_num_threads()
    options = (num_layers, batch_first, relu, bias, threads)
    _C.forward(x, h0, weights, batch_sizes, *options, outs, h_n)
    return outs if keep else outs[-1:], h_n


def _gradients(dy, dh_n, outs, x, h0, weights, batch_sizes, *options):
    """(dx or None, dh0 or None, dw or [])."""
    num_layers, batch_first, relu, bias, need_dx, need_dh0, need_dw = options
    x, h0, weights, batch_sizes = _inputs(x, h0, weights, batch_sizes, num_layers, bias)
    wanted = [x if need_dx else None, h0 if need_dh0 else None, *(weights if need_dw else ())]
    dx, dh0, *dw = _C.empty_like(wanted)
    per = 4 if bias else 2
    # Layers of two directions hand on their gradients whole: one is read, the next is written.
    bidirectional = len(weights) == 2 * per * num_layers
    count = min(2, num_layers - 1) if bidirectional else 0
    between = [_C.empty(outs[0].shape, outs[0]) for _ in range(count)]
    threads = torch.get_num_threads()
    options = (num_layers, batch_first, relu, bias, threads, dx, dh0, dw, between)
    outs, dy = [_rows(out) for out in outs], _rows(dy)
    _C.backward(dy, _contiguous(dh_n), outs, x, h0, weights, batch_sizes, *options)
    if dw and is_one_hot(x):
        for n in range(0, len(dw) // num_layers, per):
            dw[n] = dw[n].t()
    return dx, dh0, dw


def _rnn_backward_cpu(dy, dh_n, outs, *arguments):
    """For the operator, which returns an empty tensor for a gradient that is not wanted."""
    dx, dh0, dw = _gradients(dy, dh_n, outs, *arguments)
    nothing = outs[0].new_empty
    return nothing(0) if dx is None else dx, nothing(0) if dh0 is None else dh0, dw


# After a graph break Dynamo would go on to trace these.
_library.impl("rnn", disable_dynamo(_rnn_cpu), "CPU")
_library.impl("rnn_backward", disable_dynamo(_rnn_backward_cpu), "CPU")
_library.impl("rnn", disable_dynamo(_ops_cuda.rnn), "CUDA")
_library.impl("rnn_backward", disable_dynamo(_ops_cuda.rnn_backward), "CUDA")


@torch.library.register_fake("rnnfast::rnn", lib=_library)
def _(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    H = weights[1].shape[-1]
    D = len(weights) // (num_layers * (4 if bias else 2))
    rows = x.shape if is_one_hot(x) else x.shape[:-1]
    if batch_sizes is None:
        B = rows[0 if batch_first else 1]
    else:  # its first element, which a fake does not have
        B = h0.shape[1] if h0 is not None else torch.library.get_ctx().new_dynamic_size()
    outs = [weights[1].new_empty((*rows, D * H)) for _ in range(num_layers if keep else 1)]
    return outs, weights[1].new_empty((num_layers * D, B, H))


@torch.library.register_fake("rnnfast::rnn_backward", lib=_library)
def _(
    dy,
    dh_n,
    outs,
    x,
    h0,
    weights,
    batch_sizes,
    num_layers,
    batch_first,
    relu,
    bias,
    need_dx,
    need_dh0,
    need_dw,
):
    dx = outs[0].new_empty(x.shape if need_dx else 0)
    dh0 = outs[0].new_empty(h0.shape if need_dh0 else 0)
    dw = [w.new_empty(w.shape) for w in weights] if need_dw else []
    if is_one_hot(x) and need_dw:  # made column by column
        for n in range(0, len(weights) // num_layers, 4 if bias else 2):
            dw[n] = weights[n].new_empty(weights[n].shape[::-1]).t()
    return dx, dh0, dw


def _new_gradients(empty, x, w, need_dx, need_dw, need_db):
    return [
        empty(shape if needed else (0,), x)
        for shape, needed in ((x.shape, need_dx), (w.shape, need_dw), (w.shape[:1], need_db))
    ]


def _linear_cross_entropy_cpu(x, w, target, b, dloss, reduction, *needs):
    gradients = _new_gradients(_C.empty, x, w, *needs)
    loss = _C.empty(target.shape if reduction == "none" else (), x)
    scale = {"none": None, "sum": 1.0, "mean": 1 / max(len(x), 1)}[reduction]
    wanted = [g if needed else None for g, needed in zip(gradients, needs, strict=True)]
    tensors = (_rows(x), _contiguous(w), _contiguous(target), _contiguous(b), dloss)
    _C.linear_cross_entropy(*tensors, scale, torch.get_num_threads(), loss, *wanted)
    return loss, *gradients


_library.impl("linear_cross_entropy", disable_dynamo(_linear_cross_entropy_cpu), "CPU")


@torch.library.register_fake("rnnfast::linear_cross_entropy", lib=_library)
def _(x, w, target, b, dloss, reduction, *needs):
    gradients = _new_gradients(lambda shape, like: like.new_empty(shape), x, w, *needs)
    return x.new_empty(target.shape if reduction == "none" else ()), *gradients


def _dropout_cpu(x, seed, p):
    x, out = _contiguous(x), _C.empty(x.shape, x)
    _C.dropout(x.view(-1), seed, p, torch.get_num_threads(), out.view(-1))
    return out


_library.impl("dropout", disable_dynamo(_dropout_cpu), "CPU")


@torch.library.register_fake("rnnfast::dropout", lib=_library)
def _(x, seed, p):
    return x.new_empty(x.shape)


_rnn_op = torch.ops.rnnfast.rnn.default
_rnn_backward_op = torch.ops.rnnfast.rnn_backward.default
_linear_cross_entropy_op = torch.ops.rnnfast.linear_cross_entropy.default
_dropout_op = torch.ops.rnnfast.dropout.default
_PLAIN = {torch.Tensor, torch.nn.Parameter, type(None)}


def _unobserved(weights, *tensors):
    """Whether nobody but the kernels would see the operator: the dispatcher costs microseconds.

    Otherwise there is a tracer, a profiler or a mode, a subclass, or a view that negates.
    """
    if is_dispatcher_observed() or not {*map(type, weights), *map(type, tensors)} <= _PLAIN:
        return False
    return not any([t.is_neg() for t in (*weights, *tensors) if t is not None])  # noqa: C419 - faster


def rnn(x, h0, weights, *options):
    direct = _rnn_cpu if x.is_cpu else _ops_cuda.rnn
    call = direct if _unobserved(weights, x, h0) else _rnn_op
    return call(x, h0, weights, *options)


def rnn_backward(dy, dh_n, outs, x, h0, weights, *options):
    """As the operator, but a gradient that is not wanted may be None."""
    plain = _unobserved(weights, dy, dh_n, x, h0)
    direct = _gradients if x.is_cpu else _ops_cuda.gradients
    call = direct if plain else _rnn_backward_op
    return call(dy, dh_n, outs, x, h0, weights, *options)


def linear_cross_entropy(x, w, target, b, dloss, *options):
    plain = _unobserved((), x, w, target, b, dloss)
    call = _linear_cross_entropy_cpu if plain else _linear_cross_entropy_op
    return call(x, w, target, b, dloss, *options)


def dropout(x, seed, p):
    call = _dropout_cpu if _unobserved((), x, seed) else _dropout_op
    return call(x, seed, p)


def sampler(table, layers, decoder, relu, *, temperature, top_k, top_p, stop, seed):
    """Draws tokens from a language model: a `_C.Sampler`, which csrc/generate.h describes.

    `feed(tokens)` reads a list of tokens and `generate(n)` returns up to n more, on as many threads
    as torch has now, or one where that is faster; the state, zero at first, is carried from call to
    call. The tensors, float32 on the CPU, are copied: `table`
    (V, H) is W_ih x of layer 0 for each token; `layers` has a pair for each, W_hh (H, H), above
    layer 0 [W_hh W_ih] (H, 2H), and b_ih + b_hh (H); `decoder` is its weight (V, H) and bias (V),
    where -inf bans a token.

    Raises RuntimeError for a tensor of another shape, dtype or device, ValueError for an option
    out of range. `feed` raises IndexError for a token that is not in [0, V), `generate`
    OverflowError where the logits of the next token are not finite.
    """
    layers = [(weight.contiguous(), bias.contiguous()) for weight, bias in layers]
    tensors = (table.contiguous(), layers, *(t.contiguous() for t in decoder))
    stop = -1 if stop is None else stop
    options = (relu, temperature, top_k, top_p, stop, seed, torch.get_num_threads())
    return _C.Sampler(*tensors, *options)


def glove_epoch(starts, shifts, row, column, log_x, weight, words, contexts, lr):
    """One epoch of GloVe, as csrc/glove.h says, `words` and `contexts` updated in place.

    Contiguous tensors on the CPU: int64 starts (P * P + 1), shifts (P), row and column (N); float32
    log_x and weight (N), words and contexts (V, 2, D + 1). Returns the sum of the squared errors,
    weighted. Raises RuntimeError for a tensor of another shape, dtype or device, IndexError for a
    row or column that is not in [0, V) or not in its block, ValueError for starts and shifts.
    """
    tensors = (starts, shifts, row, column, log_x, weight, words, contexts)
    return _C.glove_epoch(*tensors, lr, torch.get_num_threads())
