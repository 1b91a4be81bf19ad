"""Which implementation runs a call of an operator.

The dispatcher of torch takes microseconds. Where nothing observes it, the functions here call the
implementation directly.
"""

import torch

from .._torch import disable_dynamo, is_dispatcher_observed
from . import cpu, cuda
from .cpu import (
    dropout_cpu,
    gated_rnn_backward_cpu,
    gated_rnn_cpu,
    leaky_rnn_backward_cpu,
    leaky_rnn_cpu,
    linear_cross_entropy_cpu,
    normal_cpu,
    rnn_backward_cpu,
    rnn_cpu,
)
from .cuda import rnn_backward_cuda, rnn_cuda
from .cuda_leaky import leaky_rnn_backward_cuda, leaky_rnn_cuda
from .schema import GatedDescriptor, LeakyDescriptor, RNNDescriptor, library


def has_rnn_kernel(device_type, dtype):
    """Return whether ``rnn`` has a kernel for weights of ``dtype`` on devices of this type."""
    if device_type == "cuda":
        return cuda.has_kernel(dtype)
    return device_type == "cpu" and dtype in cpu.DTYPES


def is_torch_faster(x, weights, batch_sizes, descriptor):
    """Return whether torch's own path is faster than the kernel that ``rnn`` has for ``x``."""
    return x.is_cuda and cuda.is_torch_faster(x, weights, batch_sizes, descriptor)


def has_gated_kernel(device_type, dtype):
    """Return whether ``gated_rnn`` has a kernel for ``dtype`` on devices of this type."""
    return device_type == "cpu" and dtype in cpu.DTYPES


def has_leaky_kernel(device_type, dtype):
    """Return whether ``leaky_rnn`` has a kernel for ``dtype`` on devices of this type."""
    return has_rnn_kernel(device_type, dtype)


def has_dropout_kernel(device_type, dtype):
    """Return whether ``dropout`` has a kernel for tensors of ``dtype`` on devices of this type."""
    return device_type == "cpu" and dtype in cpu.DTYPES


def has_loss_kernel(device_type, dtype):
    """Return whether ``linear_cross_entropy`` has a kernel for ``dtype`` on this type of device."""
    return device_type == "cpu" and dtype in (torch.float32, torch.float64)


def _rnn_operator(run):
    """Return the operator ``rnn`` that calls ``run`` with a descriptor."""

    def operator(x, h0, weights, batch_sizes, *options_and_keep, reset=None):
        *options, keep = options_and_keep
        descriptor = RNNDescriptor.of_operator(weights, *options)
        return run(x, h0, weights, batch_sizes, descriptor, keep, reset)

    return operator


def _rnn_backward_operator(run):
    """Return the operator ``rnn_backward`` that calls ``run`` with a descriptor.

    The number of tensors that an operator returns is fixed, so a gradient that is not needed is an
    empty tensor.
    """

    def operator(dy, dh_n, outs, x, h0, weights, batch_sizes, *options_and_needs, reset=None):
        *options, need_dx, need_dh0, need_dw = options_and_needs
        descriptor = RNNDescriptor.of_operator(weights, *options)
        needs = (need_dx, need_dh0, need_dw)
        dx, dh0, dw = run(dy, dh_n, outs, x, h0, weights, batch_sizes, descriptor, needs, reset)
        nothing = outs[0].new_empty
        return nothing(0) if dx is None else dx, nothing(0) if dh0 is None else dh0, dw

    return operator


def _or_empty(like, t):
    return like.new_empty(0) if t is None else t


def _gated_rnn_operator(x, h0, c0, weights, batch_sizes, *options_and_keep, reset=None):
    *options, keep = options_and_keep
    descriptor = GatedDescriptor.of_operator(weights, *options)
    call = (x, h0, c0, weights, batch_sizes, descriptor, keep, reset)
    outs, h_n, c_n, saved = gated_rnn_cpu(*call)
    return outs, h_n, _or_empty(h_n, c_n), saved


def _gated_rnn_backward_operator(
    dy, dh_n, dc_n, outs, saved, x, h0, c0, weights, batch_sizes, *options_and_needs, reset=None
):
    descriptor = GatedDescriptor.of_operator(weights, *options_and_needs[:-4])
    tensors = ((dy, dh_n, dc_n), outs, saved, x, h0, c0, weights, batch_sizes)
    needs = options_and_needs[-4:]
    *results, dw = gated_rnn_backward_cpu(*tensors, descriptor, needs, reset)
    return *(_or_empty(outs[0], g) for g in results), dw


