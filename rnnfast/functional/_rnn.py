"""The RNN as a function, the choice of what runs it, and its autograd Function."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops, _torch
from ._segments import rnn_in_segments
from ._shared import can_run_kernel, differentiable_gradients, has_own_torch_function
from ._stepwise import rnn_stepwise

_PLAIN = (torch.nn.Parameter, torch.Tensor)


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Iterable[Tensor],
    *,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run an Elman RNN, ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` (Elman 1990).

    This is :class:`rnnfast.FastRNN` as a function of its weights. With T time steps, B sequences,
    I inputs, H hidden units, L layers and D directions:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``. With ``batch_sizes`` it is the data of
            a ``PackedSequence``, (N, I). Strides are arbitrary. One-hot input is given as int64
            tokens in [0, I) of shape (T, B), (B, T) or (N): the product with ``w_ih`` is then a
            look-up of its columns, forward and backward, and no one-hot tensor is built.
        hx: initial state (L * D, B, H), or None for zeros.
        weights: flat list in the order of ``nn.RNN``. For each layer and direction it holds
            ``w_ih`` (H, I), ``w_hh`` (H, H) and, for all or for none, ``b_ih`` (H) and ``b_hh``
            (H). In layers after the first, I is D * H.
        num_layers: L.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bidirectional: whether D is 2.
        batch_first: whether ``input`` and ``output`` are (B, T, ...).
        dropout: probability of zeroing an output of each layer except the last, in training.
        training: whether dropout is active.
        batch_sizes: int64 CPU tensor (T), the number of rows at each step of a packed batch. It
            never increases.
        reset: bool tensor with one element for each row of ``input``: (T, B), (B, T) or (N), or
            None. Where it is true, the state of that sequence is zero before that time step, and no
            gradient passes. A reverse direction enters the part of a sequence between two resets at
            its last step, so that every part is as if it were run alone.

    Returns:
        ``(output, h_n)``: the states of the last layer, (T, B, D * H) in the layout of ``input``,
        and the final state of each layer, (L * D, B, H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels. bfloat16 and float16
    compute in float32. Under autocast its dtype is used. CUDA devices use rnnfast's kernels as
    :func:`rnnfast.set_cuda_kernel` says. There, a token that is not in [0, I) fails an assertion
    on the device.

    Other dtypes and devices, transforms of torch.func, forward-mode AD, ``torch.jit.trace`` and
    weights with a ``__torch_function__`` of their own run on torch's operators, with the same
    results. Under ``vmap`` the time steps run one by one. The result can be differentiated twice,
    or once if it runs on cuDNN.

    Raises:
        TypeError: ``input`` or ``hx`` is not a tensor.
        ValueError: the nonlinearity is unknown, ``dropout`` is not in [0, 1], there is no layer, or
            the number of weights or ``reset`` does not fit.
        RuntimeError: sizes, dtypes or devices do not fit one another.
        IndexError: a token is not in [0, I).

    Example:
        >>> import torch
        >>> from rnnfast.functional import rnn
        >>> w_ih, w_hh = torch.randn(20, 10), torch.randn(20, 20)
        >>> output, h_n = rnn(torch.randn(5, 3, 10), None, [w_ih, w_hh])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be in [0, 1], got {dropout}")
    if not isinstance(input, torch.Tensor):
        raise TypeError(f"input must be a tensor, got {type(input).__name__}")
    if hx is not None and not isinstance(hx, torch.Tensor):
        raise TypeError(f"hx must be a tensor, got {type(hx).__name__}")
    weights = list(weights)
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    D = 2 if bidirectional else 1
    has_bias = len(weights) > 2 * num_layers * D
    descriptor = _ops.RNNDescriptor(num_layers, D, batch_first, nonlinearity, has_bias)
    if len(weights) != descriptor.weights_per_layer * num_layers:
        raise ValueError(
            f"weights must hold 2 or 4 tensors for each of {num_layers} layers x {D} directions, "
            f"got {len(weights)}"
        )
    if reset is not None:
        reset = check_reset(reset, _ops.shape_of_rows(input, batch_sizes))
    dropout = dropout if training else 0.0
    return run_rnn(input, hx, weights, batch_sizes, descriptor, dropout, reset=reset)


def check_reset(reset, shape):
    """Return ``reset``, or raise ValueError if it is not a bool tensor of this shape."""
    if not isinstance(reset, torch.Tensor):
        raise ValueError(f"reset must be a bool tensor, got {type(reset).__name__}")
    if reset.dtype is not torch.bool or reset.shape != shape:
        raise ValueError(
            f"reset must be bool {tuple(shape)}, one element for each time step of each sequence, "
            f"got {reset.dtype} {tuple(reset.shape)}"
        )
    return reset


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
    """Run :func:`rnn` for arguments whose number and names are known to be right.

    Args:
        input, hx, weights, batch_sizes: as in :func:`rnn`.
        descriptor: the `RNNDescriptor` of the call.
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
    run = rnn_on_kernel if lengths is None else partial(_rnn_padded, lengths=lengths)
    if zoneout or not can_run_kernel(input, weights[0].dtype, _ops.has_rnn_kernel):
        is_stepwise = zoneout or lengths is not None or _torch.is_in_vmap()
        if reset is not None:  # a graph or a transform cannot look at the values of resets
            is_in_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
            is_stepwise = is_stepwise or is_in_graph or _torch.is_in_transform()
        dtype = autocast_dtype(input.device.type)
        if dtype is not None and (is_stepwise or _ops.has_rnn_kernel(input.device.type, dtype)):
            input, hx, *weights = (cast(t, dtype) for t in (input, hx, *weights))
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
            if type(w) not in _PLAIN and has_own_torch_function(w):
                run = rnn_torch
                break
            if w.device != device:
                raise RuntimeError(f"weights must be on {device} like the input, got {w.device}")
        if hx is not None and hx.device != device:
            raise RuntimeError(f"hx must be on {device} like the input, got {hx.device}")
        is_cuda = input.is_cuda and not torch.compiler.is_compiling()
        if is_cuda and _ops.is_torch_faster(input, weights, batch_sizes, descriptor):
            run = rnn_torch
    if reset is not None and reset.numel() > 0:
        reset = reset.to(input.device)
        if run is rnn_torch or (run is rnn_on_kernel and input.is_cuda):
            run = partial(rnn_in_segments, run)
        run = partial(run, reset=reset)
    if descriptor.num_layers == 1 or not (dropout or variational_dropout):
        return run(input, hx, weights, batch_sizes, descriptor)

    D, one_layer = descriptor.directions, descriptor.one_layer
    if hx is not None and len(hx) != descriptor.num_states:
        raise RuntimeError(f"hx must be ({descriptor.num_states}, B, H), got {tuple(hx.shape)}")
    states = []
    for layer in range(descriptor.num_layers):
        if layer > 0:
            if dropout:
                input = _dropout(input, dropout, batch_first and batch_sizes is None)
            if variational_dropout:
                input = _variational_dropout(input, variational_dropout, batch_sizes, batch_first)
        h0 = None if hx is None else hx[layer * D : (layer + 1) * D]
        count = descriptor.weights_per_layer
        own = weights[layer * count : (layer + 1) * count]
        input, h_n = run(input, h0, own, batch_sizes, one_layer)
        states.append(h_n)
    return input, torch.cat(states)


