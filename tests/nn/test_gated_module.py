"""``FastGRU`` and ``FastLSTM`` behave like ``nn.GRU`` and ``nn.LSTM``, and like ``FastRNN``."""

import copy
import pickle
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_module import check, differentiate, flat, outcome, packed, pair, saved
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

import rnnfast
from rnnfast import FastGRU, FastLSTM, _ops
from rnnfast.functional import _run
from rnnfast.functional._stepwise import rnn_stepwise

CLASSES = {"gru": (nn.GRU, FastGRU), "lstm": (nn.LSTM, FastLSTM)}
cells = pytest.mark.parametrize("cell", CLASSES)


def states(cell, *shape, **options):
    """Return an initial state of a module: a tensor, or a pair for an LSTM."""
    hx = [torch.randn(shape, **options) for _ in range(2)]
    return tuple(hx) if cell == "lstm" else hx[0]


# The textbook call and its options


@settings(
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@cells
def test_any_configuration(device, cell, data):
    draw, flag = data.draw, st.booleans()
    sizes = st.sampled_from([1, 2, 3, 5, 8, 17])
    num_layers, bidirectional = draw(st.integers(1, 3)), draw(flag)
    batch_first, with_hx = draw(flag), draw(flag)
    inputs, hidden, T, B = (draw(sizes) for _ in range(4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    theirs, ours = pair(
        inputs, hidden, num_layers, classes=CLASSES[cell],
        bias=draw(flag), batch_first=batch_first, bidirectional=bidirectional, dtype=dtype,
    )  # fmt: skip
    theirs.to(device), ours.to(device)
    count = num_layers * (2 if bidirectional else 1)
    batching = draw(st.sampled_from(["batched", "unbatched", "sorted", "unsorted"]))
    options = {"dtype": dtype, "device": device}
    torch.manual_seed(draw(st.integers(0, 100)))
    if batching == "unbatched":
        x, hx = torch.randn(T, inputs, **options), states(cell, count, hidden, **options)
    else:
        hx = states(cell, count, B, hidden, **options)
        if batching == "batched":
            x = torch.randn(*((B, T) if batch_first else (T, B)), inputs, **options)
        else:
            lengths = draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
            lengths = sorted(lengths, reverse=True) if batching == "sorted" else lengths
            sequences = [torch.randn(length, inputs, **options) for length in lengths]
            x = pack_sequence(sequences, enforce_sorted=batching == "sorted")
    inputs = (x, hx) if with_hx else (x,)
    if dtype == torch.float64:
        check(theirs, ours, *inputs)
    else:  # the tolerances are those of PyTorch's own tests
        torch.testing.assert_close(differentiate(ours, *inputs), differentiate(theirs, *inputs))


@cells
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(cell, dtype):
    theirs, ours = pair(5, 9, 2, bidirectional=True, dtype=dtype, classes=CLASSES[cell])
    with torch.backends.mkldnn.flags(enabled=False):  # oneDNN has float16 on few CPUs
        check(theirs, ours, torch.randn(7, 3, 5).to(dtype))


@cells
@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((3, 4), {}),
        ((3, 4, 2, False, True, 0.5, True), {}),
        ((3, 4), {"batch_first": True, "bidirectional": True, "dtype": torch.float64}),
    ],
)
def test_construction(cell, args, kwargs):
    theirs, ours = pair(*args, classes=CLASSES[cell], **kwargs)
    assert isinstance(ours, CLASSES[cell][0])
    assert repr(ours) == f"Fast{theirs!r}"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), "the same seed, the same weights"
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved],
    ids=["deepcopy", "pickle", "torch.save"],
)  # fmt: skip
@pytest.mark.parametrize("cls", [FastGRU, FastLSTM, partial(FastLSTM, proj_size=2)])
def test_copies(cls, duplicate):
    module, x = cls(3, 4), torch.randn(5, 3)
    expected = flat(module(x))
    other = duplicate(module)
    assert type(other) is type(module)
    assert all(map(torch.equal, flat(other(x)), expected))
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert all(map(torch.equal, flat(module(x)), expected)), "the copy shares nothing"