def _leaky_rnn_operator(run):
    """Return the operator ``leaky_rnn`` that calls ``run`` with a descriptor."""

    def operator(*args, reset=None):
        *tensors, batch_first, current, nonlinearity, keep_states, keep_saved = args
        descriptor = LeakyDescriptor(batch_first, current, nonlinearity)
        results = run(*tensors, descriptor, (keep_states, keep_saved), reset)
        return tuple(_or_empty(results[0], t) for t in results)

    return operator


def _leaky_rnn_backward_operator(run):
    """Return the operator ``leaky_rnn_backward`` that calls ``run`` with a descriptor."""

    def operator(dy, dh_n, dstates, output, states, saved, *rest, reset=None):
        *tensors, batch_first, current, nonlinearity, dx, dh0, dw, dalpha, dnoise = rest
        descriptor = LeakyDescriptor(batch_first, current, nonlinearity)
        outputs = (output, *(t if t.numel() else None for t in (states, saved)))
        needs = (dx, dh0, dw, dalpha, dnoise)
        results = run((dy, dh_n, dstates), outputs, *tensors, descriptor, needs, reset)
        return tuple(g if isinstance(g, list) else _or_empty(output, g) for g in results)

    return operator


for _name, _device, _implementation in (
    ("rnn", "CPU", _rnn_operator(rnn_cpu)),
    ("rnn", "CUDA", _rnn_operator(rnn_cuda)),
    ("rnn_backward", "CPU", _rnn_backward_operator(rnn_backward_cpu)),
    ("rnn_backward", "CUDA", _rnn_backward_operator(rnn_backward_cuda)),
    ("gated_rnn", "CPU", _gated_rnn_operator),
    ("gated_rnn_backward", "CPU", _gated_rnn_backward_operator),
    ("leaky_rnn", "CPU", _leaky_rnn_operator(leaky_rnn_cpu)),
    ("leaky_rnn", "CUDA", _leaky_rnn_operator(leaky_rnn_cuda)),
    ("leaky_rnn_backward", "CPU", _leaky_rnn_backward_operator(leaky_rnn_backward_cpu)),
    ("leaky_rnn_backward", "CUDA", _leaky_rnn_backward_operator(leaky_rnn_backward_cuda)),
    ("normal", "CPU", normal_cpu),
    ("linear_cross_entropy", "CPU", linear_cross_entropy_cpu),
    ("dropout", "CPU", dropout_cpu),
):
    # After a graph break Dynamo would trace the implementation.
    library.impl(_name, disable_dynamo(_implementation), _device)

_rnn_op = torch.ops.rnnfast.rnn.default
_rnn_backward_op = torch.ops.rnnfast.rnn_backward.default
_linear_cross_entropy_op = torch.ops.rnnfast.linear_cross_entropy.default
_gated_rnn_op = torch.ops.rnnfast.gated_rnn.default
_gated_rnn_backward_op = torch.ops.rnnfast.gated_rnn_backward.default
_leaky_rnn_op = torch.ops.rnnfast.leaky_rnn.default
_leaky_rnn_backward_op = torch.ops.rnnfast.leaky_rnn_backward.default
_normal_op = torch.ops.rnnfast.normal.default
_dropout_op = torch.ops.rnnfast.dropout.default
_PLAIN = {torch.Tensor, torch.nn.Parameter, type(None)}


def _can_call_directly(weights, *tensors):
    """Return whether the implementation can be called without the dispatcher.

    The dispatcher is needed where something observes the call, for a subclass of Tensor, and for a
    view that negates, because its values are not those in memory.
    """
    if is_dispatcher_observed() or not {*map(type, weights), *map(type, tensors)} <= _PLAIN:
        return False
    return not any([t.is_neg() for t in (*weights, *tensors) if t is not None])  # noqa: C419 - faster


def rnn_forward(x, h0, weights, batch_sizes, descriptor, keep, reset=None):
    """Run the operator ``rnn`` and return ``(outs, h_n)``."""
    if not _can_call_directly(weights, x, h0):
        return _rnn_op(x, h0, weights, batch_sizes, *descriptor.options, keep, reset=reset)
    run = rnn_cpu if x.is_cpu else rnn_cuda
    return run(x, h0, weights, batch_sizes, descriptor, keep, reset)


