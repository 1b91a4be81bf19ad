"""Leaky units as a function, the loop that describes them, and their autograd Function."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _ops, _torch
from .._ops import NONLINEARITIES
from ._shared import (
    autocast_dtype,
    can_run_kernel,
    cast,
    check_batch_sizes,
    check_reset,
    differentiable_gradients,
    has_own_torch_function,
    input_product,
)


def leaky_rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Iterable[Tensor],
    alpha: Tensor,
    *,
    state: str = "rate",
    nonlinearity: str = "relu",
    noise: float = 0.0,
    xi: Tensor | None = None,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Run layers of leaky units, the discretised continuous-time RNN of neuroscience.

    This is :class:`rnnfast.LeakyRNN` as a function of its weights. With the leak rate alpha of each
    unit (dt / tau), the nonlinearity f and standard normal numbers xi, the two kinds of state are
    those of Song et al. 2016 (doi:10.1371/journal.pcbi.1004792) and Yang et al. 2019
    (doi:10.1038/s41593-018-0310-2)::

        p_t = W_ih x_t + W_hh r_{t-1} + b + sqrt(2 / alpha) noise xi_t

        "rate":     r_t = (1 - alpha) r_{t-1} + alpha f(p_t)
        "current":  s_t = (1 - alpha) s_{t-1} + alpha p_t,   r_t = f(s_t)

    With T time steps, B sequences, I inputs, H units and L layers:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``. With ``batch_sizes`` it is the data of
            a ``PackedSequence``, (N, I). One-hot input may be given as int64 tokens in [0, I), as
            for :func:`rnn`.
        hx: initial state of each layer, (L, B, H), or None for zeros. It is r_0 for a rate and s_0
            for a current.
        weights: flat list. For each layer it holds ``w_ih`` (H, I), ``w_hh`` (H, H) and, for all or
            for none, ``b`` (H). In layers after the first, I is H. Without gradients, ``w_hh`` may
            be a tensor of the layout ``torch.sparse_csr``, for which float32 and float64 have a
            kernel of their own.
        alpha: (L, H), or (H) for one layer; in (0, 1].
        state: ``"rate"`` or ``"current"``.
        nonlinearity: ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` or ``"linear"``.
        noise: the standard deviation of the noise, at least 0.
        xi: the random numbers of the noise, (L, T, B, H) in the layout of ``input``, or without L
            for one layer. Default: they are drawn. rnnfast's kernels for CPUs draw them from a
            seed, which is one number of torch's generator, so that they depend neither on the
            number of threads nor on ``batch_first``. An operator draws the same numbers before the
            kernel runs if alpha needs a gradient or ``w_hh`` is sparse. On CUDA devices,
            ``torch.randn`` draws them from the generator of the device before the kernel runs.
        batch_first: whether ``input``, ``output`` and ``states`` are (B, T, ...).
        batch_sizes: int64 CPU tensor (T), the number of rows at each step of a packed batch.
        reset: bool tensor with one element for each row of ``input``, or None. Where it is true,
            the state of that sequence is zero before that time step, and no gradient passes.

    Returns:
        ``(output, h_n, states)``: r of the last layer, (T, B, H) in the layout of ``input``; the
        final state of each layer, (L, B, H); and the states of the last layer, which for a rate
        are the output itself.

    float32, float64, bfloat16 and float16 on the CPU run on rnnfast's kernels, which keep the state
    in float32 or float64 from step to step. CUDA devices use rnnfast's kernels as
    :func:`rnnfast.set_cuda_kernel` says. Other dtypes and devices and transforms of torch.func run
    time step by time step on torch's operators, where ``torch.randn`` draws the noise. The result
    can be differentiated twice.

    Raises:
        TypeError: ``input``, ``hx`` or ``alpha`` is not a tensor.
        ValueError: ``state`` or ``nonlinearity`` is unknown, ``noise`` is negative, the number of
            weights does not fit, ``xi`` is given without noise, or ``reset`` does not fit.
        RuntimeError: sizes, dtypes or devices do not fit one another.
        IndexError: a token is not in [0, I).

    Example:
        >>> import torch
        >>> from rnnfast.functional import leaky_rnn
        >>> w_ih, w_hh = torch.randn(20, 10), torch.randn(20, 20) / 20**0.5
        >>> output, h_n, states = leaky_rnn(
        ...     torch.randn(5, 3, 10), None, [w_ih, w_hh], torch.full((20,), 0.2), noise=0.1
        ... )
        >>> output.shape, h_n.shape, states is output
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]), True)
    """
    for name, t in (("input", input), ("hx", hx), ("alpha", alpha)):
        if not isinstance(t, torch.Tensor) and not (t is None and name == "hx"):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    check_kind(state, nonlinearity)
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}")
    if xi is not None and not noise:
        raise ValueError("xi must not be given while noise is 0, which would ignore it")
    weights = list(weights)
    L = 1 if alpha.dim() < 2 else len(alpha)
    if L < 1 or len(weights) not in (2 * L, 3 * L):
        raise ValueError(
            f"weights must hold 2 or 3 tensors for each of {L} layers, got {len(weights)}"
        )
    per = len(weights) // L
    rows, H = _ops.shape_of_rows(input, batch_sizes), weights[1].shape[-1]
    if batch_sizes is not None:
        check_batch_sizes(batch_sizes, rows[0])
    B = rows[0 if batch_first else 1] if batch_sizes is None else batch_sizes[0]
    is_one = xi is not None and L == 1 and xi.dim() == len(rows) + 1
    for name, t, shape in (
        ("alpha", alpha, (H,) if alpha.dim() < 2 else (L, H)),
        ("hx", hx, (L, B, H)),
        ("xi", xi, (*rows, H) if is_one else (L, *rows, H)),
    ):
        if t is not None and t.shape != shape:
            raise RuntimeError(f"{name} must be {tuple(shape)}, got {tuple(t.shape)}")
    if batch_sizes is None and rows[1 if batch_first else 0] == 0:
        raise RuntimeError(
            f"input must have at least one time step, got input {tuple(input.shape)}"
        )
    if reset is not None:
        reset = check_reset(reset, rows).to(input.device)
    descriptor = _ops.LeakyDescriptor(batch_first, state == "current", nonlinearity)
    alpha = alpha.view(L, H)
    numbers = [None] * L if xi is None else xi.reshape(L, *rows, H).unbind()
    final = []
    for layer in range(L):
        h0 = None if hx is None else hx[layer : layer + 1]
        own = weights[layer * per : (layer + 1) * per]
        rest = (alpha[layer], noise, numbers[layer], batch_sizes, descriptor, reset)
        input, h_n, states = _run_layer(input, h0, own, *rest)
        final.append(h_n)
    return input, final[0] if L == 1 else torch.cat(final), states


