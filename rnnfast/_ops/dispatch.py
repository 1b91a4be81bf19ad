"""Which implementation runs a call of an operator.

The dispatcher of torch takes microseconds. Where nothing observes it, the functions here call the
implementation directly.
"""

import torch

from .._torch import disable_dynamo, is_dispatcher_observed
from . import cpu, cuda
from .cpu import dropout_cpu, linear_cross_entropy_cpu, rnn_backward_cpu, rnn_cpu
from .cuda import rnn_backward_cuda, rnn_cuda
from .schema import library


def has_rnn_kernel(device_type, dtype):
    """Return whether ``rnn`` has a kernel for weights of ``dtype`` on devices of this type."""
    if device_type == "cuda":
        return cuda.has_kernel(dtype)
    return device_type == "cpu" and dtype in cpu.DTYPES


def has_dropout_kernel(device_type, dtype):
    """Return whether ``dropout`` has a kernel for tensors of ``dtype`` on devices of this type."""
    return device_type == "cpu" and dtype in cpu.DTYPES


def has_loss_kernel(device_type, dtype):
    """Return whether ``linear_cross_entropy`` has a kernel for ``dtype`` on this type of device."""
    return device_type == "cpu" and dtype in (torch.float32, torch.float64)


def _operator_of_backward(run):
    """Return the operator ``rnn_backward`` whose gradients are those of ``run``.

    The number of tensors that an operator returns is fixed, so a gradient that is not needed is an
    empty tensor.
    """

    def operator(dy, dh_n, outs, *arguments):
        dx, dh0, dw = run(dy, dh_n, outs, *arguments)
        nothing = outs[0].new_empty
        return nothing(0) if dx is None else dx, nothing(0) if dh0 is None else dh0, dw

    return operator


for _name, _device, _implementation in (
    ("rnn", "CPU", rnn_cpu),
    ("rnn", "CUDA", rnn_cuda),
    ("rnn_backward", "CPU", _operator_of_backward(rnn_backward_cpu)),
    ("rnn_backward", "CUDA", _operator_of_backward(rnn_backward_cuda)),
    ("linear_cross_entropy", "CPU", linear_cross_entropy_cpu),
    ("dropout", "CPU", dropout_cpu),
):
    # After a graph break Dynamo would trace the implementation.
    library.impl(_name, disable_dynamo(_implementation), _device)

_rnn_op = torch.ops.rnnfast.rnn.default
_rnn_backward_op = torch.ops.rnnfast.rnn_backward.default
_linear_cross_entropy_op = torch.ops.rnnfast.linear_cross_entropy.default
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


def rnn_forward(x, h0, weights, *options):
    """Run the operator ``rnn`` and return ``(outs, h_n)``."""
    direct = rnn_cpu if x.is_cpu else rnn_cuda
    call = direct if _can_call_directly(weights, x, h0) else _rnn_op
    return call(x, h0, weights, *options)


def rnn_backward(dy, dh_n, outs, x, h0, weights, *options):
    """Run the operator ``rnn_backward``; a gradient that is not needed may be None."""
    direct = rnn_backward_cpu if x.is_cpu else rnn_backward_cuda
    call = direct if _can_call_directly(weights, dy, dh_n, x, h0) else _rnn_backward_op
    return call(dy, dh_n, outs, x, h0, weights, *options)


def linear_cross_entropy(x, w, target, b, dloss, *options):
    """Run the operator ``linear_cross_entropy``."""
    plain = _can_call_directly((), x, w, target, b, dloss)
    call = linear_cross_entropy_cpu if plain else _linear_cross_entropy_op
    return call(x, w, target, b, dloss, *options)


def dropout(x, seed, p):
    """Run the operator ``dropout``."""
    call = dropout_cpu if _can_call_directly((), x, seed) else _dropout_op
    return call(x, seed, p)
