"""The stateless RNN, :func:`rnn`; the output layer of a language model with its loss,
:func:`linear_cross_entropy`; :func:`dropout`; the autograd Functions under them."""

from functools import partial

import torch
from torch.nn import functional as F

from . import _ops, _steps, _torch

__all__ = ["dropout", "linear_cross_entropy", "rnn"]


def rnn(
    input,
    hx,
    weights,
    *,
    num_layers=1,
    nonlinearity="tanh",
    bidirectional=False,
    batch_first=False,
    dropout=0.0,
    training=False,
    batch_sizes=None,
):
    """Elman RNN, ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)`` (Elman 1990), as a function.

    With T time steps, B sequences, I inputs, H hidden units, L layers, D directions:

    Args:
        input: (T, B, I); (B, T, I) with ``batch_first``; or, with ``batch_sizes``, the data of a
            ``PackedSequence``, (N, I). Any strides. Or one-hot input, given as int64 tokens in
            [0, I): (T, B), (B, T) or (N). The product with ``w_ih`` is then a look-up of its
            columns, forward and backward, and no one-hot tensor is built.
        hx: initial state (L * D, B, H), or None for zeros.
        weights: flat list, for every layer and direction ``w_ih`` (H, I), ``w_hh`` (H, H) and, all
            or none, ``b_ih`` (H), ``b_hh`` (H): the order of ``nn.RNN``. In layers after the first
            I is D * H.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        dropout: probability of zeroing an output of every layer but the last, if ``training``.
        batch_sizes: int64 CPU tensor (T): rows at each step of a packed batch, never increasing.

    Returns:
        ``(output, h_n)``: the last layer's states, (T, B, D * H) in the layout of ``input``, and
        each layer's final state (L * D, B, H).

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels, the latter two
    with float32 arithmetic, and under autocast its dtype; after :func:`rnnfast.set_cuda_kernel` so
    do they on CUDA devices, where a token that is not in [0, I) fails an assertion on the device.
    Other dtypes and devices, torch.func transforms and forward-mode AD run on torch's own
    operators, with the same results; vmap step by step. Differentiable, twice as well; on cuDNN
    once.

    Raises:
        ValueError: an unknown nonlinearity, no layers, or a number of weights that does not fit.
        RuntimeError: sizes, dtypes or devices that do not fit one another.
        IndexError: a token that is not in [0, I).
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    weights = list(weights)
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    D = 2 if bidirectional else 1
    per_direction = len(weights) // (num_layers * D)
    if per_direction not in (2, 4) or len(weights) != per_direction * num_layers * D:
        raise ValueError(
            f"weights must hold 2 or 4 tensors for each of {num_layers} layers x {D} directions, "
            f"got {len(weights)}"
        )
    options = (num_layers, bidirectional, batch_first, nonlinearity == "relu", per_direction == 4)
    return run(input, hx, weights, batch_sizes, *options, dropout if training else 0.0)


def run(
    input,
    hx,
    weights,
    batch_sizes,
    num_layers,
    bidirectional,
    batch_first,
    relu,
    bias,
    dropout,
    variational_dropout=0.0,
    zoneout=0.0,
    training=False,
):
    """:func:`rnn` for arguments that are known to fit one another in number and name.

    And with what only modules have: ``variational_dropout``, already 0 outside of training, draws
    one mask for all time steps; ``zoneout`` is described in rnnfast._steps.
    """
    if batch_sizes is None and input.dim() > 1 and input.shape[1 if batch_first else 0] == 0:
        raise RuntimeError(
            f"Expected sequence length to be larger than 0 in RNN, got input {tuple(input.shape)}"
        )
    call = _stack
    if zoneout or not _has_kernel(input, weights[0].dtype):
        options = (batch_first, relu, bias)
        is_stepwise = zoneout or _torch.is_in_vmap()
        dtype = _autocast_dtype(input.device.type)
        if dtype is not None and (is_stepwise or _ops.has_rnn_kernel(input.device.type, dtype)):
            input, hx, *weights = (_cast(t, dtype) for t in (input, hx, *weights))
            with torch.autocast(input.device.type, enabled=False):
                return run(
                    input, hx, weights, batch_sizes, num_layers, bidirectional, *options,
                    dropout, variational_dropout, zoneout, training,
                )  # fmt: skip
        check_hx_dtype(hx, weights[0].dtype)
        if is_stepwise:
            call = partial(_steps.rnn, zoneout=zoneout, training=training)
        elif variational_dropout:
            call = _torch_rnn
        else:
            return _torch_rnn(input, hx, weights, batch_sizes, num_layers, *options, dropout)
    else:
        device = input.device
        for w in weights:  # an operator would be run by whatever device is named last
            if w.device != device:
                raise RuntimeError(f"weights must be on {device} like the input, got {w.device}")
        if hx is not None and hx.device != device:
            raise RuntimeError(f"hx must be on {device} like the input, got {hx.device}")
    if num_layers == 1 or not (dropout or variational_dropout):
        return call(input, hx, weights, batch_sizes, num_layers, batch_first, relu, bias)

    D, per_layer = 2 if bidirectional else 1, len(weights) // num_layers
    if hx is not None and len(hx) != num_layers * D:
        raise RuntimeError(f"hx must be ({num_layers * D}, B, H), got {tuple(hx.shape)}")
    states = []
    for layer in range(num_layers):
        if layer > 0:
            if dropout:
                input = _dropout(input, dropout, batch_first and batch_sizes is None)
            if variational_dropout:
                input = _variational_dropout(input, variational_dropout, batch_sizes, batch_first)
        h0 = None if hx is None else hx[layer * D : (layer + 1) * D]
        layer_weights = weights[layer * per_layer : (layer + 1) * per_layer]
        input, h_n = call(input, h0, layer_weights, batch_sizes, 1, batch_first, relu, bias)
        states.append(h_n)
    return input, torch.cat(states)


def _has_kernel(input, dtype, has_kernel=_ops.has_rnn_kernel):
    device_type = "cpu" if input.is_cpu else input.device.type  # which takes four times as long
    return (
        has_kernel(device_type, dtype)
        and input.numel() > 0
        and not torch.is_autocast_enabled(device_type)
        and not _torch.is_in_transform_or_forward_ad()
    )


def _autocast_dtype(device_type):
    """The dtype that autocast computes in on that device, None if it is off."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def _cast(t, dtype):
    """As autocast does, which leaves float64 alone."""
    if t is None or not t.is_floating_point() or t.dtype is torch.float64:
        return t
    return t.to(dtype)