def check_kind(state, nonlinearity):
    """Raise ValueError if there is no such kind of leaky units."""
    if state not in ("rate", "current"):
        raise ValueError(f"state must be 'rate' or 'current', got {state!r}")
    if nonlinearity not in NONLINEARITIES:
        names = ", ".join(map(repr, NONLINEARITIES))
        raise ValueError(f"nonlinearity must be one of {names}, got {nonlinearity!r}")


def _run_layer(x, h0, weights, alpha, noise, xi, batch_sizes, descriptor, reset):
    """Run one layer, and return ``(output, h_n, states)``.

    The arguments are those of :func:`leaky_rnn` for that layer.
    """
    on_kernel = can_run_kernel(x, weights[0].dtype, _ops.has_leaky_kernel)
    dtype = None if on_kernel else autocast_dtype(x.device.type)
    if dtype is not None:
        x, h0, alpha, xi, *weights = (cast(t, dtype) for t in (x, h0, alpha, xi, *weights))
        with torch.autocast(x.device.type, enabled=False):
            rest = (alpha, noise, xi, batch_sizes, descriptor, reset)
            return _run_layer(x, h0, weights, *rest)
    dtype = weights[1].dtype
    floats = (("input", x), ("hx", h0), ("alpha", alpha), ("xi", xi))
    for name, t in (*floats, *(("weights", w) for w in weights)):
        if t is not None and t.is_floating_point() and t.dtype != dtype:
            raise RuntimeError(f"{name} must be {dtype} like the weights, got {t.dtype}")
        if t is not None and t.device != x.device:
            raise RuntimeError(f"{name} must be on {x.device} like the input, got {t.device}")
    is_sparse = weights[1].layout is torch.sparse_csr
    on_kernel = on_kernel and not any(has_own_torch_function(w) for w in (*weights, alpha))
    scale = seed = None
    if noise:
        scale = noise * (2 / alpha).sqrt()
        seed = torch.randint(torch.iinfo(torch.int64).max, (), device="cpu")
        needs_xi = is_sparse or (scale.requires_grad and torch.is_grad_enabled())
        if xi is None and (x.is_cuda or not on_kernel):
            shape = (*_ops.shape_of_rows(x, batch_sizes), weights[1].shape[-1])
            xi = torch.randn(shape, dtype=dtype, device=x.device)
        elif xi is None and needs_xi:
            xi = _draw(seed, x, weights[0], batch_sizes, descriptor)
        if xi is not None:
            xi, scale, seed = scale * xi, None, None
    if is_sparse:
        tensors = (x, h0, alpha, xi, *weights)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            raise RuntimeError(
                "a sparse weight_hh has no gradients: call this in torch.no_grad(), or make "
                "it dense, weight_hh.to_dense()"
            )
        has_kernel = dtype in (torch.float32, torch.float64) and x.is_floating_point()
        if on_kernel and has_kernel and x.is_cpu and batch_sizes is None:
            return _run_sparse(x, h0, weights, alpha, xi, descriptor, reset)
        weights = [weights[0], weights[1].to_dense(), *weights[2:]]
    tensors = (x, h0, alpha, xi, scale, seed, batch_sizes, reset, descriptor, *weights)
    if not on_kernel:
        return leaky_rnn_stepwise(*tensors)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, h0, alpha, xi, *weights)
    ):
        output, h_n, states = _LeakyRNN.apply(*tensors)
    else:
        keeps = (descriptor.current, False)
        arguments = (x, h0, weights, alpha, xi, scale, seed, batch_sizes)
        output, h_n, states, _ = _ops.leaky_rnn(*arguments, descriptor, keeps, reset)
    return output, h_n, states if descriptor.current else output


