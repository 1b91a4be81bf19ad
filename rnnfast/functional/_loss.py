"""The output layer of a language model together with its loss, without a tensor of all logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops, _torch
from ._shared import can_run_kernel, differentiable_gradients


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

    float32 and float64 on the CPU run on rnnfast's kernel. Other dtypes and devices, empty input,
    autocast, transforms of torch.func and forward-mode AD run on torch's own operators, with the
    same results. The gradients are computed in the forward pass, except with ``"none"``, where the
    backward pass computes the logits again. The result can be differentiated twice.

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
    if not can_run_kernel(input, input.dtype, _ops.has_loss_kernel):
        return _linear_cross_entropy_torch(*tensors, reduction)
    for name, t in zip(("linear_weight", "target", "linear_bias"), tensors[1:], strict=True):
        if t is not None and not t.is_cpu:
            raise RuntimeError(f"{name} must be on cpu like the input, got {t.device}")
    needs = [
        t is not None and t.requires_grad and torch.is_grad_enabled()
        for t in (input, linear_weight, linear_bias)
    ]
    if True in needs:
        return _LinearCrossEntropy.apply(*tensors, reduction, needs)
    return _ops.linear_cross_entropy(*tensors, None, reduction, *needs)[0]


def _linear_cross_entropy_torch(input, linear_weight, target, linear_bias, reduction):
    """Return the same on torch's operators, which support every dtype, device and derivative."""
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        # F.linear would broadcast the bias.
        raise RuntimeError(
            f"linear_bias must be ({len(linear_weight)},) to fit linear_weight, "
            f"got {tuple(linear_bias.shape)}"
        )
    logits = F.linear(input, linear_weight, linear_bias)
    # The kernel ignores no target. F.cross_entropy must ignore one value; its default, -100, or V
    # may be in `target` by mistake and would then go unnoticed.
    ignored = torch.iinfo(torch.int64).min
    return F.cross_entropy(logits, target, reduction=reduction, ignore_index=ignored)


class _LinearCrossEntropy(torch.autograd.Function):
    # There is no setup_context, for the reason given in _kernels.py.
    @staticmethod
    def forward(ctx, input, linear_weight, target, linear_bias, reduction, needs):
        tensors = (input, linear_weight, target, linear_bias)
        ctx.reduction, ctx.needs = reduction, needs
        if reduction == "none":  # the gradient of each loss is known in the backward pass only
            ctx.save_for_backward(*tensors)
            return _ops.linear_cross_entropy(*tensors, None, reduction, False, False, False)[0]
        loss, *gradients = _ops.linear_cross_entropy(*tensors, None, reduction, *needs)
        ctx.save_for_backward(*tensors, *gradients)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        tensors, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled() or _torch.is_batch_of_vmap(dloss):
            return differentiable_gradients(
                ctx,
                lambda *tensors: [_linear_cross_entropy_torch(*tensors[:4], ctx.reduction)],
                (*tensors, None, None),
                [dloss],
            )
        if gradients:
            # Most backward passes begin at the loss with dloss = 1. Then there is nothing to
            # multiply. Reading dloss is free on the CPU only.
            reading = not torch.compiler.is_compiling() and dloss.device.type == "cpu"
            if not (reading and dloss.item() == 1):
                gradients = [g * dloss for g in gradients]
        else:
            _, *gradients = _ops.linear_cross_entropy(*tensors, dloss, ctx.reduction, *ctx.needs)
        dx, dw, db = (g if need else None for g, need in zip(gradients, ctx.needs, strict=True))
        return dx, dw, None, db, None, None