@pytest.mark.parametrize("batching", ["batched", "unbatched", "packed", "lengths"])
@pytest.mark.parametrize("with_hx", [True, False])
def test_projections(batching, with_hx):
    """They run on torch's operator, also with what nn.LSTM does not have."""
    theirs, ours = pair(
        3, 6, 2, proj_size=2, bidirectional=True, dtype=torch.float64, classes=CLASSES["lstm"]
    )
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    hx = tuple(torch.randn(4, 4, width, dtype=torch.float64) for width in (2, 6))
    hx = hx if with_hx else None
    lengths = torch.tensor([5, 2, 0, 4] if batching == "lengths" else [5, 2, 1, 4])
    if batching == "lengths":
        output, (h_n, c_n) = ours(x, hx, lengths=lengths)
        for b in (0, 1, 3):
            own = None if hx is None else tree_map(lambda t, b=b: t[:, b], hx)
            expected = theirs(x[: lengths[b], b], own)
            found = output[: lengths[b], b], (h_n[:, b], c_n[:, b])
            torch.testing.assert_close(found, expected)
        return
    if batching == "packed":
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    elif batching == "unbatched":
        x, hx = x[:, 1], None if hx is None else tree_map(lambda t: t[:, 1], hx)
    check(theirs, ours, x, *([hx] if with_hx else []))


def test_projections_with_resets_and_regularisers():
    module = FastLSTM(3, 6, 2, proj_size=2, dtype=torch.float64, weight_dropout=0.3)
    x, reset = torch.randn(9, 4, 3, dtype=torch.float64), torch.rand(9, 4) < 0.3
    assert module(x)[0].shape == (9, 4, 2)
    module.eval()
    descriptor = _ops.GatedDescriptor(2, 1, False, "lstm", True)
    weights = list(module.parameters())
    expected = rnn_stepwise(x, None, weights, None, descriptor, reset=reset)
    torch.testing.assert_close(module(x, reset=reset), expected)


# Lengths, resets, tokens


@cells
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_lengths(device, batch_first, tokens, cell):
    """Each sequence of a padded batch gives the results it gives alone, whatever the padding is."""
    lengths, T = [4, 1, 6, 3], 7
    options = {"bidirectional": True, "batch_first": batch_first, "dtype": torch.float64}
    ours = CLASSES[cell][1](3, 4, 2, **options).to(device)
    x = torch.randint(3, (T, 4)) if tokens else torch.randn(T, 4, 3, dtype=torch.float64)
    x, hx = x.to(device), states(cell, 4, 4, 4, dtype=torch.float64, device=device)
    layout = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    for argument in (lengths, torch.tensor(lengths, device=device)):
        output, h_n = ours(layout(x), hx, lengths=argument)
        output = layout(output)
        for b, n in enumerate(lengths):
            own = tree_map(lambda t, b=b: t[:, b : b + 1].contiguous(), hx)
            expected, last = ours(layout(x[:n, b : b + 1]), own)
            torch.testing.assert_close(output[:n, b : b + 1], layout(expected))
            torch.testing.assert_close(tree_map(lambda t, b=b: t[:, b : b + 1], h_n), last)
            assert not output[n:, b].any()


def in_parts(theirs, x, hx, reset):
    """Run a module of torch of one forward direction over each part between resets."""
    outputs, finals = [], []
    for b in range(x.shape[1]):
        h, steps = tree_map(lambda t, b=b: t[:, b : b + 1], hx), []
        for t in range(len(x)):
            if reset[t, b]:
                h = tree_map(torch.zeros_like, h)
            output, h = theirs(x[t : t + 1, b : b + 1], h)
            steps.append(output)
        outputs.append(torch.cat(steps))
        finals.append(tree_leaves(h))
    finals = [torch.cat(parts, 1) for parts in zip(*finals, strict=True)]
    return torch.cat(outputs, 1), tuple(finals) if len(finals) == 2 else finals[0]


