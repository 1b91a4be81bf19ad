"""The CUDA implementations of `torch.ops.rnnfast.*`, which ``schema.py`` defines.

The recurrence runs on the kernels of csrc/cuda, both directions of a layer in one launch. Products
over all time steps are torch's: the input projection, dx and the weight gradients. Nothing here
waits for the device, and nothing adds up in an order that changes from run to run.
"""

from itertools import accumulate, pairwise

import torch

from .. import _C
from .schema import check_rank, is_one_hot

# float32 with TF32 where torch's setting for RNNs allows it, as in nn.RNN.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KERNELS = ("cluster", "grid", "step")

# None: torch's own operators. "auto": what csrc/cuda/plan.cu chooses; or one of KERNELS.
_kernel = None


def set_kernel(name):
    """See :func:`rnnfast.set_cuda_kernel`."""
    global _kernel
    choices = ("auto", *KERNELS)
    if name is not None and name not in choices:
        raise ValueError(f"CUDA kernel must be one of {', '.join(choices)} or None, got {name!r}")
    if name is not None and not _C.cuda:
        raise ValueError("this build of rnnfast has no CUDA kernels: there was no nvcc")
    _kernel = name


def has_kernel(dtype):
    return _kernel is not None and dtype in DTYPES


def _precision(dtype):
    if dtype is torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


def _forced(precision):
    """float64 has the step kernel alone."""
    return "step" if precision == "float64" else None if _kernel == "auto" else _kernel


def plan(T, B, H, dtype, directions=1, backward=False):
    """See :func:`rnnfast.cuda_plan`."""
    precision = _precision(dtype)
    return _C.cuda_choose(T, B, H, directions, backward, precision, _forced(precision))[2]


class _Layout:
    """Where the rows of each step are: `starts` on the device for a packed batch."""

    def __init__(self, x, rank, batch_sizes, batch_first, backward):
        self.batch_first, self.starts = batch_first and batch_sizes is None, None
        self.rows = x.shape[:rank]
        if batch_sizes is None:
            self.T, self.B = self.rows if not batch_first else self.rows[::-1]
            return
        sizes = batch_sizes.tolist()
        if batch_sizes.dim() != 1 or not sizes or batch_sizes.dtype is not torch.int64:
            raise RuntimeError(f"batch_sizes must be torch.int64 (T), got {batch_sizes.dtype}")
        if min(sizes) < 1 or any(b > a for a, b in pairwise(sizes)):
            raise RuntimeError("batch_sizes must be positive and never increase")
        if sum(sizes) != len(x):
            raise RuntimeError(
                f"batch_sizes must sum to the {len(x)} rows of input, got {sum(sizes)}"
            )
        self.T, self.B, N = len(sizes), sizes[0], len(x)
        self.starts = starts = _upload([0, *accumulate(sizes)], x.device)
        if backward:
            # Of each row but those of the first step, where the one of the step before is; and the
            # last row of each sequence.
            sizes = starts.diff()
            rows = torch.arange(self.B, N, device=x.device)
            self.earlier = rows - sizes[:-1].repeat_interleave(sizes[1:], output_size=len(rows))
            sequences = torch.arange(self.B, device=x.device)
            lengths = torch.searchsorted(-sizes, -sequences)
            self.last = starts[lengths - 1] + sequences