def autocast_dtype(device_type):
    """Return the dtype in which autocast computes on that type of device, or None if it is off."""
    # The first line decides under torch.compile: Dynamo of torch 2.11 cannot trace the second.
    if (
        _torch.is_any_autocast_enabled()
        and torch.amp.is_autocast_available(device_type)
        and torch.is_autocast_enabled(device_type)
    ):
        return torch.get_autocast_dtype(device_type)
    return None


def cast(t, dtype):
    """Convert ``t`` as autocast does: float64 and integers stay what they are."""
    if t is None or not t.is_floating_point() or t.dtype is torch.float64:
        return t
    return t.to(dtype)


def _dropout(input, p, batch_first):
    """Apply dropout with the mask that ``nn.RNN`` draws for the same seed: time step by step."""
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


def check_hx_dtype(hx, dtype):
    """Raise RuntimeError if ``hx`` has another dtype than the weights.

    torch's own error does not name ``hx``, and where torch promotes dtypes there is no error.
    """
    if hx is not None and hx.dtype != dtype and not _torch.is_any_autocast_enabled():
        raise RuntimeError(f"hx must be {dtype} like the weights, got {hx.dtype}")


def one_hot_vectors(tokens, w_ih):
    """Return the vectors that ``tokens`` stand for, in the dtype of ``w_ih``."""
    return F.one_hot(tokens, w_ih.shape[-1]).to(w_ih.dtype)


def rnn_torch(input, hx, weights, batch_sizes, descriptor, dropout=0.0):
    """Run the RNN on torch's operator, which supports every dtype, device and derivative."""
    if _ops.is_one_hot(input):
        if batch_sizes is not None and torch.onnx.is_in_onnx_export():
            raise RuntimeError(
                "packed tokens cannot be exported to ONNX, which has no PackedSequence: give "
                "FastRNN the padded tokens and their lengths, rnn(tokens, lengths=lengths)"
            )
        input = one_hot_vectors(input, weights[0])
    num_layers, directions, batch_first, nonlinearity, bias = descriptor
    if hx is None:
        B = input.shape[0 if batch_first else 1] if batch_sizes is None else batch_sizes[0]
        hx = input.new_zeros(descriptor.num_states, B, weights[1].shape[-1])
    call = torch.rnn_relu if nonlinearity == "relu" else torch.rnn_tanh
    # cuDNN has a backward pass only for a forward pass in training mode. Without dropout both
    # modes give the same result. A trace may run with gradients and without, whatever the mode was
    # while it was recorded.
    is_tracing = torch.jit.is_tracing()
    training = dropout > 0 or torch.is_grad_enabled() or is_tracing
    # cuDNN refuses tensors that are not contiguous. A trace may be moved to a GPU later.
    runs_on_cudnn = _torch.may_run_on_cudnn(input)
    if runs_on_cudnn and not is_tracing:
        input = input.contiguous()
        weights = [w.contiguous() if type(w) in _PLAIN else w for w in weights]
    if runs_on_cudnn or is_tracing:
        hx = hx.contiguous()
    common = (hx, weights, bias, num_layers, dropout, training, directions == 2)
    if batch_sizes is None:
        return call(input, *common, batch_first)
    return call(input, batch_sizes, *common)


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


def _rnn_padded(x, h0, weights, batch_sizes, descriptor, lengths, reset=None):
    """Run the RNN on the operator ``rnn_padded``, which has no gradient."""
    return _ops.rnn_padded(x, h0, weights, lengths, *descriptor.options, reset=reset)


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


def _rnn_with_derivatives(x, h0, batch_sizes, reset, descriptor, *weights):
    """Run the RNN on torch's operators, of which every derivative exists."""
    run = rnn_torch if reset is None else partial(rnn_in_segments, rnn_torch, reset=reset)
    with _torch.without_cudnn():  # its backward pass has no derivative
        return run(x, h0, weights, batch_sizes, descriptor)
