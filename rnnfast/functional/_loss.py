"""The output layer of a language model together with its loss, without a tensor of all logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops, _torch
from ._loss_chunks import DTYPES, IGNORED, linear_cross_entropy_in_chunks
from ._shared import autocast_dtype, can_run_kernel, cast, differentiable_gradients


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross entropy of a linear layer's output, in one operation.

    The result is that of ``F.cross_entropy(F.linear(input, linear_weight, linear_bias), target)``.
    The logits are computed, turned into probabilities and used for one block of rows at a time, so
    that they stay in the cache. The logits of all rows never exist at the same time.

    With N rows, H features and V classes:

    Args:
        input: (N, H), of any strides.
        linear_weight: (V, H), like the weight of ``nn.Linear``. It may also be the weight of an
            embedding.
        target: int64 (N), classes in [0, V). There is no ``ignore_index``.
        linear_bias: (V), or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The losses in nats: their mean () or sum (), or with ``"none"`` each of them, (N).

    float32 and float64 on the CPU run on rnnfast's kernel. float32, float64 and bfloat16 on CUDA,
    and autocast to bfloat16 there, run on torch's operators for one chunk of rows at a time. The
    gradients are computed in the forward pass, except with ``"none"``, where the backward pass
    computes the logits again. The result can be differentiated twice.

    Other dtypes and devices, empty input, autocast on the CPU, transforms of torch.func and
    forward-mode AD run on torch's own operators for all rows at once, with the same results. So
    does ``torch.compile`` on CUDA.

    Raises:
        ValueError: ``reduction`` is unknown.
        RuntimeError: sizes, dtypes or devices do not fit one another.
        IndexError: a target is not in [0, V).

    Example:
        >>> import torch
        >>> from rnnfast.functional import linear_cross_entropy
        >>> x, weight = torch.zeros(5, 8), torch.randn(4, 8, requires_grad=True)
        >>> loss = linear_cross_entropy(x, weight, torch.tensor([0, 1, 2, 3, 0]))
        >>> round(loss.item(), 4)  # all four classes have the same probability: log 4
        1.3863
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if input.dim() != 2 or target.dim() != 1 or len(input) != len(target):
        raise RuntimeError(
            f"input must be (N, H) and target (N,), got {tuple(input.shape)} and "
            f"{tuple(target.shape)}"
        )
    tensors = (input, linear_weight, target, linear_bias)
    if can_run_kernel(input, input.dtype, _ops.has_loss_kernel):
        for name, t in zip(("linear_weight", "target", "linear_bias"), tensors[1:], strict=True):
            if t is not None and not t.is_cpu:
                raise RuntimeError(f"{name} must be on cpu like the input, got {t.device}")
        return _linear_cross_entropy(*tensors, reduction, in_chunks=False)
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        # F.linear would broadcast the bias.
        raise RuntimeError(
            f"linear_bias must be ({len(linear_weight)},) to fit linear_weight, "
            f"got {tuple(linear_bias.shape)}"
        )
    if input.is_cuda and _can_run_in_chunks(input, linear_weight):
        return _in_chunks(*tensors, reduction)
    return _linear_cross_entropy_torch(*tensors, reduction)


def _can_run_in_chunks(input, linear_weight):
    return (
        (autocast_dtype(input.device.type) or input.dtype) in DTYPES
        and input.numel() > 0
        and linear_weight.numel() > 0
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not _torch.is_in_transform_or_forward_ad()
    )


def _in_chunks(input, linear_weight, target, linear_bias, reduction):
    """Run the call for one chunk of rows at a time, in the dtype of autocast if that is enabled."""
    dtype = autocast_dtype(input.device.type)
    if dtype is None:
        tensors = (input, linear_weight, target, linear_bias)
        return _linear_cross_entropy(*tensors, reduction, in_chunks=True).to(input.dtype)
    input, linear_weight, linear_bias = (
        cast(t, dtype) for t in (input, linear_weight, linear_bias)
    )
    tensors = (input, linear_weight, target, linear_bias)
    return _linear_cross_entropy(*tensors, reduction, in_chunks=True)


def _linear_cross_entropy(input, linear_weight, target, linear_bias, reduction, in_chunks):
    """Return the loss that the kernel computes, or with ``in_chunks`` torch's operators."""
    tensors = (input, linear_weight, target, linear_bias)
    needs = [
        t is not None and t.requires_grad and torch.is_grad_enabled()
        for t in (input, linear_weight, linear_bias)
    ]
    if True in needs:
        return _LinearCrossEntropy.apply(*tensors, reduction, needs, in_chunks)
    return _run(in_chunks)(*tensors, None, reduction, *needs)[0]


def _run(in_chunks):
    return linear_cross_entropy_in_chunks if in_chunks else _ops.linear_cross_entropy


def _linear_cross_entropy_torch(input, linear_weight, target, linear_bias, reduction):
    """Return the same on torch's operators, which support every dtype, device and derivative."""
    logits = F.linear(input, linear_weight, linear_bias)
    return F.cross_entropy(logits, target, reduction=reduction, ignore_index=IGNORED)


class _LinearCrossEntropy(torch.autograd.Function):
    # There is no setup_context, for the reason given in _kernels.py.
    @staticmethod
    def forward(ctx, input, linear_weight, target, linear_bias, reduction, needs, in_chunks):
        tensors = (input, linear_weight, target, linear_bias)
        ctx.reduction, ctx.needs, ctx.in_chunks = reduction, needs, in_chunks
        if reduction == "none":  # the gradient of each loss is known in the backward pass only
            ctx.save_for_backward(*tensors)
            return _run(in_chunks)(*tensors, None, reduction, False, False, False)[0]
        loss, *gradients = _run(in_chunks)(*tensors, None, reduction, *needs)
        ctx.save_for_backward(*tensors, *gradients)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        tensors, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled() or _torch.is_batch_of_vmap(dloss):
            return differentiable_gradients(
                ctx,
                lambda *tensors: [_linear_cross_entropy_torch(*tensors[:4], ctx.reduction)],
                (*tensors, None, None, None),
                [dloss],
            )
        if gradients:
            # Most backward passes begin at the loss with dloss = 1. Then there is nothing to
            # multiply. Reading dloss is free on the CPU only, where the kernel runs.
            reading = not torch.compiler.is_compiling() and not ctx.in_chunks
            if not (reading and dloss.item() == 1):
                gradients = [g if g is None else g * dloss for g in gradients]
        else:
            _, *gradients = _run(ctx.in_chunks)(*tensors, dloss, ctx.reduction, *ctx.needs)
        dx, dw, db = (g if need else None for g, need in zip(gradients, ctx.needs, strict=True))
        return dx, dw, None, db, None, None, None
