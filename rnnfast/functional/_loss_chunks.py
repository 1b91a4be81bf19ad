"""The output layer together with its loss on torch's operators, for one chunk of rows at a time."""

import torch
from torch.nn import functional as F

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# A chunk has so many logits at most, 64 MiB in float32. That is enough for large matrix products.
CHUNK_LOGITS = 1 << 24
# Neither the kernel nor the chunks ignore a target. torch's functions must ignore one value; their
# default, -100, or V may be in the targets by mistake and would then go unnoticed.
IGNORED = torch.iinfo(torch.int64).min


def linear_cross_entropy_in_chunks(x, w, target, b, dloss, reduction, *needs):
    """Return the loss and the gradients that are needed, as the kernel does; see csrc/api/loss.h.

    It runs on every device, and it waits for none, so a CUDA graph can hold it. Losses and sums
    over the rows are float32 for bfloat16 tensors.

    Args:
        x, w, target, b: as in `rnnfast.functional.linear_cross_entropy`.
        dloss: the gradient of each loss, (N), for ``reduction`` "none". Otherwise None: the
            gradients are those of the loss.
        reduction: "mean", "sum" or "none".
        *needs: whether the gradients of ``x``, ``w`` and ``b`` are needed.

    Returns:
        ``(loss, dx, dw, db)``. A gradient that is not needed is None.
    """
    need_dx, need_dw, need_db = needs
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = 1 / len(x) if reduction == "mean" else 1.0
    losses = []
    dx = x.new_empty(x.shape) if need_dx else None
    dw, db = (
        torch.zeros_like(t, dtype=wide) if need else None
        for t, need in ((w, need_dw), (b, need_db))
    )
    rows = max(1, CHUNK_LOGITS // len(w))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        chunk, classes = x[part], target[part]
        logp = F.linear(chunk, w, b).log_softmax(1, dtype=wide)
        losses.append(F.nll_loss(logp, classes, reduction="none", ignore_index=IGNORED))
        if True not in needs:
            continue
        # The gradient of the logits is the probabilities, less 1 for the target. It takes the place
        # of log p.
        dlogits = logp.exp_().scatter_add_(1, classes[:, None], -torch.ones_like(logp[:, :1]))
        dlogits *= scale if dloss is None else dloss[part, None]
        if need_db:
            db += dlogits.sum(0)
        dlogits = dlogits.to(x.dtype)
        if need_dx:
            torch.mm(dlogits, w, out=dx[part])
        if need_dw and x.dtype is wide:
            dw.addmm_(dlogits.t(), chunk)
        elif need_dw:
            dw += dlogits.t() @ chunk
    losses = torch.cat(losses)
    return losses if reduction == "none" else losses.sum() * scale, dx, dw, db
