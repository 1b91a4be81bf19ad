"""The number of floating-point operations (FLOPs) of each operator.

``torch.utils.flop_counter.FlopCounterMode`` asks for them. Like torch's own formulas, those here
count the multiplications and additions of matrix products, and nothing else. The sum of a call is
that of torch's own module. Resets change nothing.
"""

import torch

from .._torch import when_imported
from .schema import GatedDescriptor, RNNDescriptor, is_one_hot


def _directions(x, weights, batch_sizes, descriptor):
    """Yield the sizes of the matrix products of each direction of each layer.

    They are the layer, the FLOPs of the product with W_ih for all rows, and those of the product
    with W_hh for all rows and for the rows of the first step. Tokens have no product with W_ih.
    """
    rows = x.numel() if is_one_hot(x) else x.shape[:-1].numel()
    for layer in range(descriptor.num_layers):
        for direction in range(descriptor.directions):
            w_ih, w_hh, *_ = descriptor.weights_of(weights, layer, direction)
            if batch_sizes is None:
                first = x.shape[0 if descriptor.batch_first else 1]
            else:
                first = int(batch_sizes[-1 if direction else 0])
            is_lookup = layer == 0 and is_one_hot(x)
            product = 0 if is_lookup else 2 * rows * w_ih.numel()
            yield layer, product, 2 * rows * w_hh.numel(), 2 * first * w_hh.numel()


def _forward_flops(x, weights, batch_sizes, descriptor):
    sizes = _directions(x, weights, batch_sizes, descriptor)
    return sum(product + recurrent for _, product, recurrent, _ in sizes)


def _backward_flops(x, weights, batch_sizes, descriptor, need_dx, need_dh0, need_dw):
    flops = 0
    for layer, product, recurrent, first in _directions(x, weights, batch_sizes, descriptor):
        flops += product * ((need_dx or layer > 0) + need_dw)
        flops += recurrent * (1 + need_dw) - (0 if need_dh0 else first)
    return flops


def rnn_flops(x, h0, weights, batch_sizes, *options_and_keep, reset=None, out_val=None):
    """Return the FLOPs of the operator ``rnn``."""
    descriptor = RNNDescriptor.of_operator(weights, *options_and_keep[:-1])
    return _forward_flops(x, weights, batch_sizes, descriptor)


def rnn_backward_flops(
    dy, dh_n, outs, x, h0, weights, batch_sizes, *options_and_needs, reset=None, out_val=None
):
    """Return the FLOPs of the operator ``rnn_backward``."""
    descriptor = RNNDescriptor.of_operator(weights, *options_and_needs[:-3])
    return _backward_flops(x, weights, batch_sizes, descriptor, *options_and_needs[-3:])


def gated_rnn_flops(x, h0, c0, weights, batch_sizes, *options_and_keep, reset=None, out_val=None):
    """Return the FLOPs of the operator ``gated_rnn``."""
    descriptor = GatedDescriptor.of_operator(weights, *options_and_keep[:-1])
    return _forward_flops(x, weights, batch_sizes, descriptor)


def gated_rnn_backward_flops(
    dy, dh_n, dc_n, outs, saved, x, h0, c0, weights, batch_sizes, *options_and_needs,
    reset=None, out_val=None,
):  # fmt: skip
    """Return the FLOPs of the operator ``gated_rnn_backward``."""
    descriptor = GatedDescriptor.of_operator(weights, *options_and_needs[:-4])
    need_dx, need_dh0, _, need_dw = options_and_needs[-4:]
    return _backward_flops(x, weights, batch_sizes, descriptor, need_dx, need_dh0, need_dw)


def _leaky_products(x, weights):
    """Return the FLOPs of the products with W_ih and W_hh for all rows of one layer."""
    w_ih, w_hh, *_ = weights
    rows = x.numel() if is_one_hot(x) else x.shape[:-1].numel()
    return 0 if is_one_hot(x) else 2 * rows * w_ih.numel(), 2 * rows * w_hh.numel()


def leaky_rnn_flops(x, h0, weights, *rest, reset=None, out_val=None):
    """Return the FLOPs of the operator ``leaky_rnn``."""
    return sum(_leaky_products(x, weights))


def leaky_rnn_backward_flops(
    dy, dh_n, dstates, output, states, saved, x, h0, weights, alpha, batch_sizes, *rest,
    reset=None, out_val=None,
):  # fmt: skip
    """Return the FLOPs of the operator ``leaky_rnn_backward``."""
    *_, need_dx, need_dh0, need_dw, _, _ = rest
    product, recurrent = _leaky_products(x, weights)
    first = batch_sizes[0] if batch_sizes is not None else x.shape[0 if rest[0] else 1]
    flops = product * (need_dx + need_dw) + recurrent * (1 + need_dw)
    return flops - (0 if need_dh0 else 2 * int(first) * weights[1].numel())


def linear_cross_entropy_flops(
    x, w, target, b, dloss, reduction, need_dx, need_dw, need_db, out_val=None
):
    """Return the FLOPs of the operator ``linear_cross_entropy``."""
    return 2 * len(x) * w.numel() * (1 + need_dx + need_dw)


def _register(flop_counter):
    ops = torch.ops.rnnfast
    for op, formula in (
        (ops.rnn, rnn_flops),
        (ops.rnn_backward, rnn_backward_flops),
        (ops.gated_rnn, gated_rnn_flops),
        (ops.gated_rnn_backward, gated_rnn_backward_flops),
        (ops.leaky_rnn, leaky_rnn_flops),
        (ops.leaky_rnn_backward, leaky_rnn_backward_flops),
        (ops.linear_cross_entropy, linear_cross_entropy_flops),
    ):
        flop_counter.register_flop_formula(op, get_raw=True)(formula)


when_imported("torch.utils.flop_counter", _register)
