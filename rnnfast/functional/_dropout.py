"""Dropout whose mask is computed again in the backward pass, and so need not be kept."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops, _torch


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero elements at random; a drop-in for :func:`torch.nn.functional.dropout`.

    On the CPU it takes a fraction of the time of torch's function. It draws a different random mask
    for the same seed.

    In training an element is zeroed with probability ``p``, and every other element is multiplied
    by ``1 / (1 - p)`` (Srivastava et al. 2014).

    Args:
        input: tensor of any shape and strides.
        p: probability in [0, 1].
        training: without it, ``input`` is returned unchanged.

    Returns:
        A tensor of the shape and dtype of ``input``. It is contiguous if a kernel made it.

    The kernel runs float32, float64, bfloat16 and float16 on the CPU. Its generator is seeded by
    one number drawn from torch's generator. The mask depends neither on the number of threads nor
    on the instruction set, and the backward pass keeps only the seed. Other dtypes and devices,
    empty input, transforms of torch.func and forward-mode AD run on torch's function. The result
    can be differentiated any number of times.

    Raises:
        ValueError: ``p`` is not in [0, 1].

    Example:
        >>> import torch
        >>> from rnnfast.functional import dropout
        >>> x = torch.ones(1000)
        >>> sorted(set(dropout(x, p=0.5).tolist()))
        [0.0, 2.0]
        >>> dropout(x, p=0.5, training=False) is x
        True
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if not (training and p):
        return input
    has_kernel = _ops.has_dropout_kernel(input.device.type, input.dtype)
    if (
        not has_kernel
        or torch.jit.is_tracing()  # it cannot record the call of an autograd Function
        or not input.numel()
        or _torch.is_in_transform_or_forward_ad()
    ):
        return F.dropout(input, p)
    seed = torch.randint(torch.iinfo(torch.int64).max, (), device=input.device)
    if input.requires_grad and torch.is_grad_enabled():
        return _Dropout.apply(input, seed, p)
    return _ops.dropout(input, seed, p)


class _Dropout(torch.autograd.Function):
    # There is no setup_context, for the reason given in _kernels.py.
    @staticmethod
    def forward(ctx, input, seed, p):
        ctx.save_for_backward(seed)
        ctx.p = p
        return _ops.dropout(input, seed, p)

    @staticmethod
    def backward(ctx, dy):
        (seed,) = ctx.saved_tensors
        if _torch.is_batch_of_vmap(dy):
            kept = torch.ones(dy.shape, dtype=dy.dtype, device=seed.device)
            return dy * _ops.dropout(kept, seed, ctx.p), None, None
        call = _Dropout.apply if torch.is_grad_enabled() else _ops.dropout
        return call(dy, seed, ctx.p), None, None
