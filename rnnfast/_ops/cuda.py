"""The CUDA implementations of the operators ``torch.ops.rnnfast.*``, which ``schema.py`` defines.

The recurrence runs on the kernels of csrc/cuda, both directions of a layer in one launch. Products
over all time steps run on torch: the input projection, dx and the gradients of the weights. Nothing
here waits for the device, and no sum depends on an order that changes from run to run.
"""

import functools
import os
import warnings
from itertools import accumulate, pairwise

import torch

from .. import _C, _torch
from .schema import is_one_hot, shape_of_rows

# float32 uses TF32 where torch's setting for RNNs allows TF32, as in nn.RNN.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KERNELS = ("cluster", "grid", "step")

# The compute capabilities of the devices on which the kernels run without being asked for. It is
# empty because the kernels of csrc/cuda have not run on a GPU since they were rewritten. Add (9, 0)
# when benchmarks/gpu.sh has passed on an H100 or H200.
ON_BY_DEFAULT = ()

# What runs on CUDA devices:
# - "default": what RNNFAST_CUDA_KERNEL names, or else what the devices decide;
# - None: torch's own operators;
# - "auto": the choice of csrc/cuda/plan.cu;
# - one of KERNELS: this kernel, whatever the sizes;
# - "failed": torch's own operators, because a kernel could not be launched. A call that began on a
#   kernel ends on the step kernel, as does its backward pass.
_choice = "default"


def _checked(name, what):
    choices = ("auto", *KERNELS)
    if name is not None and name not in choices:
        raise ValueError(f"{what} must be None or one of {', '.join(choices)}, got {name!r}")
    if name is not None and not _C.cuda:
        raise ValueError(
            f"{what} must be None, got {name!r}: this build of rnnfast has no CUDA kernels, "
            "because nvcc was not found"
        )
    return name


def set_kernel(name):
    """Set which kernel runs; see :func:`rnnfast.set_cuda_kernel`."""
    global _choice
    _choice = _checked(name, "name")


@functools.cache
def _read_default():
    """Return the kernel that the environment or the devices decide for."""
    name = os.environ.get("RNNFAST_CUDA_KERNEL")
    if name:
        return _checked(None if name == "torch" else name, "RNNFAST_CUDA_KERNEL")
    is_measured = (
        _C.cuda
        and torch.cuda.is_available()
        and all(
            torch.cuda.get_device_capability(index) in ON_BY_DEFAULT
            for index in range(torch.cuda.device_count())
        )
    )
    return "auto" if is_measured else None


@_torch.constant_in_dynamo
def _kernel_by_default():
    """Call `_read_default`. Dynamo warns if it meets a function that has a cache."""
    return _read_default()


def kernel():
    """Return None for torch's own operators, "auto", or the kernel that is forced."""
    if _choice == "default":
        return _kernel_by_default()
    return None if _choice == "failed" else _choice


def has_kernel(dtype):
    """Return whether weights of ``dtype`` run on a kernel of rnnfast, as `set_kernel` says."""
    return dtype in DTYPES and kernel() is not None


def is_torch_faster(x, weights, batch_sizes, descriptor):
    """Return whether torch's own path is faster than the kernels, where nothing is forced.

    ReLU and tokens stay on the kernels: cuDNN turns NaN into 0, and it needs one-hot vectors.
    """
    if kernel() != "auto" or descriptor.nonlinearity == "relu" or is_one_hot(x):
        return False
    batch_dim = 0 if descriptor.batch_first else 1
    B = x.shape[batch_dim] if batch_sizes is None else int(batch_sizes[0])
    precision, H = _precision(weights[1].dtype), weights[1].shape[-1]
    return _C.cuda_prefers_torch(B, H, descriptor.directions, precision)


def _precision(dtype):
    if dtype is torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


def _forced(precision):
    """Return the kernel that is forced, or None. For float64 there is only the step kernel."""
    if precision == "float64" or _choice == "failed":
        return "step"
    name = kernel()
    return None if name == "auto" else name


