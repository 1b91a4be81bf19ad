"""The definitions of the operators ``torch.ops.rnnfast.*``, and their fakes.

Letters: T time steps, B sequences, I inputs, H hidden units, L layers, D directions, N rows of a
packed batch.

``rnn`` runs L layers, all their directions and all time steps.

- ``x`` is (T, B, I), (B, T, I) with ``batch_first``, or (N, I) with ``batch_sizes``. An ``x`` of
  int64 is one-hot input of shape (T, B), (B, T) or (N). W_ih x_t is then the column w_ih[:, x_t],
  and no one-hot tensor is built.
- ``weights`` holds (w_ih, w_hh[, b_ih, b_hh]) for each layer and direction.
- ``outs`` are the outputs of all layers if ``keep`` is true, which is what ``rnn_backward`` needs.
  Otherwise only the output of the last layer is returned.

``linear_cross_entropy`` is described in csrc/loss.h. With ``reduction`` "none" the loss is (N,) and
the gradients are those for ``dloss``, (N,). With "mean" or "sum" the loss is (), the gradients are
those of the loss, and ``dloss`` is None.

``dropout`` is described in csrc/dropout.h. Its result is contiguous, and ``seed`` is int64 ().

A gradient that is not needed is returned as an empty tensor.
"""

import torch

library = torch.library.Library("rnnfast", "DEF")
_tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
library.define(
    "rnn(Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, int num_layers, "
    "bool batch_first, bool relu, bool bias, bool keep) -> (Tensor[] outs, Tensor h_n)",
    tags=_tags,
)
library.define(
    "rnn_backward(Tensor? dy, Tensor? dh_n, Tensor[] outs, Tensor x, Tensor? h0, Tensor[] weights, "
    "Tensor? batch_sizes, int num_layers, bool batch_first, bool relu, bool bias, bool need_dx, "
    "bool need_dh0, bool need_dw) -> (Tensor dx, Tensor dh0, Tensor[] dw)",
    tags=_tags,
)
library.define(
    "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, "
    "Tensor? dloss, str reduction, bool need_dx, bool need_dw, bool need_db) "
    "-> (Tensor loss, Tensor dx, Tensor dw, Tensor db)",
    tags=_tags,
)
library.define("dropout(Tensor x, Tensor seed, float p) -> Tensor", tags=_tags)


def is_one_hot(x):
    """Return whether ``x`` holds tokens, which stand for one-hot vectors."""
    return x.dtype is torch.int64


def check_rank(x, batch_sizes):
    """Raise RuntimeError if the input ``x`` does not have the rank that the operators expect."""
    if x.dim() + is_one_hot(x) != (3 if batch_sizes is None else 2):
        wanted = "(T, B, I), or int64 (T, B)" if batch_sizes is None else "(N, I), or int64 (N)"
        raise RuntimeError(f"input must be {wanted}, got {x.dtype} {tuple(x.shape)}")


@torch.library.register_fake("rnnfast::rnn", lib=library)
def _(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    H = weights[1].shape[-1]
    D = len(weights) // (num_layers * (4 if bias else 2))
    rows = x.shape if is_one_hot(x) else x.shape[:-1]
    if batch_sizes is None:
        B = rows[0 if batch_first else 1]
    else:  # B is the first element of batch_sizes, but a fake tensor has no elements
        B = h0.shape[1] if h0 is not None else torch.library.get_ctx().new_dynamic_size()
    outs = [weights[1].new_empty((*rows, D * H)) for _ in range(num_layers if keep else 1)]
    return outs, weights[1].new_empty((num_layers * D, B, H))


@torch.library.register_fake("rnnfast::rnn_backward", lib=library)
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
    if is_one_hot(x) and need_dw:  # the kernel makes these gradients column by column
        for n in range(0, len(weights) // num_layers, 4 if bias else 2):
            dw[n] = weights[n].new_empty(weights[n].shape[::-1]).t()
    return dx, dh0, dw


def new_loss_gradients(empty, x, w, need_dx, need_dw, need_db):
    """Return new gradients of ``x``, ``w`` and the bias, made by ``empty(shape, like)``."""
    return [
        empty(shape if needed else (0,), x)
        for shape, needed in ((x.shape, need_dx), (w.shape, need_dw), (w.shape[:1], need_db))
    ]


@torch.library.register_fake("rnnfast::linear_cross_entropy", lib=library)
def _(x, w, target, b, dloss, reduction, *needs):
    gradients = new_loss_gradients(lambda shape, like: like.new_empty(shape), x, w, *needs)
    return x.new_empty(target.shape if reduction == "none" else ()), *gradients


@torch.library.register_fake("rnnfast::dropout", lib=library)
def _(x, seed, p):
    return x.new_empty(x.shape)