def _run_sparse(x, h0, weights, alpha, noise, descriptor, reset):
    """Run a layer whose ``w_hh`` is sparse, and return what `_run_layer` returns."""
    w_ih, w_hh, *bias = weights
    parts = (w_hh.crow_indices(), w_hh.col_indices(), w_hh.values())
    native = _ops.reservoir(w_ih, parts, bias[0] if bias else None, alpha, descriptor)
    if descriptor.batch_first:
        x, noise, reset = (None if t is None else t.transpose(0, 1) for t in (x, noise, reset))
    states = x.new_empty((*x.shape[:2], native.units)) if descriptor.current else None
    h0 = None if h0 is None else h0[0]
    output, h_n = _ops.run_reservoir(native, x.detach(), h0, reset, noise, states)
    if descriptor.batch_first:
        output, states = (
            None if t is None else t.transpose(0, 1).contiguous() for t in (output, states)
        )
    return output, h_n.unsqueeze(0), output if states is None else states


def _draw(seed, x, w_ih, batch_sizes, descriptor):
    """Return the random numbers that the kernel draws from ``seed``, in the layout of the input."""
    rows, H = _ops.shape_of_rows(x, batch_sizes), w_ih.shape[0]
    numbers = _ops.normal(seed, w_ih.detach(), rows.numel(), H)
    if batch_sizes is not None or not descriptor.batch_first:
        return numbers.view(*rows, H)
    return numbers.view(rows[1], rows[0], H).transpose(0, 1)


