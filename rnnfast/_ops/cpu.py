"""The CPU implementations of the operators ``torch.ops.rnnfast.*``, which ``schema.py`` defines."""

import torch

from .. import _C
from .schema import is_one_hot, new_loss_gradients, shape_of_rows

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _contiguous(t):
    """Return ``t`` itself if it is contiguous or None, else a contiguous copy."""
    return t if t is None or t.is_contiguous() else t.contiguous()


def _rows(t):
    """Return ``t`` itself if its rows are contiguous or it is None, else a contiguous copy."""
    return t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def prepare(x, h0, weights, batch_sizes, descriptor):
    """Return these tensors in the layout that the kernels expect, copied only where necessary."""
    first = range(0, descriptor.weights_per_layer, descriptor.weights_per_direction)
    return _layout(x, h0, weights, batch_sizes, first)


def _layout(x, h0, weights, batch_sizes, first):
    """Do what `prepare` does. ``first`` has the places of the first W_ih in ``weights``."""
    if is_one_hot(x):  # the kernels read W_ih of the first layer as a table, (I, H)
        weights = list(weights)
        for n in first:
            weights[n] = weights[n].t()
    else:
        x = _rows(x)
    weights = [w if w.is_contiguous() else w.contiguous() for w in weights]
    return x, _contiguous(h0), weights, _contiguous(batch_sizes)


def new_outputs(x, weights, batch_sizes, descriptor):
    """Return new tensors for the outputs of all layers, which may run at the same time, and h_n."""
    num_layers, directions, batch_first, *_ = descriptor
    rows = shape_of_rows(x, batch_sizes)
    like = weights[1]
    H, gates = like.shape[-1], descriptor.gates
    if like.shape[0] != gates * H:  # the kernels take H from here, and would blame weight_ih
        wanted = "(H, H)" if gates == 1 else f"({gates} * H, H)"
        raise RuntimeError(f"weight_hh must be {wanted}, got {tuple(like.shape)}")
    B = rows[not batch_first] if batch_sizes is None else int(batch_sizes[0])
    shape = (*rows, directions * H)
    outs = [_C.empty(shape, like) for _ in range(num_layers)]
    return outs, _C.empty((num_layers * directions, B, H), like)


def rnn_cpu(x, h0, weights, batch_sizes, descriptor, keep, reset=None):
    """Run ``rnn`` on the CPU kernels; arguments and results are described in ``schema.py``."""
    outs, h_n = new_outputs(x, weights, batch_sizes, descriptor)
    x, h0, weights, batch_sizes = prepare(x, h0, weights, batch_sizes, descriptor)
    threads = torch.get_num_threads()
    _C.forward(x, h0, weights, batch_sizes, *descriptor.options, threads, outs, h_n, reset)
    return outs if keep else outs[-1:], h_n


def _buffers_between(outs, descriptor):
    """Return what the backward pass needs between the layers.

    A bidirectional layer reads the gradient of its whole output and writes that of its whole input,
    so two buffers are enough.
    """
    count = min(2, descriptor.num_layers - 1) if descriptor.directions == 2 else 0
    return [_C.empty(outs[0].shape, outs[0]) for _ in range(count)]


def _as_given(dw, x, descriptor):
    """Return the gradients of the weights, with those of tables as gradients of W_ih."""
    if dw and is_one_hot(x):
        for n in range(0, descriptor.weights_per_layer, descriptor.weights_per_direction):
            dw[n] = dw[n].t()
    return dw


def rnn_backward_cpu(dy, dh_n, outs, x, h0, weights, batch_sizes, descriptor, needs, reset=None):
    """Run ``rnn_backward`` on the CPU kernels.

    ``needs`` is ``(need_dx, need_dh0, need_dw)``.

    Returns:
        ``(dx, dh0, dw)``. A gradient that is not needed is None, and ``dw`` an empty list.
    """
    need_dx, need_dh0, need_dw = needs
    x, h0, weights, batch_sizes = prepare(x, h0, weights, batch_sizes, descriptor)
    wanted = [x if need_dx else None, h0 if need_dh0 else None, *(weights if need_dw else ())]
    dx, dh0, *dw = _C.empty_like(wanted)
    between = _buffers_between(outs, descriptor)
    gradients = (torch.get_num_threads(), dx, dh0, dw, between)
    outs, dy = [_rows(out) for out in outs], _rows(dy)
    inputs = (outs, x, h0, weights, batch_sizes)
    _C.backward(dy, _contiguous(dh_n), *inputs, *descriptor.options, *gradients, reset)
    return dx, dh0, _as_given(dw, x, descriptor)


