"""What the functions of this package have in common."""

import reprlib

import torch
from torch.nn import functional as F

from .. import _torch


def can_run_kernel(input, dtype, has_kernel):
    """Return whether a kernel can run a call with ``input`` and weights of ``dtype``.

    ``has_kernel(device_type, dtype)`` tells whether there is one. The kernels know nothing of
    autocast, of the transforms of torch.func and of forward-mode AD. ``torch.jit.trace`` cannot
    record the call of an autograd Function, so it gets torch's own operators as well.
    """
    # is_cpu takes a fourth of the time of device.type.
    device_type = "cpu" if input.is_cpu else input.device.type
    return (
        has_kernel(device_type, dtype)
        and not torch.jit.is_tracing()
        and input.numel() > 0
        and not torch.is_autocast_enabled(device_type)
        and not _torch.is_in_transform_or_forward_ad()
    )


def has_own_torch_function(t):
    """Return whether the class of ``t`` has a ``__torch_function__`` of its own.

    It may replace torch's functions for its tensors, but not the kernels. Its tensors may have no
    memory. torch.overrides.has_torch_function is true for every tensor inside of a mode, for
    example that of ``torch.set_default_device``.

    Raises:
        TypeError: ``t`` is not a tensor.
    """
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"weights must be tensors, got {type(t).__name__}")
    function = type(t).__torch_function__
    inherited = torch.Tensor.__torch_function__.__func__
    disabled = torch.nn.Parameter.__torch_function__
    return function is not disabled and getattr(function, "__func__", function) is not inherited


def check_batch_sizes(batch_sizes, rows):
    """Raise an error unless ``batch_sizes`` divides a packed batch of this number of rows.

    The values are not checked where Python must not look at them, for example in a graph.

    Returns:
        The number of sequences, or None if it was not looked at.
    """
    if not isinstance(batch_sizes, torch.Tensor):
        raise TypeError(f"batch_sizes must be a tensor, got {type(batch_sizes).__name__}")
    is_int64, shape = batch_sizes.dtype is torch.int64, tuple(batch_sizes.shape)
    if not (is_int64 and batch_sizes.is_cpu and len(shape) == 1 and shape[0] > 0):
        raise RuntimeError(
            "batch_sizes must be torch.int64 (T) on the CPU with T at least 1, got "
            f"{batch_sizes.dtype} {shape} on {batch_sizes.device}"
        )
    if not _torch.has_readable_values(batch_sizes):
        return None
    sizes = batch_sizes.tolist()
    if sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        raise RuntimeError(
            f"batch_sizes must be positive and never increase, got {reprlib.repr(sizes)}"
        )
    if sum(sizes) != rows:
        raise RuntimeError(f"batch_sizes must sum to the {rows} rows of input, got {sum(sizes)}")
    return sizes[0]


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


def input_product(x, w_ih):
    """Return ``W_ih x``. Of int64 tokens these are columns of ``w_ih``."""
    if x.is_floating_point():
        return F.linear(x, w_ih)
    try:
        # F.one_hot would look at the values of the tokens, which vmap refuses.
        return F.embedding(x, w_ih.t())
    except IndexError as error:
        inputs = w_ih.shape[1]
        raise IndexError(
            f"input: a token is not in [0, {inputs}), the range of a one-hot input of size {inputs}"
        ) from error


def states_of(hx):
    """Return the tensors of an initial state: none, one, or h and c of an LSTM."""
    if isinstance(hx, tuple):
        return hx
    return () if hx is None else (hx,)


def as_hx(states):
    """Do the inverse of `states_of`."""
    if len(states) == 2:
        return tuple(states)
    return states[0] if states else None


def each_state(function, hx):
    """Return ``function`` of a state, or of both states of an LSTM. None stays None."""
    if isinstance(hx, tuple):
        return tuple([function(state) for state in hx])
    return None if hx is None else function(hx)


def state_shapes(weights, B, descriptor):
    """Return the shapes of the states of all layers: one, or those of h and c of an LSTM.

    With the projections of torch's LSTM, h has fewer elements than c.
    """
    rows, columns = weights[1].shape
    widths = (columns, rows // 4) if descriptor.cell == "lstm" else (columns,)
    return [(descriptor.num_states, B, width) for width in widths]


def check_hx(hx, weights, B, descriptor):
    """Raise RuntimeError unless the initial state ``hx`` fits B sequences and the weights."""
    shapes = state_shapes(weights, B, descriptor)
    for name, state, shape in zip(("hx", "cx"), states_of(hx), shapes, strict=False):
        if state.shape != shape:
            raise RuntimeError(f"{name} must be {shape}, got {tuple(state.shape)}")


def differentiable_gradients(ctx, call, inputs, gradients_of_outputs):
    """Return the gradients of ``inputs``, for use in the backward pass of an autograd Function.

    They are those of the outputs of ``call(*inputs)``, which runs torch's own operators, so they
    can be differentiated again. Inputs that need no gradient according to ``ctx`` get None.
    """
    wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # One input may be computed from another, or be the same tensor. Views of the inputs make
        # the gradients here partial derivatives; the autograd engine turns them into total ones.
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
