"""Wrong sizes raise the same errors on rnnfast's kernels and on torch's operators."""

from functools import partial

import pytest
import torch

from rnnfast import functional
from rnnfast.functional import gru, leaky_rnn, lstm, rnn

T, B, I, H, L = 4, 3, 5, 6, 2  # noqa: E741 - the letters that the whole project uses
CELLS = {"rnn": (rnn, 1), "gru": (gru, 3), "lstm": (lstm, 4)}
PACKED = torch.tensor([3, 2, 2, 1])
# An index in `weights`, its wrong shape as a function of the number of gates, and its name. There
# are two layers of two directions with four weights each.
WRONG_WEIGHTS = {
    "bias of one element": (2, lambda G: (1,), "bias_ih_l0"),
    "bias_hh of one element": (7, lambda G: (1,), "bias_hh_l0_reverse"),
    "bias rank": (11, lambda G: (G * H, 1), "bias_hh_l1"),
    "bias of a layer": (10, lambda G: (G * H + 1,), "bias_ih_l1"),
    "weight_ih columns": (0, lambda G: (G * H, I + 1), "weight_ih_l0"),
    "weight_ih rows": (4, lambda G: (G * H + 1, I), "weight_ih_l0_reverse"),
    "weight_ih of a layer": (8, lambda G: (G * H, H), "weight_ih_l1"),
    "weight_ih rank": (0, lambda G: (G * H,), "weight_ih_l0"),
    "weight_hh rows": (1, lambda G: (G * H + 1, H), "weight_hh_l0"),
    "weight_hh columns": (1, lambda G: (G * H, H + 1), "weight_hh_l0"),
    "weight_hh of a layer": (13, lambda G: (G * H, H + 1), "weight_hh_l1_reverse"),
    "weight_hh rank": (1, lambda G: (), "weight_hh_l0"),
}
# The shape of one state.
WRONG_STATES = {
    "batch of one": (2 * L, 1, H),
    "layers": (L, B, H),
    "one layer": (1, B, H),
    "elements": (2 * L, B, 1),
    "rank": (B, H),
}