def gated_rnn_cpu(x, h0, c0, weights, batch_sizes, descriptor, keep, reset=None):
    """Run ``gated_rnn`` on the CPU kernels, as `rnn_cpu` runs ``rnn``.

    Returns:
        ``(outs, h_n, c_n, saved)``, where ``c_n`` is None for a GRU.
    """
    outs, h_n = new_outputs(x, weights, batch_sizes, descriptor)
    c_n = _C.empty(h_n.shape, h_n) if descriptor.is_lstm else None
    width = descriptor.saved_per_row * h_n.shape[-1]
    saved = [_C.empty((*out.shape[:-1], width), out) for out in outs] if keep else []
    x, h0, weights, batch_sizes = prepare(x, h0, weights, batch_sizes, descriptor)
    inputs = (x, h0, _contiguous(c0), weights, batch_sizes)
    results = (torch.get_num_threads(), outs, h_n, c_n, saved)
    _C.gated_forward(*inputs, *descriptor.options, *results, reset)
    return outs if keep else outs[-1:], h_n, c_n, saved


def gated_rnn_backward_cpu(
    gradients, outs, saved, x, h0, c0, weights, batch_sizes, descriptor, needs, reset=None
):
    """Run ``gated_rnn_backward`` on the CPU kernels.

    Args:
        gradients: ``(dy, dh_n, dc_n)``.
        outs, saved: as `gated_rnn_cpu` returned them.
        needs: ``(need_dx, need_dh0, need_dc0, need_dw)``.

    Returns:
        ``(dx, dh0, dc0, dw)``. A gradient that is not needed is None, and ``dw`` an empty list.
    """
    dy, dh_n, dc_n = gradients
    need_dx, need_dh0, need_dc0, need_dw = needs
    x, h0, weights, batch_sizes = prepare(x, h0, weights, batch_sizes, descriptor)
    c0 = _contiguous(c0)
    wanted = [x if need_dx else None, h0 if need_dh0 else None, c0 if need_dc0 else None]
    dx, dh0, dc0, *dw = _C.empty_like([*wanted, *(weights if need_dw else ())])
    given = (_rows(dy), _contiguous(dh_n), _contiguous(dc_n))
    kept = ([_rows(out) for out in outs], [_contiguous(s) for s in saved])
    inputs = (*given, *kept, x, h0, c0, weights, batch_sizes, *descriptor.options)
    between = _buffers_between(outs, descriptor)
    _C.gated_backward(*inputs, torch.get_num_threads(), dx, dh0, dc0, dw, between, reset)
    return dx, dh0, dc0, _as_given(dw, x, descriptor)


def leaky_rnn_cpu(
    x, h0, weights, alpha, noise, noise_scale, seed, batch_sizes, descriptor, keeps, reset=None
):
    """Run ``leaky_rnn`` on the CPU kernel; ``keeps`` is ``(keep_states, keep_saved)``.

    Returns:
        ``(output, h_n, states, saved)``, where what is not kept is None.
    """
    batch_first, current, nonlinearity = descriptor
    rows, like = shape_of_rows(x, batch_sizes), weights[1]
    H = like.shape[-1]
    B = rows[not batch_first] if batch_sizes is None else int(batch_sizes[0])
    x, h0, weights, batch_sizes = _layout(x, h0, weights, batch_sizes, (0,))
    output, h_n = _C.empty((*rows, H), like), _C.empty((1, B, H), like)
    states, saved = (_C.empty((*rows, H), like) if keep else None for keep in keeps)
    options = (batch_first, len(weights) > 2, alpha.contiguous(), current, nonlinearity)
    drawn = (_rows(noise), _contiguous(noise_scale), seed)
    results = (output, h_n, states, saved)
    threads = torch.get_num_threads()
    _C.leaky_forward(x, h0, weights, batch_sizes, *options, threads, *drawn, *results, reset)
    return results