def _dropout(input, p, batch_first):
    """Drawn step by step, as ``nn.RNN`` does, so that a seed gives the mask that it gives there."""
    if batch_first:
        return F.dropout(input.transpose(0, 1).contiguous(), p).transpose(0, 1)
    return F.dropout(input, p)


def _variational_dropout(input, p, batch_sizes, batch_first):
    """One mask for all time steps of a sequence (Gal & Ghahramani 2016, arXiv:1512.05287)."""
    if batch_sizes is None:
        B, time = (input.shape[0], 1) if batch_first else (input.shape[1], 0)
        return input * F.dropout(input.new_ones(B, input.shape[-1]), p).unsqueeze(time)
    mask = F.dropout(input.new_ones(int(batch_sizes[0]), input.shape[-1]), p)
    starts = batch_sizes.cumsum(0) - batch_sizes
    sequence = torch.arange(len(input), device=starts.device)
    sequence -= starts.repeat_interleave(batch_sizes)
    return input * mask[sequence.to(input.device)]


def check_hx_dtype(hx, dtype):
    """Where torch would name neither ``hx`` nor, if it promotes, anything at all."""
    if hx is not None and hx.dtype != dtype and not _torch.is_any_autocast_enabled():
        raise RuntimeError(f"hx must be {dtype} like the weights, got {hx.dtype}")


def _torch_rnn(input, hx, weights, batch_sizes, num_layers, batch_first, relu, bias, dropout=0.0):
    """The same on torch's operators: what the kernels do not cover, and the second derivative."""
    D = len(weights) // (num_layers * (4 if bias else 2))
    if _ops.is_one_hot(input):
        input = F.one_hot(input, weights[0].shape[-1]).to(weights[0].dtype)
    if hx is None:
        B = input.shape[0 if batch_first else 1] if batch_sizes is None else int(batch_sizes[0])
        hx = input.new_zeros(num_layers * D, B, weights[1].shape[-1])
    call = torch.rnn_relu if relu else torch.rnn_tanh
    # cuDNN has a backward only of its forward for training; without dropout the two agree. And it
    # refuses an hx of other strides.
    training = dropout > 0 or torch.is_grad_enabled()
    common = (hx.contiguous(), weights, bias, num_layers, dropout, training, D == 2)
    if batch_sizes is None:
        return call(input, *common, batch_first)
    return call(input, batch_sizes, *common)


def _stack(x, h0, weights, batch_sizes, *options):
    """Layers without dropout between them; `options`: num_layers, batch_first, relu, bias."""
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (h0 is not None and h0.requires_grad)
        or any([w.requires_grad for w in weights])  # noqa: C419 - a generator costs more than it saves
    ):
        return _Stack.apply(x, h0, batch_sizes, options, *weights)
    outs, h_n = _ops.rnn_forward(x, h0, weights, batch_sizes, *options, False)
    return outs[0], h_n