def rnn_backward(dy, dh_n, outs, x, h0, weights, batch_sizes, descriptor, needs, reset=None):
    """Run the operator ``rnn_backward`` for ``needs``, ``(need_dx, need_dh0, need_dw)``.

    Returns:
        ``(dx, dh0, dw)``. A gradient that is not needed is None or empty.
    """
    tensors = (dy, dh_n, outs, x, h0, weights, batch_sizes)
    if not _can_call_directly(weights, dy, dh_n, x, h0):
        return _rnn_backward_op(*tensors, *descriptor.options, *needs, reset=reset)
    run = rnn_backward_cpu if x.is_cpu else rnn_backward_cuda
    return run(*tensors, descriptor, needs, reset)


def gated_rnn(x, h0, c0, weights, batch_sizes, descriptor, keep, reset=None):
    """Run the operator ``gated_rnn``.

    Returns:
        ``(outs, h_n, c_n, saved)``. For a GRU ``c_n`` is None or empty.
    """
    if _can_call_directly(weights, x, h0, c0):
        return gated_rnn_cpu(x, h0, c0, weights, batch_sizes, descriptor, keep, reset)
    options = (*descriptor.options, keep)
    return _gated_rnn_op(x, h0, c0, weights, batch_sizes, *options, reset=reset)


def gated_rnn_backward(gradients, outs, saved, x, h0, c0, weights, batch_sizes, *rest):
    """Run the operator ``gated_rnn_backward`` for ``rest``: ``(descriptor, needs, reset)``.

    The other arguments are those of `gated_rnn_backward_cpu`.

    Returns:
        ``(dx, dh0, dc0, dw)``. A gradient that is not needed is None or empty.
    """
    tensors = (outs, saved, x, h0, c0, weights, batch_sizes)
    if _can_call_directly(weights, x, h0, c0, *gradients):
        return gated_rnn_backward_cpu(gradients, *tensors, *rest)
    descriptor, needs, reset = rest
    return _gated_rnn_backward_op(*gradients, *tensors, *descriptor.options, *needs, reset=reset)


def leaky_rnn(x, h0, weights, alpha, noise, noise_scale, seed, batch_sizes, *rest):
    """Run the operator ``leaky_rnn`` for ``rest``: ``(descriptor, keeps, reset)``.

    Returns:
        ``(output, h_n, states, saved)``. What is not kept is None or empty.
    """
    tensors = (x, h0, weights, alpha, noise, noise_scale, seed, batch_sizes)
    if _can_call_directly(weights, x, h0, alpha, noise):
        run = leaky_rnn_cpu if x.is_cpu else leaky_rnn_cuda
        return run(*tensors, *rest)
    descriptor, keeps, reset = rest
    return _leaky_rnn_op(*tensors, *descriptor, *keeps, reset=reset)


def leaky_rnn_backward(gradients, outputs, x, h0, weights, alpha, batch_sizes, *rest):
    """Run the operator ``leaky_rnn_backward`` for ``rest``: ``(descriptor, needs, reset)``.

    The other arguments are those of `leaky_rnn_backward_cpu`.

    Returns:
        ``(dx, dh0, dw, dalpha, dnoise)``. A gradient that is not needed is None or empty.
    """
    tensors = (x, h0, weights, alpha, batch_sizes)
    if _can_call_directly(weights, x, h0, alpha, *gradients):
        outputs = [t if t is None or t.numel() else None for t in outputs]
        run = leaky_rnn_backward_cpu if x.is_cpu else leaky_rnn_backward_cuda
        return run(gradients, outputs, *tensors, *rest)
    descriptor, needs, reset = rest
    outputs = [_or_empty(outputs[0], t) for t in outputs]
    return _leaky_rnn_backward_op(*gradients, *outputs, *tensors, *descriptor, *needs, reset=reset)


def normal(seed, like, rows, columns):
    """Run the operator ``normal``."""
    call = normal_cpu if _can_call_directly((), seed, like) else _normal_op
    return call(seed, like, rows, columns)


def linear_cross_entropy(x, w, target, b, dloss, *options):
    """Run the operator ``linear_cross_entropy``."""
    plain = _can_call_directly((), x, w, target, b, dloss)
    call = linear_cross_entropy_cpu if plain else _linear_cross_entropy_op
    return call(x, w, target, b, dloss, *options)


def dropout(x, seed, p):
    """Run the operator ``dropout``."""
    call = dropout_cpu if _can_call_directly((), x, seed) else _dropout_op
    return call(x, seed, p)
