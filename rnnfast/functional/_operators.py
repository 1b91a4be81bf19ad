"""The RNN, the GRU and the LSTM on torch's own operators for whole sequences."""

import contextlib

import torch
from torch.nn import functional as F

from .. import _ops, _torch
from ._shared import as_hx, autocast_dtype, each_state, state_shapes, states_of

PLAIN = (torch.nn.Parameter, torch.Tensor)
_OPERATORS = {"tanh": "rnn_tanh", "relu": "rnn_relu", "gru": "gru", "lstm": "lstm"}


def check_hx_dtype(hx, dtype):
    """Raise RuntimeError if ``hx`` has another dtype than the weights.

    torch's own error does not name ``hx``, and where torch promotes dtypes there is no error.
    """
    for state in states_of(hx):
        if state.dtype != dtype and not _torch.is_any_autocast_enabled():
            raise RuntimeError(f"hx must be {dtype} like the weights, got {state.dtype}")


def one_hot_vectors(tokens, w_ih):
    """Return the vectors that ``tokens`` stand for, in the dtype of ``w_ih``.

    Raises:
        IndexError: a token on the CPU is not in [0, I).
    """
    inputs = w_ih.shape[-1]
    is_plain = tokens.is_cpu and type(tokens) is torch.Tensor
    if is_plain and not _torch.is_dispatcher_observed() and not _torch.is_in_vmap():
        wrong = tokens[(tokens < 0) | (tokens >= inputs)].tolist()
        if wrong:
            raise IndexError(
                f"input: token {wrong[0]} is not in [0, {inputs}), the range of a one-hot input of "
                f"size {inputs}"
            )
    return F.one_hot(tokens, inputs).to(w_ih.dtype)


def rnn_torch(input, hx, weights, batch_sizes, descriptor, dropout=0.0):
    """Run any cell on torch's operator, which supports every dtype, device and derivative."""
    if _ops.is_one_hot(input):
        if batch_sizes is not None and torch.onnx.is_in_onnx_export():
            raise RuntimeError(
                "packed tokens cannot be exported to ONNX, which has no PackedSequence: give "
                "the module the padded tokens and their lengths, rnn(tokens, lengths=lengths)"
            )
        input = one_hot_vectors(input, weights[0])
    num_layers, directions, batch_first, _, bias = descriptor
    cell = descriptor.cell
    if hx is None:
        B = input.shape[0 if batch_first else 1] if batch_sizes is None else batch_sizes[0]
        hx = as_hx([input.new_zeros(s) for s in state_shapes(weights, B, descriptor)])
    # cuDNN has a backward pass only for a forward pass in training mode. Without dropout both
    # modes give the same result. A trace may run with gradients and without, whatever the mode was
    # while it was recorded.
    is_tracing = torch.jit.is_tracing()
    training = dropout > 0 or torch.is_grad_enabled() or is_tracing
    # cuDNN refuses tensors that are not contiguous. A trace may be moved to a GPU later.
    runs_on_cudnn = _torch.may_run_on_cudnn(input)
    if runs_on_cudnn and not is_tracing:
        input = input.contiguous()
        weights = [w.contiguous() if type(w) in PLAIN else w for w in weights]
    if runs_on_cudnn or is_tracing:
        hx = each_state(torch.Tensor.contiguous, hx)
    common = (hx, weights, bias, num_layers, dropout, training, directions == 2)
    common = (*common, batch_first) if batch_sizes is None else (batch_sizes, *common)
    with _without_onednn(input, cell):
        output, *h_n = getattr(torch, _OPERATORS[cell])(input, *common)
    return output, as_hx(h_n)


def _without_onednn(input, cell):
    """Return a context in which torch's LSTM does not run on oneDNN where oneDNN cannot run it.

    oneDNN has no forward-mode derivatives, and float16 on few CPUs.
    """
    if cell == "lstm" and input.is_cpu and not torch.compiler.is_compiling():
        dtype = autocast_dtype("cpu") or input.dtype
        if dtype is torch.float16 or _torch.is_in_transform_or_forward_ad():
            return _torch.without_onednn()
    return contextlib.nullcontext()