class _Stack(torch.autograd.Function):
    """Layers, all their directions, all time steps; saves their outputs and nothing per step."""

    # No setup_context: with it every call binds its arguments through inspect.signature, 45 us, and
    # torch.func, which alone needs it, does not come this way.
    @staticmethod
    def forward(ctx, x, h0, batch_sizes, options, *weights):
        outs, h_n = _ops.rnn_forward(x, h0, weights, batch_sizes, *options, True)
        ctx.save_for_backward(x, h0, batch_sizes, *outs, *weights)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return outs[-1], h_n

    @staticmethod
    def backward(ctx, dy, dh_n):
        if dy is None and dh_n is None:
            return (None,) * len(ctx.needs_input_grad)
        x, h0, batch_sizes, *saved = ctx.saved_tensors
        num_layers = ctx.options[0]
        outs, weights = saved[:num_layers], saved[num_layers:]
        need_dx, need_dh0, _, _, *needs_dw = ctx.needs_input_grad
        is_batched = _torch.is_batch_of_vmap(dy) or _torch.is_batch_of_vmap(dh_n)
        if torch.is_grad_enabled() or is_batched:  # grad is enabled by create_graph
            return _differentiable_backward(ctx, dy, dh_n, x, h0, batch_sizes, weights)
        needs = (need_dx, need_dh0, True in needs_dw)
        tensors = (dy, dh_n, outs, x, h0, weights, batch_sizes)
        dx, dh0, dw = _ops.rnn_backward(*tensors, *ctx.options, *needs)
        if False in needs_dw:
            dw = [g if need else None for g, need in zip(dw or weights, needs_dw, strict=True)]
        return (dx if need_dx else None, dh0 if need_dh0 else None, None, None, *dw)


def _differentiable_backward(ctx, dy, dh_n, x, h0, batch_sizes, weights):
    """The same gradients as a graph of torch operators, from a second forward."""

    def call(x, h0, batch_sizes, _, *weights):
        cudnn = torch.backends.cudnn
        enabled, cudnn.enabled = cudnn.enabled, False  # its backward has no derivative
        try:
            return _torch_rnn(x, h0, weights, batch_sizes, *ctx.options)
        finally:
            cudnn.enabled = enabled

    inputs = (x, h0, batch_sizes, None, *weights)
    return _differentiable_gradients(ctx, call, inputs, (dy, dh_n))


def _differentiable_gradients(ctx, call, inputs, gradients_of_outputs):
    """Of ``inputs``, as many as ``ctx`` has, from the outputs of ``call(*inputs)``."""
    wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # As views, for one of them may be made from another, or be it: what this call is to find
        # are partial derivatives, and the engine, which goes on from them, makes the total ones.
        inputs = [t.view_as(t) if isinstance(t, torch.Tensor) else t for t in inputs]
        pairs = zip(call(*inputs), gradients_of_outputs, strict=True)
        given = [(o, g) for o, g in pairs if g is not None]
        gradients = torch.autograd.grad(
            [o for o, _ in given],
            [inputs[i] for i in wanted],
            [g for _, g in given],
            create_graph=create_graph,
            allow_unused=True,
        )
    result = [None] * len(inputs)
    for i, g in zip(wanted, gradients, strict=True):
        result[i] = g
    return tuple(result)


def linear_cross_entropy(input, linear_weight, target, *, linear_bias=None, reduction="mean"):
    """``F.cross_entropy(F.linear(input, linear_weight, linear_bias), target)`` in one.

    The logits are made, turned into probabilities and multiplied out a block of rows at a time, so
    that they stay in cache; those of all rows never exist. With N rows, H features, V classes:

    Args:
        input: (N, H), of any strides.
        linear_weight: (V, H), as ``nn.Linear`` has it; it may be the weight of an embedding too.
        target: int64 (N,), in [0, V). There is no ``ignore_index``.
        linear_bias: (V,) or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The mean () or the sum () of the losses, or each of them (N,), in nats.

    float32 and float64 on the CPU run on rnnfast's kernel. Other dtypes and devices, empty input,
    autocast, torch.func transforms and forward-mode AD run on torch's own operators, with the same
    results. The gradients are made in the forward pass, but for ``"none"``, which makes the logits
    again in the backward. Differentiable, twice as well.

    Raises:
        ValueError: an unknown reduction.
        RuntimeError: sizes, dtypes or devices that do not fit one another.
        IndexError: a target that is not in [0, V).
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if input.dim() != 2 or target.dim() != 1 or len(input) != len(target):
        raise RuntimeError(
            f"input must be (N, H) and target (N,), got {tuple(input.shape)} and "
            f"{tuple(target.shape)}"
        )
    tensors = (input, linear_weight, target, linear_bias)
    if not _has_kernel(input, input.dtype, _ops.has_loss_kernel):
        return _torch_linear_cross_entropy(*tensors, reduction)
    for name, t in zip(("linear_weight", "target", "linear_bias"), tensors[1:], strict=True):
        if t is not None and not t.is_cpu:
            raise RuntimeError(f"{name} must be on cpu like the input, got {t.device}")
    needs = [
        t is not None and t.requires_grad and torch.is_grad_enabled()
        for t in (input, linear_weight, linear_bias)
    ]
    if True in needs:
        return _LinearCrossEntropy.apply(*tensors, reduction, needs)
    return _ops.linear_cross_entropy(*tensors, None, reduction, *needs)[0]


def _torch_linear_cross_entropy(input, linear_weight, target, linear_bias, reduction):
    """The same on torch's operators: what the kernel does not cover, and the second derivative."""
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:  # it may broadcast
        raise RuntimeError(
            f"linear_bias must be ({len(linear_weight)},) to fit linear_weight, "
            f"got {tuple(linear_bias.shape)}"
        )
    logits = F.linear(input, linear_weight, linear_bias)
    # The kernel ignores no index. Here one has to be, and the length of a vocabulary is a mistake
    # that is made.
    none = torch.iinfo(torch.int64).min
    return F.cross_entropy(logits, target, reduction=reduction, ignore_index=none)


