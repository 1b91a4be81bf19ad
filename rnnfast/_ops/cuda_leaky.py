"""The CUDA implementations of ``leaky_rnn`` and ``leaky_rnn_backward``.

As in ``cuda.py``, the recurrence runs on the kernels of csrc/cuda, and the products over all time
steps run on torch. csrc/api/leaky.h has the equations.
"""

import torch

from . import cuda
from .schema import NONLINEARITIES, RNNDescriptor, is_one_hot


def _rest(descriptor):
    """Return the output r of the state zero."""
    if not descriptor.current:
        return 0.0
    return NONLINEARITIES[descriptor.nonlinearity](
        torch.zeros((), dtype=torch.float64, device="cpu")
    ).item()


def _begin(layout, h0, like, descriptor):
    """Return ``(s_0, r_0)``, each (B, H) or None for zeros, after resets of the first step."""
    H = like.shape[-1]
    h0 = layout.begin(cuda.as_state("hx", h0, (1, layout.B, H), like.dtype), 0, 0)
    if not descriptor.current:
        return h0, h0
    f = NONLINEARITIES[descriptor.nonlinearity]
    return h0, f(like.new_zeros(layout.B, H) if h0 is None else h0)


def _before(layout, sequence, first, rest):
    """Return for each row of ``sequence`` the row of the step before.

    Before the first step this is ``first``, or zeros if that is None. After a reset it is ``rest``.
    """
    if first is None:
        first = sequence.new_zeros(layout.B, sequence.shape[-1])
    if layout.starts is not None:
        before = torch.cat((first, sequence.index_select(0, layout.earlier)))
    else:
        time = int(layout.batch_first)
        before = torch.cat((first.unsqueeze(time), sequence.narrow(time, 0, layout.T - 1)), time)
    return before if layout.reset is None else before.masked_fill(layout.reset.unsqueeze(-1), rest)


def _rows(t):
    """Return ``t``, with adjacent elements in each row."""
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def _check(x, weights, alpha, descriptor):
    """Check the sizes and dtypes of a call, and return ``(H, dtype, w_hh, bias, alpha)``."""
    one = RNNDescriptor(1, 1, descriptor.batch_first, "tanh", False)
    H, dtype = cuda.check(x, weights[:2], one)
    bias = cuda.as_state("bias", weights[2] if len(weights) > 2 else None, (H,), dtype)
    return H, dtype, weights[1].contiguous(), bias, cuda.as_state("alpha", alpha, (H,), dtype)


def _carry(layout, like):
    """Return memory for the states between two steps, in the dtype of the sums."""
    dtype = torch.float32 if like.element_size() == 2 else like.dtype
    return like.new_empty((layout.B, like.shape[-1]), dtype=dtype)


def leaky_rnn_cuda(
    x, h0, weights, alpha, noise, noise_scale, seed, batch_sizes, descriptor, keeps, reset=None
):
    """Run ``leaky_rnn`` on the CUDA kernels.

    The arguments and the result are those of `rnnfast._ops.cpu.leaky_rnn_cpu`, except that the
    kernels draw no noise.
    """
    if noise_scale is not None:
        raise RuntimeError(
            "noise_scale must be None on a CUDA device, where the kernels draw no noise: give noise"
        )
    keep_states, keep_saved = keeps
    current = descriptor.current
    layout = cuda.Layout(x, batch_sizes, descriptor.batch_first, current and keep_saved, reset)
    H, dtype, w_hh, bias, alpha = _check(x, weights, alpha, descriptor)
    s0, r0 = _begin(layout, h0, w_hh, descriptor)
    pre = cuda.project(x, weights[0])
    if noise is not None:
        pre += cuda.as_state("noise", noise, (*layout.rows, H), dtype)
    output, h_n = w_hh.new_empty((*layout.rows, H)), w_hh.new_empty((1, layout.B, H))
    kept = torch.empty_like(output) if (keep_states if current else keep_saved) else None
    directions = [(False, w_hh, pre, None, output, bias, None, r0, h_n[0])]
    leak = (current, descriptor.nonlinearity, alpha, s0, None, kept, _carry(layout, w_hh))
    cuda.launch(layout, H, False, False, dtype, directions, x.device, leak)
    if not current:
        return output, h_n, None, kept
    saved = None
    if keep_saved:  # p_t
        saved = pre.add_(cuda.project(_before(layout, output, r0, _rest(descriptor)), w_hh))
        saved = (saved if bias is None else saved.add_(bias)).to(dtype)
    return output, h_n, kept, saved


def leaky_rnn_backward_cuda(gradients, outputs, x, *arguments):
    """Run ``leaky_rnn_backward`` on the CUDA kernels.

    The arguments and the result are those of `rnnfast._ops.cpu.leaky_rnn_backward_cpu`.
    """
    # The products would change their dtype if backward() is called under autocast.
    with torch.autocast(x.device.type, enabled=False):
        return _backward(gradients, outputs, x, *arguments)


def _backward(
    gradients, outputs, x, h0, weights, alpha, batch_sizes, descriptor, needs, reset=None
):
    dy, dh_n, dstates = gradients
    output, states, saved = outputs
    need_dx, need_dh0, need_dw, need_dalpha, need_dnoise = needs
    current = descriptor.current
    layout = cuda.Layout(x, batch_sizes, descriptor.batch_first, True, reset)
    H, dtype, w_hh, _, alpha = _check(x, weights, alpha, descriptor)
    s0, r0 = _begin(layout, h0, w_hh, descriptor)
    dh_n = cuda.as_state("the gradient of h_n", dh_n, (1, layout.B, H), dtype)
    dh0 = w_hh.new_empty((1, layout.B, H)) if need_dh0 else None
    dpre, dstate = torch.empty_like(output), torch.empty_like(output) if need_dalpha else None
    ends = (None if dh_n is None else dh_n[0], None if dh0 is None else dh0[0])
    y = output if current else saved
    directions = [(False, w_hh, _rows(dy), y, dpre, None, None, *ends)]
    dstates = _rows(dstates) if current else None  # the states of a rate are the output itself
    leak = (current, descriptor.nonlinearity, alpha, r0, dstates, dstate, _carry(layout, w_hh))
    cuda.launch(layout, H, True, False, dtype, directions, x.device, leak)

    flat, dw, dalpha = dpre.view(-1, H), [], None
    if need_dw or (need_dalpha and not current):
        before = _before(layout, output, r0, _rest(descriptor))
    if need_dw:
        dw = [cuda.dw_ih(flat, x, weights[0]), torch.mm(flat.t(), before.view(-1, H))]
        dw += [flat.sum(0)] * (len(weights) > 2)
    if need_dalpha:
        if current:  # the state of a rate is the output
            before = _before(layout, states, s0, 0.0)
        wide = [t.float() if t.element_size() == 2 else t for t in (dstate, saved, before)]
        dalpha = (wide[0] * (wide[1] - wide[2])).flatten(0, -2).sum(0).to(dtype)
    dx = torch.mm(flat, weights[0]).view(x.shape) if need_dx and not is_one_hot(x) else None
    return dx, dh0, dw, dalpha, dpre if need_dnoise else None
