"""The RNN, the GRU and the LSTM on rnnfast's kernels, and their autograd Functions."""

from functools import partial

import torch

from .. import _ops, _torch
from ._operators import rnn_torch
from ._segments import rnn_in_segments
from ._shared import differentiable_gradients, states_of


def rnn_on_kernel(x, h0, weights, batch_sizes, descriptor, reset=None):
    """Run the RNN on rnnfast's kernels, without dropout between its layers."""
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (h0 is not None and h0.requires_grad)
        or any([w.requires_grad for w in weights])  # noqa: C419 - a generator costs more than it saves
    ):
        return _RNN.apply(x, h0, batch_sizes, reset, descriptor, *weights)
    outs, h_n = _ops.rnn_forward(x, h0, weights, batch_sizes, descriptor, False, reset)
    return outs[0], h_n


def gated_on_kernel(x, hx, weights, batch_sizes, descriptor, reset=None):
    """Run the GRU or the LSTM on rnnfast's kernels, without dropout between its layers."""
    states = states_of(hx)
    h0, c0 = (*states, None, None)[:2]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *states, *weights)):
        tensors = (x, h0, c0, batch_sizes, reset, descriptor, *weights)
        output, h_n, c_n = _Gated.apply(*tensors)
    else:
        tensors = (x, h0, c0, weights, batch_sizes)
        (output,), h_n, c_n, _ = _ops.gated_rnn(*tensors, descriptor, False, reset)
    return output, (h_n, c_n) if descriptor.is_lstm else h_n


class _RNN(torch.autograd.Function):
    """All layers, directions and time steps. It saves the outputs of each layer, nothing else."""

    # There is no setup_context: with it every call takes 45 us to bind its arguments with
    # inspect.signature. Only torch.func needs it, and torch.func never reaches the kernels.
    @staticmethod
    def forward(ctx, x, h0, batch_sizes, reset, descriptor, *weights):
        outs, h_n = _ops.rnn_forward(x, h0, weights, batch_sizes, descriptor, True, reset)
        ctx.save_for_backward(x, h0, batch_sizes, reset, *outs, *weights)
        ctx.descriptor = descriptor
        ctx.set_materialize_grads(False)
        return outs[-1], h_n

    @staticmethod
    def backward(ctx, dy, dh_n):
        if dy is None and dh_n is None:
            return (None,) * len(ctx.needs_input_grad)
        x, h0, batch_sizes, reset, *saved = ctx.saved_tensors
        descriptor = ctx.descriptor
        outs, weights = saved[: descriptor.num_layers], saved[descriptor.num_layers :]
        is_batched = _torch.is_batch_of_vmap(dy) or _torch.is_batch_of_vmap(dh_n)
        if torch.is_grad_enabled() or is_batched:  # create_graph=True enables gradients here
            inputs = (x, h0, batch_sizes, reset, descriptor, *weights)
            return differentiable_gradients(ctx, _rnn_with_derivatives, inputs, (dy, dh_n))
        need_dx, need_dh0, _, _, _, *needs_dw = ctx.needs_input_grad
        needs = (need_dx, need_dh0, True in needs_dw)
        tensors = (dy, dh_n, outs, x, h0, weights, batch_sizes)
        dx, dh0, dw = _ops.rnn_backward(*tensors, descriptor, needs, reset)
        if False in needs_dw:
            dw = [g if need else None for g, need in zip(dw or weights, needs_dw, strict=True)]
        return (dx if need_dx else None, dh0 if need_dh0 else None, None, None, None, *dw)


class _Gated(torch.autograd.Function):
    """Like `_RNN`, for the GRU and the LSTM. It also saves what the kernel keeps of each layer."""

    @staticmethod
    def forward(ctx, x, h0, c0, batch_sizes, reset, descriptor, *weights):
        tensors = (x, h0, c0, weights, batch_sizes)
        outs, h_n, c_n, kept = _ops.gated_rnn(*tensors, descriptor, True, reset)
        ctx.save_for_backward(x, h0, c0, batch_sizes, reset, *outs, *kept, *weights)
        ctx.descriptor = descriptor
        ctx.set_materialize_grads(False)
        return outs[-1], h_n, c_n if descriptor.is_lstm else None

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n):
        if dy is None and dh_n is None and dc_n is None:
            return (None,) * len(ctx.needs_input_grad)
        gradients = (dy, dh_n, dc_n)
        x, h0, c0, batch_sizes, reset, *saved = ctx.saved_tensors
        descriptor, L = ctx.descriptor, ctx.descriptor.num_layers
        outs, kept, weights = saved[:L], saved[L : 2 * L], saved[2 * L :]
        if torch.is_grad_enabled() or any(map(_torch.is_batch_of_vmap, gradients)):
            inputs = (x, h0, c0, batch_sizes, reset, descriptor, *weights)
            return differentiable_gradients(ctx, _gated_with_derivatives, inputs, gradients)
        need_dx, need_dh0, need_dc0, _, _, _, *needs_dw = ctx.needs_input_grad
        needs = (need_dx, need_dh0, need_dc0, True in needs_dw)
        tensors = (outs, kept, x, h0, c0, weights, batch_sizes)
        *results, dw = _ops.gated_rnn_backward(gradients, *tensors, descriptor, needs, reset)
        dw = [g if need else None for g, need in zip(dw or weights, needs_dw, strict=True)]
        results = [g if need else None for g, need in zip(results, needs[:3], strict=True)]
        return (*results, None, None, None, *dw)


def _rnn_with_derivatives(x, hx, batch_sizes, reset, descriptor, *weights):
    """Run any cell on torch's operators, of which every derivative exists."""
    run = rnn_torch if reset is None else partial(rnn_in_segments, rnn_torch, reset=reset)
    with _torch.without_cudnn():  # its backward pass has no derivative
        return run(x, hx, weights, batch_sizes, descriptor)


def _gated_with_derivatives(x, h0, c0, *rest):
    """Do what `_rnn_with_derivatives` does, and return the three outputs of `_Gated`."""
    output, h_n = _rnn_with_derivatives(x, h0 if c0 is None else (h0, c0), *rest)
    return output, *(h_n if isinstance(h_n, tuple) else (h_n, None))
