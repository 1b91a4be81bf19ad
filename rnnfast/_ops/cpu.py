"""The CPU implementations of the operators ``torch.ops.rnnfast.*``, which ``schema.py`` defines."""

import torch

from .. import _C
from .schema import check_rank, is_one_hot, new_loss_gradients

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _contiguous(t):
    return t if t is None or t.is_contiguous() else t.contiguous()


def _rows(t):
    """`t` itself if its rows are contiguous, as the kernels want them, else a copy."""
    return t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def prepare(x, h0, weights, batch_sizes, num_layers, bias):
    """The layout that the kernels want, without a copy where it is the layout already."""
    if is_one_hot(x):  # the first W_ih as tables
        weights, first = list(weights), len(weights) // num_layers
        for n in range(0, first, 4 if bias else 2):
            weights[n] = weights[n].t()
    else:
        x = _rows(x)
    weights = [w if w.is_contiguous() else w.contiguous() for w in weights]
    return x, _contiguous(h0), weights, _contiguous(batch_sizes)


def new_outputs(x, weights, batch_sizes, num_layers, batch_first, bias):
    """An output of every layer, for those of a stack may run at the same time; and h_n."""
    like = weights[1]
    H = like.shape[-1]
    D = len(weights) // (num_layers * (4 if bias else 2))
    rows = x.shape if is_one_hot(x) else x.shape[:-1]
    B = rows[not batch_first] if batch_sizes is None else int(batch_sizes[0])
    shape = (*rows, D * H)
    outs = [_C.empty(shape, like) for _ in range(num_layers)]
    return outs, _C.empty((num_layers * D, B, H), like)


def rnn_cpu(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    check_rank(x, batch_sizes)
    outs, h_n = new_outputs(x, weights, batch_sizes, num_layers, batch_first, bias)
    x, h0, weights, batch_sizes = prepare(x, h0, weights, batch_sizes, num_layers, bias)
    threads = torch.get_num_threads()
    options = (num_layers, batch_first, relu, bias, threads)
    _C.forward(x, h0, weights, batch_sizes, *options, outs, h_n)
    return outs if keep else outs[-1:], h_n


def rnn_backward_cpu(dy, dh_n, outs, x, h0, weights, batch_sizes, *options):
    """(dx or None, dh0 or None, dw or [])."""
    num_layers, batch_first, relu, bias, need_dx, need_dh0, need_dw = options
    x, h0, weights, batch_sizes = prepare(x, h0, weights, batch_sizes, num_layers, bias)
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


def linear_cross_entropy_cpu(x, w, target, b, dloss, reduction, *needs):
    gradients = new_loss_gradients(_C.empty, x, w, *needs)
    loss = _C.empty(target.shape if reduction == "none" else (), x)
    scale = {"none": None, "sum": 1.0, "mean": 1 / max(len(x), 1)}[reduction]
    wanted = [g if needed else None for g, needed in zip(gradients, needs, strict=True)]
    tensors = (_rows(x), _contiguous(w), _contiguous(target), _contiguous(b), dloss)
    _C.linear_cross_entropy(*tensors, scale, torch.get_num_threads(), loss, *wanted)
    return loss, *gradients


def dropout_cpu(x, seed, p):
    x, out = _contiguous(x), _C.empty(x.shape, x)
    _C.dropout(x.view(-1), seed, p, torch.get_num_threads(), out.view(-1))
    return out


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