def leaky_rnn_backward_cpu(
    gradients, outputs, x, h0, weights, alpha, batch_sizes, descriptor, needs, reset=None
):
    """Run ``leaky_rnn_backward`` on the CPU kernel.

    Args:
        gradients: ``(dy, dh_n, dstates)``.
        outputs: ``(output, states, saved)``, as `leaky_rnn_cpu` returned them.
        needs: ``(need_dx, need_dh0, need_dw, need_dalpha, need_dnoise)``.

    Returns:
        ``(dx, dh0, dw, dalpha, dnoise)``. A gradient that is not needed is None, and ``dw`` an
        empty list.
    """
    dy, dh_n, dstates = gradients
    batch_first, current, nonlinearity = descriptor
    x, h0, weights, batch_sizes = _layout(x, h0, weights, batch_sizes, (0,))
    output = outputs[0]
    need_dx, need_dh0, need_dw, need_dalpha, need_dnoise = needs
    wanted = [x if need_dx else None, h0 if need_dh0 else None, alpha if need_dalpha else None]
    wanted += [output if need_dnoise else None, *(weights if need_dw else ())]
    dx, dh0, dalpha, dnoise, *dw = _C.empty_like(wanted)
    options = (batch_first, len(weights) > 2, alpha.contiguous(), current, nonlinearity)
    given = (_rows(dy), _contiguous(dh_n), _rows(dstates), *outputs)
    written = (torch.get_num_threads(), dx, dh0, dw, dalpha, dnoise)
    _C.leaky_backward(*given, x, h0, weights, batch_sizes, *options, *written, reset)
    if dw and is_one_hot(x):
        dw[0] = dw[0].t()
    return dx, dh0, dw, dalpha, dnoise


def normal_cpu(seed, like, rows, columns):
    """Run ``normal`` on the CPU kernel, which csrc/api/leaky.h describes."""
    out = _C.empty((rows, columns), like)
    _C.normal(seed, torch.get_num_threads(), out)
    return out


def linear_cross_entropy_cpu(x, w, target, b, dloss, reduction, *needs):
    """Run ``linear_cross_entropy`` on the CPU kernel, which csrc/api/loss.h describes."""
    gradients = new_loss_gradients(_C.empty, x, w, *needs)
    loss = _C.empty(target.shape if reduction == "none" else (), x)
    scale = {"none": None, "sum": 1.0, "mean": 1 / max(len(x), 1)}[reduction]
    wanted = [g if needed else None for g, needed in zip(gradients, needs, strict=True)]
    tensors = (_rows(x), _contiguous(w), _contiguous(target), _contiguous(b), dloss)
    _C.linear_cross_entropy(*tensors, scale, torch.get_num_threads(), loss, *wanted)
    return loss, *gradients


def dropout_cpu(x, seed, p):
    """Run ``dropout`` on the CPU kernel, which csrc/api/dropout.h describes."""
    x, out = _contiguous(x), _C.empty(x.shape, x)
    _C.dropout(x.view(-1), seed, p, torch.get_num_threads(), out.view(-1))
    return out


def sampler(table, layers, decoder, cell, *, temperature, top_k, top_p, stop, seed):
    """Return a native sampler, which draws tokens from a recurrent language model.

    With V tokens, H hidden units and G gates, 3 of a GRU, 4 of an LSTM and otherwise 1:

    Args:
        table: (V, G * H), the product W_ih x of the first layer for each token x.
        layers: for each layer W_hh (G * H, H), W_ih (G * H, H), which is None in the first layer,
            b_ih (G * H) and b_hh (G * H).
        decoder: the weight (V, H) and the bias (V) of the output layer. A bias of -inf bans a
            token.
        cell: "tanh", "relu", "gru" or "lstm".
        temperature: divides the logits, at least 0. With 0 the most probable token is taken.
        top_k: how many of the most probable tokens may be drawn, at least 1.
        top_p: in (0, 1]. Of these, only the fewest tokens whose share of their probability reaches
            ``top_p`` may be drawn (nucleus sampling, Holtzman et al. 2020).
        stop: the token that ends a text, or None.
        seed: seed of the random numbers.

    All tensors are float32 on the CPU, and are copied.

    Returns:
        An object with two methods. ``feed(tokens)`` reads a list of tokens. ``generate(n)`` returns
        a list of at most n more tokens. The state is zero at first and is carried from call to
        call. The methods use as many threads as torch does now, or one where that is faster.

    Raises:
        RuntimeError: a tensor has a wrong shape, dtype or device.
        ValueError: an option is out of range.

    ``feed`` raises IndexError for a token that is not in [0, V). ``generate`` raises OverflowError
    if the logits of the next token are not finite.
    """
    layers = [tuple(map(_contiguous, weights)) for weights in layers]
    tensors = (table.contiguous(), layers, *(t.contiguous() for t in decoder))
    stop = -1 if stop is None else stop
    options = (cell, temperature, top_k, top_p, stop, seed, torch.get_num_threads())
    return _C.Sampler(*tensors, *options)