def plan(
    T: int, B: int, H: int, dtype: torch.dtype, directions: int = 1, backward: bool = False
) -> str:
    """Return which kernel runs and why; see :func:`rnnfast.cuda_plan`."""
    precision = _precision(dtype)
    reason = _C.cuda_choose(T, B, H, directions, backward, precision, _forced(precision))[2]
    if kernel() is not None:
        return reason
    return f"torch's own path; with rnnfast.set_cuda_kernel('auto'): {reason}"


class Layout:
    """Where the rows of each time step are in memory.

    For a packed batch ``starts``, on the device, has the first row of each step; else it is None.
    ``reset`` is that of the operators.
    """

    def __init__(self, x, batch_sizes, batch_first, backward, reset):
        self.batch_first, self.starts = batch_first and batch_sizes is None, None
        self.rows, self.reset = shape_of_rows(x, batch_sizes), reset
        if reset is not None and (reset.dtype is not torch.bool or reset.shape != self.rows):
            raise RuntimeError(
                f"reset must be torch.bool {tuple(self.rows)}, got {reset.dtype} "
                f"{tuple(reset.shape)}"
            )
        if batch_sizes is None:
            self.T, self.B = self.rows if not batch_first else self.rows[::-1]
            return
        sizes = batch_sizes.tolist()
        if batch_sizes.dim() != 1 or not sizes or batch_sizes.dtype is not torch.int64:
            raise RuntimeError(
                f"batch_sizes must be torch.int64 (T), got {batch_sizes.dtype} "
                f"{tuple(batch_sizes.shape)}"
            )
        if min(sizes) < 1 or any(b > a for a, b in pairwise(sizes)):
            raise RuntimeError("batch_sizes must be positive and never increase")
        if sum(sizes) != len(x):
            raise RuntimeError(
                f"batch_sizes must sum to the {len(x)} rows of input, got {sum(sizes)}"
            )
        self.T, self.B, N = len(sizes), sizes[0], len(x)
        self.starts = starts = _upload([0, *accumulate(sizes)], x.device)
        if backward:
            # earlier: for each row after the first step, the row of its sequence one step before.
            # last: the last row of each sequence.
            sizes = starts.diff()
            rows = torch.arange(self.B, N, device=x.device)
            self.earlier = rows - sizes[:-1].repeat_interleave(sizes[1:], output_size=len(rows))
            sequences = torch.arange(self.B, device=x.device)
            lengths = torch.searchsorted(-sizes, -sequences)
            self.last = starts[lengths - 1] + sequences

    def resets(self):
        """Return ``reset`` as a column, step by step."""
        by_steps = self.reset.t() if self.batch_first else self.reset
        return by_steps.reshape(-1, 1)

    def begin(self, h0, n, direction):
        """Return the initial state of a direction, the n-th of all, or None."""
        if h0 is None or direction == 1 or self.reset is None:
            return None if h0 is None else h0[n]
        return h0[n].masked_fill(self.resets()[: self.B], 0.0)