class _LinearCrossEntropy(torch.autograd.Function):
    # No setup_context, as in _Stack.
    @staticmethod
    def forward(ctx, input, linear_weight, target, linear_bias, reduction, needs):
        tensors = (input, linear_weight, target, linear_bias)
        ctx.reduction, ctx.needs = reduction, needs
        if reduction == "none":  # the gradient of each loss is known in the backward only
            ctx.save_for_backward(*tensors)
            return _ops.linear_cross_entropy(*tensors, None, reduction, False, False, False)[0]
        loss, *gradients = _ops.linear_cross_entropy(*tensors, None, reduction, *needs)
        ctx.save_for_backward(*tensors, *gradients)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        tensors, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled() or _torch.is_batch_of_vmap(dloss):
            return _differentiable_gradients(
                ctx,
                lambda *tensors: [_torch_linear_cross_entropy(*tensors[:4], ctx.reduction)],
                (*tensors, None, None),
                [dloss],
            )
        if gradients:
            # A loss is mostly where the backward begins, with 1: no pass over all gradients then.
            reading = not torch.compiler.is_compiling() and dloss.device.type == "cpu"
            if not (reading and dloss.item() == 1):
                gradients = [g * dloss for g in gradients]
        else:
            _, *gradients = _ops.linear_cross_entropy(*tensors, dloss, ctx.reduction, *ctx.needs)
        dx, dw, db = (g if need else None for g, need in zip(gradients, ctx.needs, strict=True))
        return dx, dw, None, db, None, None


def dropout(input, p=0.5, training=True):
    """``F.dropout(input, p, training)``, but for the choice of elements; on the CPU in a fraction
    of the time.

    In training elements are zeroed with probability ``p``, and all others multiplied by
    ``1 / (1 - p)`` (Srivastava et al. 2014).

    Args:
        input: of any shape and strides.
        p: in [0, 1].
        training: else ``input`` is returned as it is.

    Returns:
        A tensor of the shape of ``input``; contiguous where it is made by rnnfast's kernel.

    float32, float64, bfloat16 and float16 on the CPU run on that kernel: which elements are zeroed
    is decided by a generator of its own, seeded by one number from torch's, so it depends neither
    on the number of threads nor on the instruction set. Nothing but that number is kept for the
    backward pass. Other dtypes and devices, empty input, torch.func transforms and forward-mode AD
    run on ``F.dropout``. Differentiable any number of times.

    Raises:
        ValueError: ``p`` is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if not (training and p):
        return input
    has_kernel = _ops.has_dropout_kernel(input.device.type, input.dtype)
    if not (has_kernel and input.numel()) or _torch.is_in_transform_or_forward_ad():
        return F.dropout(input, p)
    seed = torch.randint(torch.iinfo(torch.int64).max, (), device=input.device)
    if input.requires_grad and torch.is_grad_enabled():
        return _Dropout.apply(input, seed, p)
    return _ops.dropout(input, seed, p)


class _Dropout(torch.autograd.Function):
    # No setup_context, as in _Stack.
    @staticmethod
    def forward(ctx, input, seed, p):
        ctx.save_for_backward(seed)
        ctx.p = p
        return _ops.dropout(input, seed, p)

    @staticmethod
    def backward(ctx, dy):
        (seed,) = ctx.saved_tensors
        if _torch.is_batch_of_vmap(dy):
            kept = torch.ones(dy.shape, dtype=dy.dtype, device=seed.device)
            return dy * _ops.dropout(kept, seed, ctx.p), None, None
        call = _Dropout.apply if torch.is_grad_enabled() else _ops.dropout
        return call(dy, seed, ctx.p), None, None