def stepper(batch_size, weights, biases, cell="tanh", alpha=None, leak=None):
    """Return a native object that runs one time step at a time; csrc/api/stepper.h describes it.

    ``weights`` holds (w_ih, w_hh) and ``biases`` biases for each layer, and is copied. ``cell`` is
    "tanh", "relu", "gru" or "lstm". ``alpha``, (L, H), and ``leak``, a `LeakyDescriptor`, are those
    of leaky units, for which ``cell`` is ignored. Otherwise they are None.
    """
    weights = [w.detach().resolve_neg().contiguous() for w in weights]
    kind = (False, "tanh") if leak is None else (leak.current, leak.nonlinearity)
    alpha = None if alpha is None else alpha.detach().contiguous()
    return _C.Stepper(batch_size, weights, cell, biases, torch.get_num_threads(), alpha, *kind)


def reservoir(w_ih, w_hh, bias, alpha, leak):
    """Return a native leaky recurrence with sparse weights, which csrc/api/reservoir.h describes.

    With I inputs and H units, in float32 or float64 on the CPU:

    Args:
        w_ih: (H, I), the weights of the input.
        w_hh: ``(crow_indices, col_indices, values)`` of the recurrent weights (H, H) in the layout
            `torch.sparse_csr`. The indices are int64 or int32.
        bias: (H), or None.
        alpha: (H), the leak of each unit. A unit with the leak 1 does not keep its last state.
        leak: the `LeakyDescriptor`, whose ``batch_first`` is not used.

    The tensors are copied.

    Returns:
        An object for `run_reservoir`. It uses as many threads as torch does now, or one where that
        is faster.

    Raises:
        RuntimeError: a tensor has a wrong shape, dtype or device.
        IndexError: an element of ``col_indices`` is not in [0, H).
        ValueError: ``crow_indices`` or the nonlinearity is not valid.
    """
    *indices, values = w_hh
    indices = [i.to(torch.int64) if i.dtype is torch.int32 else i for i in indices]
    tensors = [
        None if t is None else t.detach().resolve_neg().contiguous()
        for t in (w_ih, bias, alpha, *indices, values)
    ]
    return _C.Reservoir(*tensors, leak.nonlinearity, leak.current, torch.get_num_threads())


def run_reservoir(native, x, hx=None, reset=None, addend=None, states=None):
    """Run what `reservoir` returned.

    Args:
        native: what `reservoir` returned.
        x: (T, B, I).
        hx: the initial state, (B, H), or None for zeros.
        reset: bool (T, B). Where it is true, the state is zero before that step. None: no resets.
        addend: (T, B, H), added to the bias, or None.
        states: (T, B, H), to which the states of a current are written, or None.

    Returns:
        ``(r, last)``: r_t of all steps, (T, B, H), and the last state, (B, H). ``hx`` and ``last``
        are r for a rate and s for a current.

    Raises:
        RuntimeError: a tensor has a wrong shape, dtype or device.
    """
    r = _C.empty((*x.shape[:2], native.units), x)
    last = _C.empty((x.shape[1], native.units), x)
    native.run(_rows(x), _contiguous(hx), reset, _rows(addend), r, last, states)
    return r, last


def glove_epoch(starts, shifts, row, column, log_x, weight, words, contexts, lr):
    """Train GloVe for one epoch; ``words`` and ``contexts`` are updated in place.

    csrc/api/glove.h describes the algorithm and the order of the entries. All tensors are
    contiguous and on the CPU. There are N entries in P * P blocks, V words and D features.

    Args:
        starts: int64 (P * P + 1), the first entry of each block.
        shifts: int64 (P), the shift of each round: 0, ..., P - 1 in any order.
        row, column: int64 (N).
        log_x, weight: float32 (N).
        words, contexts: float32 (V, 2, D + 1).
        lr: learning rate.

    Returns:
        float: the weighted sum of the squared errors.

    Raises:
        RuntimeError: a tensor has a wrong shape, dtype or device.
        IndexError: a row or column is not in [0, V), or not in its block.
        ValueError: ``starts`` or ``shifts`` is not valid.
    """
    tensors = (starts, shifts, row, column, log_x, weight, words, contexts)
    return _C.glove_epoch(*tensors, lr, torch.get_num_threads())