def _upload(numbers, device):
    """An int64 tensor on the device, without a copy that a CUDA graph would repeat."""
    tensor = torch.empty(len(numbers), dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        _C.cuda_upload(numbers, tensor, torch.cuda.current_stream().cuda_stream)
    return tensor


def _launch(layout, H, backward, relu, dtype, directions, device):
    precision = _precision(dtype)
    force = _forced(precision)
    with torch.cuda.device(device):
        sizes = (layout.T, layout.B, H)
        _, size, _ = _C.cuda_choose(*sizes, len(directions), backward, precision, force)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream().cuda_stream
        options = (backward, relu, precision, force, layout.batch_first, layout.starts)
        _C.cuda_run(*sizes, *options, directions, workspace, stream)


def _project(x, w_ih):
    """W_ih x of all steps, with the dtype of sums: float32 where it is two bytes."""
    rows, H = x.shape if is_one_hot(x) else x.shape[:-1], len(w_ih)
    if is_one_hot(x):
        pre = torch.embedding(w_ih.t(), x)
        return pre.float() if pre.element_size() == 2 else pre
    flat = x.reshape(-1, x.shape[-1])
    if x.element_size() == 2:
        pre = torch.mm(flat, w_ih.t(), out_dtype=torch.float32)
    else:
        pre = torch.mm(flat, w_ih.t())
    return pre.view(*rows, H)


def _half(t, d, H):
    return None if t is None else t[..., d * H : (d + 1) * H]


def _check(x, weights, batch_sizes, num_layers, bias):
    """(H, D, dtype), after a look at every size and dtype on which they depend."""
    check_rank(x, batch_sizes)
    one_hot = is_one_hot(x)
    per = 4 if bias else 2
    w_hh = weights[1]
    if w_hh.dim() != 2:
        raise RuntimeError(f"weight_hh must be (H, H), got {tuple(w_hh.shape)}")
    H, D, dtype = w_hh.shape[1], len(weights) // (num_layers * per), x.dtype
    dtype = w_hh.dtype if one_hot else dtype
    for n, w in enumerate(weights):
        inputs = (w.shape[-1] if one_hot else x.shape[-1]) if n < D * per else D * H
        name = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[n % per]
        wanted = ((H, inputs), (H, H), (H,), (H,))[n % per]
        if tuple(w.shape) != wanted or w.dtype is not dtype:
            raise RuntimeError(
                f"{name} must be {dtype} {wanted} to fit the rest, got {w.dtype} {tuple(w.shape)}"
            )
    return H, D, dtype


def _state(name, state, wanted, dtype):
    if state is None:
        return None
    if tuple(state.shape) != wanted or state.dtype is not dtype:
        raise RuntimeError(
            f"{name} must be {dtype} {wanted} to fit the rest, got {state.dtype} "
            f"{tuple(state.shape)}"
        )
    return state.contiguous()


def rnn_cuda(x, h0, weights, batch_sizes, num_layers, batch_first, relu, bias, keep):
    """`rnnfast::rnn`."""
    H, D, dtype = _check(x, weights, batch_sizes, num_layers, bias)
    per, like = 4 if bias else 2, weights[1]
    layout = _Layout(x, 2 if batch_sizes is None else 1, batch_sizes, batch_first, False)
    h0 = _state("hx", h0, (num_layers * D, layout.B, H), dtype)
    h_n = like.new_empty((num_layers * D, layout.B, H))
    outs, below = [], x
    for layer in range(num_layers):
        out = like.new_empty((*layout.rows, D * H))
        directions = []
        for d in range(D):
            n = layer * D + d
            w_ih, w_hh, *b = (w.contiguous() for w in weights[n * per : (n + 1) * per])
            b_ih, b_hh = b or (None, None)
            begin = None if h0 is None else h0[n]
            pre = _project(below, w_ih)
            directions.append(
                (d == 1, w_hh, pre, None, _half(out, d, H), b_ih, b_hh, begin, h_n[n])
            )
        _launch(layout, H, False, relu, dtype, directions, x.device)
        outs.append(out)
        below = out
    return outs if keep else outs[-1:], h_n


def _dw_hh(layout, dpre, h, h0, reverse):
    """The sum over all rows of dpre_t h_{t-1}^T."""
    if layout.starts is not None:
        flat = dpre.view(-1, dpre.shape[-1])
        if reverse:
            later, earlier = flat.index_select(0, layout.earlier), h[layout.B :]
            first = flat.index_select(0, layout.last)
        else:
            later, earlier = flat[layout.B :], h.index_select(0, layout.earlier)
            first = flat[: layout.B]
    else:
        if layout.batch_first:
            dpre, h = dpre.transpose(0, 1), h.transpose(0, 1)
        later, earlier = (dpre[:-1], h[1:]) if reverse else (dpre[1:], h[:-1])
        first = dpre[-1] if reverse else dpre[0]
        later, earlier = later.flatten(0, 1), earlier.flatten(0, 1)
    dw = torch.mm(later.t(), earlier)
    return dw if h0 is None else dw.addmm_(first.t(), h0)


def rnn_backward_cuda(dy, dh_n, outs, x, *arguments):
    """(dx or None, dh0 or None, dw or [])."""
    with torch.autocast(
        x.device.type, enabled=False
    ):  # the products, if backward() is called there
        return _gradients(dy, dh_n, outs, x, *arguments)


def _gradients(dy, dh_n, outs, x, h0, weights, batch_sizes, *options):
    num_layers, batch_first, relu, bias, need_dx, need_dh0, need_dw = options
    H, D, dtype = _check(x, weights, batch_sizes, num_layers, bias)
    per, one_hot = 4 if bias else 2, is_one_hot(x)
    layout = _Layout(x, 2 if batch_sizes is None else 1, batch_sizes, batch_first, True)
    shape = (num_layers * D, layout.B, H)
    h0 = _state("hx", h0, shape, dtype)
    dh_n = _state("the gradient of h_n", dh_n, shape, dtype)
    dh0 = outs[0].new_empty(shape) if need_dh0 else None
    dw = [None] * len(weights)
    for layer in reversed(range(num_layers)):
        below, out = (outs[layer - 1] if layer else x), outs[layer]
        if dy is not None and dy.stride(-1) != 1:
            dy = dy.contiguous()
        directions = []
        for d in range(D):
            n = layer * D + d
            dpre = out.new_empty((*layout.rows, H))
            end = None if dh0 is None else dh0[n]
            begin = None if dh_n is None else dh_n[n]
            w_hh = weights[n * per + 1].contiguous()
            tensors = (_half(dy, d, H), _half(out, d, H), dpre, None, None, begin, end)
            directions.append((d == 1, w_hh, *tensors))
        _launch(layout, H, True, relu, dtype, directions, x.device)
        dx = None
        for d, (reverse, _, _, h, dpre, *_) in enumerate(directions):
            n = layer * D + d
            w_ih, flat = weights[n * per], dpre.view(-1, H)
            if need_dw:
                if is_one_hot(below):
                    tokens = below.reshape(-1)
                    table = torch.ops.aten.embedding_dense_backward(
                        flat, tokens, w_ih.shape[1], -1, False
                    )
                    dw[n * per] = table.t()
                else:
                    dw[n * per] = torch.mm(flat.t(), below.reshape(-1, below.shape[-1]))
                before = None if h0 is None else h0[n]
                dw[n * per + 1] = _dw_hh(layout, dpre, h, before, reverse)
                if bias:
                    dw[n * per + 2] = flat.sum(0)
                    dw[n * per + 3] = dw[n * per + 2].clone()
            if layer or (need_dx and not one_hot):
                dx = torch.mm(flat, w_ih) if dx is None else dx.addmm_(flat, w_ih)
        dy = None if dx is None else dx.view(below.shape)
    return (dy if need_dx else None), dh0, (dw if need_dw else [])