class Subclass(torch.Tensor):
    """Its weights run on torch's operators."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def on_kernel(call, input, hx, weights, **options):
    return call(input, hx, weights, **options)


def with_subclass(call, input, hx, weights, **options):
    return call(input, hx, [w.as_subclass(Subclass) for w in weights], **options)


def on_meta(call, input, hx, weights, **options):
    hx = tuple(h.to("meta") for h in hx) if isinstance(hx, tuple) else None if hx is None else hx
    hx = hx.to("meta") if isinstance(hx, torch.Tensor) else hx
    return call(input.to("meta"), hx, [w.to("meta") for w in weights], **options)


def in_vmap(call, input, hx, weights, **options):
    return torch.func.vmap(lambda x: call(x, hx, weights, **options)[0])(input.unsqueeze(0))


def in_jvp(call, input, hx, weights, **options):
    return torch.func.jvp(
        lambda w: call(input, hx, [w, *weights[1:]], **options)[0], (weights[0],), (weights[0],)
    )


paths = pytest.mark.parametrize("path", [on_kernel, with_subclass, on_meta, in_vmap, in_jvp])
cells = pytest.mark.parametrize("cell", CELLS)


def make_weights(G, *, layers=L, projection=0):
    """Return the weights of two directions."""
    weights, inputs = [], I
    for _ in range(layers):
        for _ in range(2):
            weights += [torch.randn(G * H, inputs), torch.randn(G * H, projection or H)]
            weights += [torch.randn(G * H), torch.randn(G * H)]
            weights += [torch.randn(projection, H)] if projection else []
        inputs = 2 * (projection or H)
    return weights


def state(cell, shape=(2 * L, B, H)):
    hx = torch.zeros(shape)
    return (torch.zeros(2 * L, B, H), hx) if cell == "lstm" else hx


options = {"num_layers": L, "bidirectional": True}


@cells
@paths
def test_right_sizes(path, cell):
    """The calls below are wrong in one argument only."""
    call, G = CELLS[cell]
    path(call, torch.randn(T, B, I), state(cell), make_weights(G), **options)


@cells
@paths
@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights(wrong, path, cell):
    call, G = CELLS[cell]
    index, shape, name = WRONG_WEIGHTS[wrong]
    weights = make_weights(G)
    right, weights[index] = tuple(weights[index].shape), torch.randn(shape(G))
    wanted = (
        r"\(.*H, H\)"
        if name == "weight_hh_l0"
        else r"\({}\)".format(", ".join(map(str, right)) + ("," if len(right) == 1 else ""))
    )
    got = str(shape(G)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(RuntimeError, match=rf"^{name} must be {wanted}.*, got {got}$"):
        path(call, torch.randn(T, B, I), state(cell), weights, **options)


@cells
@paths
@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_wrong_states(wrong, path, cell):
    call, G = CELLS[cell]
    name = "cx" if cell == "lstm" else "hx"
    with pytest.raises(RuntimeError, match=rf"^{name} must be \(4, 3, 6\), got \("):
        hx = state(cell, WRONG_STATES[wrong])
        path(call, torch.randn(T, B, I), hx, make_weights(G), **options)


@cells
@paths
def test_wrong_input(path, cell):
    call, G = CELLS[cell]
    with pytest.raises(RuntimeError, match=r"^weight_ih_l0 must be .*, 7\) to fit input"):
        path(call, torch.randn(T, B, 7), None, make_weights(G), **options)
    with pytest.raises(RuntimeError, match=r"^input must be \(T, B, I\)"):
        path(call, torch.randn(T, I), None, make_weights(G), **options)


@pytest.mark.parametrize(
    ("index", "shape", "match"),
    [
        (1, (4 * H + 1, 2), r"weight_hh_l0 must be \(4 \* H, P\), got \(25, 2\)"),
        (3, (1,), r"bias_hh_l0 must be \(24,\)"),
        (4, (2, 1), r"weight_hr_l0 must be \(2, 6\).*, got \(2, 1\)"),
        (10, (4 * H, 2), r"weight_ih_l1 must be \(24, 4\).*, got \(24, 2\)"),
        (19, (3, H), r"weight_hr_l1_reverse must be \(2, 6\).*, got \(3, 6\)"),
    ],
)
def test_wrong_projections(index, shape, match):
    weights = make_weights(4, projection=2)
    lstm(torch.randn(T, B, I), None, weights, **options)
    weights[index] = torch.randn(shape)
    with pytest.raises(RuntimeError, match=match):
        lstm(torch.randn(T, B, I), None, weights, **options)
    with pytest.raises(RuntimeError, match=r"hx must be \(4, 3, 2\), got \(4, 3, 6\)"):
        hx = (torch.zeros(4, B, H), torch.zeros(4, B, H))
        lstm(torch.randn(T, B, I), hx, make_weights(4, projection=2), **options)


@cells
@pytest.mark.parametrize("path", [on_kernel, with_subclass])
@pytest.mark.parametrize(
    ("batch_sizes", "rows", "match"),
    [
        (PACKED, 7, "batch_sizes must sum to the 7 rows of input, got 8"),
        (PACKED, 9, "batch_sizes must sum to the 9 rows of input, got 8"),
        (PACKED.flip(0), 8, r"batch_sizes must be positive and never increase, got \[1, 2, 2, 3\]"),
        (torch.tensor([3, 0]), 3, r"batch_sizes must be positive and never increase"),
        (PACKED.int(), 8, r"batch_sizes must be torch.int64 \(T\).*got torch.int32 \(4,\) on cpu"),
        (PACKED[None], 8, r"batch_sizes must be .*got torch.int64 \(1, 4\)"),
        (PACKED[:0], 8, r"batch_sizes must be .*got torch.int64 \(0,\)"),
        (PACKED.to("meta"), 8, r"batch_sizes must be .* on the CPU.*got .* on meta"),
    ],
    ids=str,
)
def test_wrong_batch_sizes(batch_sizes, rows, match, path, cell):
    call, G = CELLS[cell]
    with pytest.raises(RuntimeError, match=match):
        path(call, torch.randn(rows, I), None, make_weights(G), batch_sizes=batch_sizes, **options)


def test_wrong_batch_sizes_of_leaky_units():
    call = partial(leaky_rnn, torch.randn(8, I), None, [torch.randn(H, I), torch.randn(H, H)])
    for batch_sizes, match in ((PACKED.to("meta"), "on meta"), (PACKED[1:], "sum to the 8 rows")):
        with pytest.raises(RuntimeError, match=rf"batch_sizes must .*{match}"):
            call(torch.ones(H), batch_sizes=batch_sizes)


@cells
def test_what_is_no_tensor(cell):
    call, G = CELLS[cell]
    weights = make_weights(G)
    weights[9] = weights[9].numpy()
    with pytest.raises(TypeError, match="weights must be tensors, got ndarray"):
        call(torch.randn(T, B, I), None, weights, **options)
    with pytest.raises(TypeError, match="batch_sizes must be a tensor, got list"):
        call(torch.randn(8, I), None, make_weights(G), batch_sizes=[3, 2, 2, 1], **options)


@cells
@pytest.mark.parametrize("path", [on_kernel, with_subclass, in_vmap, in_jvp])
@pytest.mark.parametrize("token", [-1, I, 2**40])
def test_tokens_out_of_range(token, path, cell):
    call, G = CELLS[cell]
    tokens = torch.zeros(T, B, dtype=torch.int64)
    path(call, tokens, None, make_weights(G), **options)
    tokens[2, 1] = token
    with pytest.raises(IndexError, match=rf"^input: .*token.* is not in \[0, {I}\)"):
        path(call, tokens, None, make_weights(G), **options)


def test_tokens_out_of_range_of_leaky_units():
    weights, tokens = [torch.randn(H, I), torch.randn(H, H)], torch.full((T, B), I)
    with pytest.raises(IndexError, match=rf"^input: a token is not in \[0, {I}\)"):
        torch.func.vmap(lambda t: functional.leaky_rnn(t, None, weights, torch.ones(H))[0])(
            tokens.unsqueeze(0)
        )