def leaky_rnn_stepwise(x, h0, alpha, noise, scale, seed, batch_sizes, reset, descriptor, *weights):
    """Run a layer as a loop over time steps on torch's operators, and return what it returns.

    Args:
        x, h0, alpha, batch_sizes, reset, weights: as for the operator ``leaky_rnn``, which
            rnnfast/_ops/schema.py describes.
        noise: what is added to the argument of f, in the layout of the output, or None.
        scale, seed: draw the noise that the kernel draws, if ``noise`` is None and these are not.
        descriptor: the `LeakyDescriptor` of the call.
    """
    f, current = NONLINEARITIES[descriptor.nonlinearity], descriptor.current
    w_ih, w_hh, *bias = weights
    p = input_product(x, w_ih)
    p = p + bias[0] if bias else p
    if noise is None and scale is not None:
        noise = _draw(seed, x, w_ih, batch_sizes, descriptor) * scale
    p = p if noise is None else p + noise
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    split = partial(torch.split, split_size_or_sections=sizes) if sizes else torch.unbind
    if descriptor.batch_first and sizes is None:
        p, reset = p.transpose(0, 1), None if reset is None else reset.transpose(0, 1)
    p, reset = split(p), None if reset is None else split(reset)
    state = p[0].new_zeros(p[0].shape) if h0 is None else h0[0]
    outputs, states, ended = [], [], []
    for t, p_t in enumerate(p):
        B = p_t.shape[0]  # in a packed batch, only the first rows have a step t
        if state.shape[0] > B:
            ended.append(state[B:])
            state = state[:B]
        if reset is not None:
            state = torch.where(reset[t].unsqueeze(1), 0.0, state)
        target = p_t + F.linear(f(state) if current else state, w_hh)
        state = (1 - alpha) * state + alpha * (target if current else f(target))
        states.append(state)
        outputs.append(f(state) if current else state)
    h_n = torch.cat([state, *ended[::-1]]).unsqueeze(0)
    join = torch.cat if sizes else partial(torch.stack, dim=int(descriptor.batch_first))
    output = join(outputs)
    return output, h_n, join(states) if current else output


class _LeakyRNN(torch.autograd.Function):
    """One layer. It saves the output and, where a gradient needs them, the states and targets."""

    # There is no setup_context, for the reason given in _kernels.py.
    @staticmethod
    def forward(ctx, x, h0, alpha, noise, scale, seed, batch_sizes, reset, descriptor, *weights):
        needs_alpha = ctx.needs_input_grad[2]
        keeps = (descriptor.current, needs_alpha or not descriptor.current)
        tensors = (x, h0, weights, alpha, noise, scale, seed, batch_sizes)
        output, h_n, states, saved = _ops.leaky_rnn(*tensors, descriptor, keeps, reset)
        kept = states if needs_alpha else None
        ctx.save_for_backward(
            x, h0, alpha, noise, scale, seed, batch_sizes, reset, output, kept, saved, *weights
        )
        ctx.descriptor = descriptor
        ctx.set_materialize_grads(False)
        return output, h_n, states if descriptor.current else None

    @staticmethod
    def backward(ctx, dy, dh_n, dstates):
        if dy is None and dh_n is None and dstates is None:
            return (None,) * len(ctx.needs_input_grad)
        x, h0, alpha, noise, scale, seed, batch_sizes, reset, *outputs = ctx.saved_tensors
        outputs, weights = outputs[:3], outputs[3:]
        gradients = (dy, dh_n, dstates)
        if torch.is_grad_enabled() or any(map(_torch.is_batch_of_vmap, gradients)):
            tensors = (x, h0, alpha, noise, scale, seed, batch_sizes, reset)
            inputs = (*tensors, ctx.descriptor, *weights)
            if not ctx.descriptor.current:
                return differentiable_gradients(ctx, _output_and_state, inputs, (dy, dh_n))
            return differentiable_gradients(ctx, leaky_rnn_stepwise, inputs, gradients)
        need_dx, need_dh0, need_dalpha, need_dnoise, *_ = ctx.needs_input_grad
        needs_dw = ctx.needs_input_grad[9:]
        needs = (need_dx, need_dh0, True in needs_dw, need_dalpha, need_dnoise)
        tensors = (x, h0, weights, alpha, batch_sizes, ctx.descriptor, needs, reset)
        dx, dh0, dw, *rest = _ops.leaky_rnn_backward(gradients, outputs, *tensors)
        dw = [g if need else None for g, need in zip(dw or weights, needs_dw, strict=True)]
        needed = (need_dx, need_dh0, need_dalpha, need_dnoise)
        given = [g if n else None for g, n in zip((dx, dh0, *rest), needed, strict=True)]
        return (*given, None, None, None, None, None, *dw)


def _output_and_state(*inputs):
    return leaky_rnn_stepwise(*inputs)[:2]
