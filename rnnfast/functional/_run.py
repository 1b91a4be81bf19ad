"""The choice of what runs a call of the RNN, the GRU or the LSTM."""

import operator
from functools import partial

import torch
from torch.nn import functional as F

from .. import _ops, _torch
from ._kernels import gated_on_kernel, rnn_on_kernel
from ._operators import PLAIN, check_hx_dtype, rnn_torch
from ._segments import rnn_in_segments
from ._shared import (
    as_hx,
    autocast_dtype,
    can_run_kernel,
    cast,
    each_state,
    has_own_torch_function,
    states_of,
)
from ._stepwise import rnn_stepwise


def run_rnn(
    input,
    hx,
    weights,
    batch_sizes,
    descriptor,
    dropout=0.0,
    variational_dropout=0.0,
    zoneout=0.0,
    training=False,
    lengths=None,
    reset=None,
):
    """Run a cell for arguments whose number and names are known to be right.

    Args:
        input, hx, weights, batch_sizes: as in :func:`rnn`, :func:`gru` or :func:`lstm`.
        descriptor: the `RNNDescriptor` or the `GatedDescriptor` of the call.
        dropout: as in :func:`rnn`, but 0 outside of training.
        variational_dropout: like ``dropout``, with one mask for all time steps.
        zoneout: as in `rnn_stepwise`.
        training: whether zoneout is drawn at random.
        lengths: the number of time steps of each sequence of a padded batch, int64 (B), for graphs,
            which do not know the values. Otherwise such a batch is packed.
        reset: as in :func:`rnn`.
    """
    batch_first = descriptor.batch_first
    if batch_sizes is None and input.dim() > 1 and input.shape[1 if batch_first else 0] == 0:
        raise RuntimeError(
            f"Expected sequence length to be larger than 0 in RNN, got input {tuple(input.shape)}"
        )
    kernel, has_kernel = rnn_on_kernel, _ops.has_rnn_kernel
    if descriptor.gates > 1:
        kernel, has_kernel = gated_on_kernel, _ops.has_gated_kernel
        if len(weights) != descriptor.num_layers * descriptor.weights_per_layer:
            has_kernel = _has_no_kernel  # for the projections of torch's LSTM
    run = kernel if lengths is None else partial(_run_padded, lengths=lengths)
    if zoneout or not can_run_kernel(input, weights[0].dtype, has_kernel):
        is_stepwise = zoneout or lengths is not None or _torch.is_in_vmap()
        if reset is not None:  # a graph or a transform cannot look at the values of resets
            is_in_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
            is_stepwise = is_stepwise or is_in_graph or _torch.is_in_transform()
        dtype = autocast_dtype(input.device.type)
        if dtype is not None and (is_stepwise or has_kernel(input.device.type, dtype)):
            hx = each_state(partial(cast, dtype=dtype), hx)
            input, *weights = (cast(t, dtype) for t in (input, *weights))
            options = (dropout, variational_dropout, zoneout, training, lengths, reset)
            with torch.autocast(input.device.type, enabled=False):
                return run_rnn(input, hx, weights, batch_sizes, descriptor, *options)
        check_hx_dtype(hx, weights[0].dtype)
        if is_stepwise:
            run = partial(rnn_stepwise, zoneout=zoneout, training=training, lengths=lengths)
        elif variational_dropout or reset is not None:
            run = rnn_torch
        else:
            return rnn_torch(input, hx, weights, batch_sizes, descriptor, dropout)
    else:
        device = input.device
        for w in weights:  # otherwise an operator would run on the device of the last tensor
            if type(w) not in PLAIN and has_own_torch_function(w):
                run = rnn_torch
                break
            if w.device != device:
                raise RuntimeError(f"weights must be on {device} like the input, got {w.device}")
        if hx is not None:
            for state in states_of(hx):
                if state.device != device:
                    raise RuntimeError(f"hx must be on {device} like the input, got {state.device}")
        if (
            input.is_cuda
            and reset is None  # cuDNN has no resets
            and not torch.compiler.is_compiling()
            and _ops.is_torch_faster(input, weights, batch_sizes, descriptor)
        ):
            run = rnn_torch
    if reset is not None and reset.numel() > 0:
        reset = reset.to(input.device)
        if run is rnn_torch:
            run = partial(rnn_in_segments, run)
        run = partial(run, reset=reset)
    if descriptor.num_layers == 1 or not (dropout or variational_dropout):
        return run(input, hx, weights, batch_sizes, descriptor)

    D, one_layer = descriptor.directions, descriptor.one_layer
    states, count = [], len(weights) // descriptor.num_layers
    for layer in range(descriptor.num_layers):
        if layer > 0:
            if dropout:
                input = _dropout(input, dropout, batch_first and batch_sizes is None)
            if variational_dropout:
                input = _variational_dropout(input, variational_dropout, batch_sizes, batch_first)
        h0 = each_state(operator.itemgetter(slice(layer * D, (layer + 1) * D)), hx)
        own = weights[layer * count : (layer + 1) * count]
        input, h_n = run(input, h0, own, batch_sizes, one_layer)
        states.append(h_n)
    return input, as_hx([torch.cat(parts) for parts in zip(*map(states_of, states), strict=True)])


def _has_no_kernel(device_type, dtype):
    return False


def _dropout(input, p, batch_first):
    """Apply dropout with the mask that torch's module draws for the same seed, step by step."""
    if batch_first:
        return F.dropout(input.transpose(0, 1).contiguous(), p).transpose(0, 1)
    return F.dropout(input, p)


def _variational_dropout(input, p, batch_sizes, batch_first):
    """Apply one mask to all time steps of a sequence (Gal & Ghahramani 2016, arXiv:1512.05287)."""
    if batch_sizes is None:
        B, time = (input.shape[0], 1) if batch_first else (input.shape[1], 0)
        return input * F.dropout(input.new_ones(B, input.shape[-1]), p).unsqueeze(time)
    mask = F.dropout(input.new_ones(batch_sizes[0], input.shape[-1]), p)
    starts = batch_sizes.cumsum(0) - batch_sizes
    sequence = torch.arange(input.shape[0], device=starts.device)
    sequence -= starts.repeat_interleave(batch_sizes)
    return input * mask[sequence.to(input.device)]


def _run_padded(x, hx, weights, batch_sizes, descriptor, lengths, reset=None):
    """Run a cell on the operator for padded sequences, which has no gradient."""
    options = descriptor.options
    if descriptor.gates == 1:
        return _ops.rnn_padded(x, hx, weights, lengths, *options, reset=reset)
    h0, c0 = (*states_of(hx), None, None)[:2]
    output, h_n, c_n = _ops.gated_rnn_padded(x, h0, c0, weights, lengths, *options, reset=reset)
    return output, (h_n, c_n) if descriptor.is_lstm else h_n