@cells
def test_resets(cell):
    """batch_first, no batch, single steps, lengths and packed input give the same states."""
    theirs, ours = pair(3, 5, 2, classes=CLASSES[cell], dtype=torch.float64)
    x, reset = torch.randn(9, 4, 3, dtype=torch.float64), torch.rand(9, 4) < 0.3
    hx = states(cell, 2, 4, 5, dtype=torch.float64)
    expected, last = in_parts(theirs, x, hx, reset)
    torch.testing.assert_close(ours(x, hx, reset=reset), (expected, last))
    ours.batch_first = True
    output, h_n = ours(x.transpose(0, 1), hx, reset=reset.t())
    torch.testing.assert_close((output.transpose(0, 1), h_n), (expected, last))
    ours.batch_first = False
    one = partial(tree_map, lambda t: t[:, 1])
    found = ours(x[:, 1], one(hx), reset=reset[:, 1])
    torch.testing.assert_close(found, (expected[:, 1], one(last)))

    for gradients in (True, False):
        h = hx
        with torch.set_grad_enabled(gradients):
            for t in range(len(x)):
                output, h = ours(x[t : t + 1], h, reset=reset[t : t + 1])
                torch.testing.assert_close(output[0], expected[t])

    lengths = torch.tensor([9, 2, 5, 1])
    output, h_n = ours(x, hx, lengths=lengths, reset=reset)
    for b, length in enumerate(lengths.tolist()):
        cut = partial(tree_map, lambda t, b=b: t[:, b : b + 1])
        parts = in_parts(theirs, x[:length, b : b + 1], cut(hx), reset[:length, b : b + 1])
        torch.testing.assert_close((output[:length, b : b + 1], cut(h_n)), parts)
    x, reset = (pack_padded_sequence(t, lengths, enforce_sorted=False) for t in (x, reset))
    packed_output, packed_h_n = ours(x, hx, reset=reset)
    torch.testing.assert_close(pad_packed_sequence(packed_output)[0], output)
    torch.testing.assert_close(packed_h_n, h_n)


@cells
def test_resets_in_graphs_and_transforms(cell):
    module = CLASSES[cell][1](3, 5, 2, bidirectional=True)
    x, reset, hx = torch.randn(9, 4, 3), torch.rand(9, 4) < 0.3, states(cell, 4, 4, 5)
    expected = module(x, hx, reset=reset)
    several = torch.func.vmap(lambda r: module(x, hx, reset=r))(torch.stack((reset, ~reset)))
    torch.testing.assert_close(tree_map(lambda t: t[0], several), expected)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, hx, reset=reset), expected)
    _, tangent = torch.func.jvp(lambda x: module(x, hx, reset=reset)[0], (x,), (x,))
    assert tangent.shape == expected[0].shape


@cells
def test_a_batch_of_hx_that_does_not_fit_a_packed_input(cell):
    """Sorting the sequences would cut a batch that is too large."""
    x = pack_sequence([torch.randn(n, 5) for n in (3, 9, 1)], enforce_sorted=False)
    _, ours = pair(5, 6, classes=CLASSES[cell])
    for B in (2, 9):
        state = torch.zeros(1, B, 6)
        with pytest.raises(RuntimeError, match=r"Expected hidden"):
            ours(x, (state, state) if cell == "lstm" else state)


@cells
def test_tokens(cell):
    """Each form of the input, forward and backward."""
    theirs, ours = pair(7, 5, 2, bidirectional=True, classes=CLASSES[cell], dtype=torch.float64)
    tokens = torch.randint(7, (9, 4))
    vectors = nn.functional.one_hot(tokens, 7).double()
    pack = partial(pack_padded_sequence, lengths=torch.tensor([9, 2, 5, 1]), enforce_sorted=False)
    for of_tokens, of_vectors in ((tokens, vectors), (tokens[:, 0], vectors[:, 0]), (
        pack(tokens), pack(vectors)
    ), (tokens[:1], vectors[:1])):  # fmt: skip
        results = []
        for module, x in ((ours, of_tokens), (theirs, of_vectors)):
            outputs = flat(module(x))
            loss = sum(t.square().sum() for t in outputs)
            results.append([*outputs, *torch.autograd.grad(loss, list(module.parameters()))])
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


# Single steps