def _upload(numbers, device):
    """Return an int64 tensor on ``device``, made without a copy that a CUDA graph would repeat."""
    tensor = torch.empty(len(numbers), dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        _C.cuda_upload(numbers, tensor, torch.cuda.current_stream().cuda_stream)
    return tensor


def launch(layout, H, backward, relu, dtype, directions, device, leak=None):
    """Run one layer.

    csrc/bindings/cuda.cpp describes ``directions``, a tuple for each, and ``leak``.
    """
    arguments = (layout, H, backward, relu, _precision(dtype), directions, device, leak)
    if device.index == torch.cuda.current_device():  # a context takes microseconds
        _run(*arguments)
    else:
        with torch.cuda.device(device):
            _run(*arguments)


def _run(layout, H, backward, relu, precision, directions, device, leak):
    """Run one layer on the current device, if need be by the kernel that runs everywhere."""
    global _choice
    force = _forced(precision)
    arguments = (layout, H, backward, relu, precision, directions, device, leak)
    try:
        _run_kernel(force, *arguments)
    except _C.CudaError as error:
        if force is not None:
            raise
        warnings.warn(
            f"rnnfast leaves CUDA devices to torch's own operators from now on, because a kernel "
            f"could not be launched: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        _choice = "failed"
        _run_kernel("step", *arguments)


def _run_kernel(force, layout, H, backward, relu, precision, directions, device, leak):
    T, B = layout.T, layout.B
    size = _C.cuda_workspace(B, H, len(directions), backward, precision, force)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    options = (backward, relu, precision, force, layout.batch_first, layout.starts)
    stream = _torch.cuda_stream(device.index)
    _C.cuda_run(T, B, H, *options, layout.reset, leak, directions, workspace, stream)


def project(x, w_ih):
    """Return W_ih x of all steps in the dtype of the sums: float32 if ``x`` has two bytes."""
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
    """Return the part of ``t`` that belongs to direction ``d``, or None for None."""
    return None if t is None else t[..., d * H : (d + 1) * H]


def check(x, weights, descriptor):
    """Check the sizes and dtypes of the input and the weights, and return ``(H, dtype)``.

    The number of dimensions of the input is already checked, by `Layout`.
    """
    one_hot, w_hh = is_one_hot(x), weights[1]
    if w_hh.dim() != 2 or w_hh.shape[0] != w_hh.shape[1]:
        raise RuntimeError(f"weight_hh must be (H, H), got {tuple(w_hh.shape)}")
    H, D, dtype = w_hh.shape[1], descriptor.directions, w_hh.dtype if one_hot else x.dtype
    for n, w in enumerate(weights):
        if n < descriptor.weights_per_layer:
            inputs = w.shape[-1] if one_hot else x.shape[-1]
        else:
            inputs = D * H
        kind = n % descriptor.weights_per_direction
        name = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[kind]
        wanted = ((H, inputs), (H, H), (H,), (H,))[kind]
        if tuple(w.shape) != wanted or w.dtype is not dtype:
            raise RuntimeError(
                f"{name} must be {dtype} {wanted} to fit the rest, got {w.dtype} {tuple(w.shape)}"
            )
    return H, dtype


def as_state(name, state, wanted, dtype):
    """Return a state, or its gradient, contiguous; RuntimeError if its shape or dtype is wrong."""
    if state is None:
        return None
    if tuple(state.shape) != wanted or state.dtype is not dtype:
        raise RuntimeError(
            f"{name} must be {dtype} {wanted} to fit the rest, got {state.dtype} "
            f"{tuple(state.shape)}"
        )
    return state.contiguous()


def rnn_cuda(x, h0, weights, batch_sizes, descriptor, keep, reset=None):
    """Run ``rnn`` on the CUDA kernels; arguments and results are described in ``schema.py``."""
    layout = Layout(x, batch_sizes, descriptor.batch_first, False, reset)
    H, dtype = check(x, weights, descriptor)
    D, relu, like = descriptor.directions, descriptor.nonlinearity == "relu", weights[1]
    shape = (descriptor.num_states, layout.B, H)
    h0 = as_state("hx", h0, shape, dtype)
    h_n = like.new_empty(shape)
    outs, below = [], x
    for layer in range(descriptor.num_layers):
        out = like.new_empty((*layout.rows, D * H))
        directions = []
        for d in range(D):
            n = layer * D + d
            own = descriptor.weights_of(weights, layer, d)
            w_ih, w_hh, *b = (w.contiguous() for w in own)
            b_ih, b_hh = b or (None, None)
            begin = layout.begin(h0, n, d)
            pre = project(below, w_ih)
            directions.append(
                (d == 1, w_hh, pre, None, _half(out, d, H), b_ih, b_hh, begin, h_n[n])
            )
        launch(layout, H, False, relu, dtype, directions, x.device)
        outs.append(out)
        below = out
    return outs if keep else outs[-1:], h_n


def _dw_hh(layout, dpre, h, h0, reverse):
    """Return the gradient of W_hh, the sum of dpre_t h_{t-1}^T over all rows."""
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
    if layout.reset is not None:
        earlier = earlier.masked_fill(layout.resets()[layout.B :], 0.0)
    dw = torch.mm(later.t(), earlier)
    return dw if h0 is None else dw.addmm_(first.t(), h0)


def dw_ih(flat, below, w_ih):
    """Return the gradient of W_ih, the sum of dpre_t x_t^T over all rows of ``flat``, dpre."""
    if is_one_hot(below):
        tokens = below.reshape(-1)
        # The table W_ih^T is an embedding with I rows; no index is padding.
        aten = torch.ops.aten
        return aten.embedding_dense_backward(flat, tokens, w_ih.shape[1], -1, False).t()
    return torch.mm(flat.t(), below.reshape(-1, below.shape[-1]))


def rnn_backward_cuda(dy, dh_n, outs, x, *arguments):
    """Run ``rnn_backward`` on the CUDA kernels.

    The arguments and the result are those of `rnnfast._ops.cpu.rnn_backward_cpu`.
    """
    # The products would change their dtype if backward() is called under autocast.
    with torch.autocast(x.device.type, enabled=False):
        return _rnn_backward(dy, dh_n, outs, x, *arguments)


def _rnn_backward(dy, dh_n, outs, x, h0, weights, batch_sizes, descriptor, needs, reset=None):
    need_dx, need_dh0, need_dw = needs
    layout = Layout(x, batch_sizes, descriptor.batch_first, True, reset)
    H, dtype = check(x, weights, descriptor)
    D, per_direction = descriptor.directions, descriptor.weights_per_direction
    relu = descriptor.nonlinearity == "relu"
    shape = (descriptor.num_states, layout.B, H)
    h0 = as_state("hx", h0, shape, dtype)
    dh_n = as_state("the gradient of h_n", dh_n, shape, dtype)
    dh0 = outs[0].new_empty(shape) if need_dh0 else None
    dw = [None] * len(weights)
    for layer in reversed(range(descriptor.num_layers)):
        below, out = (outs[layer - 1] if layer else x), outs[layer]
        if dy is not None and dy.stride(-1) != 1:
            dy = dy.contiguous()
        directions = []
        for d in range(D):
            n = layer * D + d
            dpre = out.new_empty((*layout.rows, H))
            end = None if dh0 is None else dh0[n]
            begin = None if dh_n is None else dh_n[n]
            w_hh = descriptor.weights_of(weights, layer, d)[1].contiguous()
            tensors = (_half(dy, d, H), _half(out, d, H), dpre, None, None, begin, end)
            directions.append((d == 1, w_hh, *tensors))
        launch(layout, H, True, relu, dtype, directions, x.device)
        dx = None
        for d, (reverse, _, _, h, dpre, *_) in enumerate(directions):
            n = layer * D + d
            w_ih, flat = descriptor.weights_of(weights, layer, d)[0], dpre.view(-1, H)
            if need_dw:
                before = layout.begin(h0, n, d)
                own = [dw_ih(flat, below, w_ih), _dw_hh(layout, dpre, h, before, reverse)]
                if descriptor.bias:
                    db = flat.sum(0)
                    own += [db, db.clone()]  # outputs of an operator may not alias
                dw[n * per_direction : (n + 1) * per_direction] = own
            if layer or (need_dx and not is_one_hot(x)):
                dx = torch.mm(flat, w_ih) if dx is None else dx.addmm_(flat, w_ih)
        dy = None if dx is None else dx.view(below.shape)
    return (dy if need_dx else None), dh0, (dw if need_dw else [])