@cells
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True, "bias": False}])
def test_single_steps(cell, options, monkeypatch):
    """They run on the kernel without gradients, and on torch's operator with them."""
    calls, kernel = [], _run.gated_on_kernel
    monkeypatch.setattr(_run, "gated_on_kernel", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    theirs, ours = pair(5, 7, classes=CLASSES[cell], dtype=torch.float64, **options)
    x = torch.randn(1, 6, 5, dtype=torch.float64)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    for hx in (states(cell, count, 6, 7, dtype=torch.float64), None):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                found, expected = ours(x, hx), theirs(x, hx)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
            assert calls.pop() == 1 and not calls
        assert all(map(torch.equal, tree_leaves(ours(x, hx)), tree_leaves(theirs(x, hx))))
        assert not calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@cells
def test_single_step_of_16_bits(cell, dtype):
    """oneDNN, on which nn.LSTM runs, has float16 on few CPUs."""
    module, x = CLASSES[cell][1](5, 7), torch.randn(1, 6, 5)
    expected = tree_leaves(module(x))
    with torch.autocast("cpu", dtype):
        cast = tree_leaves(module(x))
    for found in (cast, tree_leaves(module.to(dtype)(x.to(dtype)))):
        for value, wide in zip(found, expected, strict=True):
            torch.testing.assert_close(value.float(), wide, rtol=2e-2, atol=2e-2)


# Training


@cells
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_of_a_seed_is_that_of_torch(batch_first, cell):
    options = {"dropout": 0.5, "bidirectional": True, "batch_first": batch_first}
    results = []
    for module in pair(6, 8, 3, classes=CLASSES[cell], **options):
        torch.manual_seed(3)
        outputs = tree_leaves(module(torch.ones(4, 5, 6)))
        loss = outputs[0].square().sum() + sum(t.sum() for t in outputs[1:])
        results.append([*outputs, *torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_double_backward(cell, dtype):
    """``create_graph=True`` gives the second derivatives of torch's module in float64."""
    results = []
    for module, kind in zip(
        pair(3, 4, 2, classes=CLASSES[cell]), (torch.float64, dtype), strict=True
    ):
        torch.manual_seed(5)
        x = torch.randn(5, 2, 3, dtype=torch.float64).to(kind).requires_grad_()
        hx = states(cell, 2, 2, 4, dtype=torch.float64)
        hx = tree_map(lambda t, kind=kind: t.to(kind).requires_grad_(), hx)
        module.to(kind)
        loss = sum(t.square().sum() for t in tree_leaves(module(x, hx)))
        first = torch.autograd.grad(loss, [x, *tree_leaves(hx)], create_graph=True)
        wanted = [x, *tree_leaves(hx), *module.parameters()]
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    for theirs, ours in zip(*results, strict=True):
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@cells
def test_frozen_parameters(cell):
    ours = CLASSES[cell][1](3, 4, 2, bidirectional=True)
    frozen = {"weight_ih_l0", "weight_hh_l1_reverse", "bias_hh_l0"}
    for name, p in ours.named_parameters():
        p.requires_grad_(name not in frozen)
    ours(torch.randn(5, 2, 3))[0].sum().backward()
    assert {name for name, p in ours.named_parameters() if p.grad is None} == frozen


def test_loss_of_one_output():
    """The other outputs have no gradient then."""
    for n in range(3):
        results = []
        for module in pair(3, 4, 2, classes=CLASSES["lstm"], dtype=torch.float64):
            torch.manual_seed(1)
            x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
            loss = tree_leaves(module(x))[n].square().sum()
            results.append(torch.autograd.grad(loss, [x, *module.parameters()]))
        torch.testing.assert_close(*results)


@cells
def test_output_changed_in_place_is_noticed(cell):
    output, _ = CLASSES[cell][1](3, 4)(torch.randn(5, 2, 3))
    loss = output.sum()
    with torch.no_grad():
        output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@cells
def test_training(cell):
    """Ten steps of SGD end where those of torch's module end."""
    ends = []
    for module in pair(5, 9, 2, bidirectional=True, classes=CLASSES[cell], dtype=torch.float64):
        torch.manual_seed(7)
        x, target = (torch.randn(11, 6, n, dtype=torch.float64) for n in (5, 18))
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        for _ in range(10):
            optimiser.zero_grad()
            nn.functional.mse_loss(module(x)[0], target).backward()
            optimiser.step()
        ends.append(list(module.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-11, atol=1e-12)


# Regularisers


@cells
@pytest.mark.parametrize("name", ["variational_dropout", "weight_dropout", "zoneout"])
def test_regularisers(cell, name):
    """A seed decides in training. In evaluation there is no chance, and only zoneout acts."""
    cls, x = CLASSES[cell][1], torch.randn(6, 5, 3)
    module = cls(3, 40, 2, bidirectional=True, **{name: 0.5})
    assert f"{name}=0.5" in repr(module)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(module(x)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    module.eval()
    plain = cls(3, 40, 2, bidirectional=True)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(x)[0], module(x)[0])
    assert torch.allclose(module(x)[0], plain(x)[0], atol=1e-6) == (name != "zoneout")
    with pytest.raises(ValueError, match=name):
        cls(3, 4, **{name: 1.5})


@cells
def test_zoneout_keeps_or_replaces_each_element(cell):
    """h and c have choices of their own, and h is made from the new c."""
    p, T, B, H = 0.3, 20, 10, 30
    cls = CLASSES[cell][1]
    ours, plain = cls(5, H, zoneout=p).double(), cls(5, H).double()
    plain.load_state_dict(ours.state_dict())
    x, before = torch.randn(T, B, 5).double(), states(cell, 1, B, H, dtype=torch.float64)
    shares = []
    for t in range(T):
        _, after = ours(x[t : t + 1], before)
        _, new = plain(x[t : t + 1], before)
        chosen = []
        for a, b, n in zip(*map(tree_leaves, (after, before, new)), strict=True):
            kept = a == b
            torch.testing.assert_close(a, torch.where(kept, b, n), rtol=1e-12, atol=1e-13)
            chosen.append(kept)
        assert len(chosen) == 1 or not torch.equal(*chosen)
        shares += [kept.double().mean().item() for kept in chosen]
        before = tree_map(torch.Tensor.detach, after)
    n = len(shares) * B * H
    assert abs(sum(shares) / len(shares) - p) < 5 * (p * (1 - p) / n) ** 0.5


@cells
def test_zoneout_of_almost_nothing_is_the_plain_cell(cell):
    """The loop over steps agrees with the kernels for layers, directions and packed sequences."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    cls = CLASSES[cell][1]
    ours, plain = cls(5, 6, zoneout=1e-300, **options), cls(5, 6, **options)
    plain.load_state_dict(ours.state_dict())
    x = pack_sequence([torch.randn(n, 5).double() for n in (3, 9, 1, 5)], enforce_sorted=False)
    results = []
    for module in (ours, plain):
        outputs = flat(module(x))
        loss = sum(t.square().sum() for t in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


# What runs


class Counting(torch.Tensor):
    """It counts the calls of torch's functions for whole sequences."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls += getattr(func, "__name__", "") in ("gru", "lstm")
        return super().__torch_function__(func, types, args, kwargs or {})


@cells
def test_a_class_of_weights_sees_torchs_function(cell):
    _, ours = pair(3, 4, 2, classes=CLASSES[cell], dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected, _ = ours(x)
    ours._flat_weights = [p.detach().as_subclass(Counting) for p in ours.parameters()]
    Counting.calls = 0
    output, _ = ours(x)
    assert Counting.calls == 1 and type(output) is Counting
    torch.testing.assert_close(torch.Tensor(output), expected, check_dtype=False)


@cells
def test_weights_replaced_by_other_code(cell):
    """The lists of torch's module decide, as in nn.GRU and nn.LSTM."""
    results, x = [], torch.randn(5, 2, 3)
    for module in pair(3, 4, classes=CLASSES[cell]):
        halved = {name: p * 0.5 for name, p in module.named_parameters()}
        called = torch.func.functional_call(module, halved, (x,))[0]
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        output = module(x)[0]
        gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        module.weight_ih_l0 = nn.Parameter(2 * module.weight_ih_l0.detach())
        results.append([called, output, *gradients, module(x)[0]])
    torch.testing.assert_close(*results)


@cells
@pytest.mark.parametrize("T", [1, 7])
def test_autocast(cell, T):
    """The outputs have the dtype of autocast.

    They are compared with those of torch's modules without autocast. Under autocast on the CPU,
    nn.GRU returns float32, and nn.LSTM fails where oneDNN has no LSTM in bfloat16 for the CPU.
    """
    theirs, ours = pair(5, 9, 2, classes=CLASSES[cell])
    x = torch.randn(T, 3, 5, requires_grad=True)
    results = []
    for module, autocast in ((theirs, False), (ours, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = tree_leaves(module(x))
        gradients = torch.autograd.grad(outputs[0].float().sum(), [x, *module.parameters()])
        results.append([*(t.float() for t in outputs), *gradients])
    assert {t.dtype for t in outputs} == {torch.bfloat16}
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=4e-2, atol=4e-2)


@cells
def test_meta_device(cell):
    for module in pair(5, 9, 2, bidirectional=True, device="meta", classes=CLASSES[cell]):
        outputs = tree_leaves(module(torch.empty(7, 3, 5, device="meta")))
        assert all(t.is_meta for t in outputs)
        assert outputs[0].shape == (7, 3, 18) and outputs[-1].shape == (4, 3, 9)


# Wrong use


@cells
@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((3, 4), {"nonlinearity": "tanh"}),
        ((3, 4), {"proj_size": 4}),
        ((3, 4), {"proj_size": -1}),
        ((3, 0), {}),
        ((3, 4, 0), {}),
        ((3, 4.0), {}),
        ((3, 4), {"dropout": 1.5}),
        ((3, 4), {"nosuch": 1}),
        ((3,), {}),
    ],
    ids=str,
)
def test_wrong_construction(cell, args, kwargs):
    theirs, ours = CLASSES[cell]
    expected = outcome(lambda: theirs(*args, **kwargs))
    assert expected is not None
    assert outcome(lambda: ours(*args, **kwargs)) is expected


def both(hx, cell):
    return (hx, hx) if cell == "lstm" else hx


WRONG_CALLS = {
    "rank 4": lambda cell: (torch.randn(1, 2, 5, 3),),
    "input size": lambda cell: (torch.randn(5, 2, 4),),
    "no steps": lambda cell: (torch.randn(0, 2, 3),),
    "hx batch": lambda cell: (torch.randn(5, 2, 3), both(torch.randn(2, 3, 4), cell)),
    "hx layers": lambda cell: (torch.randn(5, 2, 3), both(torch.randn(1, 2, 4), cell)),
    "hx size": lambda cell: (torch.randn(5, 2, 3), both(torch.randn(2, 2, 5), cell)),
    "hx rank": lambda cell: (torch.randn(5, 2, 3), both(torch.randn(2, 4), cell)),
    "hx rank, unbatched": lambda cell: (torch.randn(5, 3), both(torch.randn(2, 1, 4), cell)),
    "hx dtype": lambda cell: (torch.randn(5, 2, 3), both(torch.randn(2, 2, 4).double(), cell)),
    "hx dtype, one step": lambda cell: (
        torch.randn(1, 2, 3), both(torch.randn(2, 2, 4).double(), cell)
    ),
    "hx device": lambda cell: (
        torch.randn(5, 2, 3), both(torch.randn(2, 2, 4, device="meta"), cell)
    ),
    "input dtype": lambda cell: (torch.randn(5, 2, 3, dtype=torch.float64),),
    "a list": lambda cell: ([[1.0, 2.0, 3.0]],),
    "packed, input size": lambda cell: (packed(3, 2, features=4),),
    "packed, hx batch": lambda cell: (packed(3, 2), both(torch.randn(2, 3, 4), cell)),
}  # fmt: skip


@cells
@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call, cell):
    """The exception has the type that torch's module raises."""
    theirs, ours = pair(3, 4, 2, classes=CLASSES[cell])
    expected = outcome(lambda: theirs(*WRONG_CALLS[call](cell)))
    assert expected is not None
    found = outcome(lambda: ours(*WRONG_CALLS[call](cell)))
    assert found is not None and issubclass(found, expected)


CLEAR = {
    "hx dtype": "hx must be torch.float32.*got torch.float64",
    "hx dtype, one step": "hx must be torch.float32.*got torch.float64",
    "hx device": "hx must be on cpu.*got meta",
    "no steps": r"sequence length.*\(0, 2, 3\)",
    "rank 4": "(GRU|LSTM): Expected input to be 2D or 3D.*got.*4D",
}


@cells
@pytest.mark.parametrize("call", CLEAR)
def test_errors_name_the_argument(call, cell):
    with pytest.raises(Exception, match=CLEAR[call]):
        CLASSES[cell][1](3, 4, 2)(*WRONG_CALLS[call](cell))


def test_states_of_the_wrong_kind():
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    for hx, error, match in (
        (h, RuntimeError, "hx must be a pair of tensors"),
        ((h, h, h), RuntimeError, "hx must be a pair of tensors"),
        ((h, None), AttributeError, "hx must hold two tensors, got NoneType"),
        ((h, torch.randn(1, 2, 5)), RuntimeError, r"Expected hidden\[1\] size \(1, 2, 4\)"),
        ((h[0], h), RuntimeError, r"3-D but got \(2-D, 3-D\) tensors"),
    ):
        for input in (x, x[:1]):
            with pytest.raises(error, match=match):
                FastLSTM(3, 4)(input, hx)
    torch.testing.assert_close(*(FastLSTM(3, 4)(x, [h, h])[0].shape for _ in range(2)))
    with pytest.raises(AttributeError, match="hx must be a tensor, got tuple"):
        FastGRU(3, 4)(x, (h, h))


def test_accelerate_keeps_an_lstm_with_projections():
    model = nn.Sequential(nn.LSTM(3, 6, proj_size=2))
    x = torch.randn(5, 2, 3)
    expected = model(x)
    assert type(rnnfast.accelerate(model)[0]) is FastLSTM
    torch.testing.assert_close(model(x), expected)
