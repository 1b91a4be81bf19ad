"""`rnnfast.functional.linear_cross_entropy` compared with torch's operators."""

import pytest
import rule
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from rnnfast.functional import linear_cross_entropy

NAMES = ("input", "linear_weight", "linear_bias")
SIZES = [  # N, H, V
    (1, 1, 1),
    (3, 7, 2),
    (5, 65, 17),
    (1, 7, 513),  # a tile and one class
    (600, 33, 40),  # more rows than an outer product takes
    (259, 65, 1030),  # rows and classes over several tiles
    (70, 1, 10_001),
    (215, 7, 20_001),  # more than one block of rows
]


def make(N, H, V, dtype=torch.float32, scale=1.0, bias=True):
    """Return leaves and targets; the logits are of order `scale`."""
    generator = torch.Generator().manual_seed(N + H + V)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = [draw(N, H), draw(V, H) * scale / H**0.5, draw(V) * scale]
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    return leaves if bias else [*leaves[:2], None], torch.randint(V, (N,), generator=generator)


def baseline(input, linear_weight, target, *, linear_bias=None, reduction="mean"):
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, reduction=reduction)


def run(function, leaves, target, reduction="mean", dloss=None):
    """Return the loss and the gradients of the leaves by name."""
    loss = function(*leaves[:2], target, linear_bias=leaves[2], reduction=reduction)
    wanted = {name: t for name, t in zip(NAMES, leaves, strict=True) if t is not None}
    dloss = torch.ones_like(loss) if dloss is None else dloss.to(loss.dtype)
    gradients = torch.autograd.grad(loss, list(wanted.values()), dloss)
    return {"loss": loss.detach()} | dict(zip(wanted, gradients, strict=True))


def truth(leaves, target, *options):
    """Return the loss and the gradients that torch's operators give in float64."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in leaves]
    return {name: t.numpy() for name, t in run(baseline, wide, target, *options).items()}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rule(isa, size, bias):
    leaves, target = make(*size, bias=bias)
    dloss = torch.tensor(0.7)
    found = run(linear_cross_entropy, leaves, target, "mean", dloss)
    torchs = run(baseline, leaves, target, "mean", dloss)
    rule.check(found, torchs, truth(leaves, target, "mean", dloss), torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction):
    leaves, target = make(259, 65, 1030)
    dloss = torch.rand(259) - 0.3 if reduction == "none" else torch.tensor(-2.5)
    found = run(linear_cross_entropy, leaves, target, reduction, dloss)
    torchs = run(baseline, leaves, target, reduction, dloss)
    rule.check(found, torchs, truth(leaves, target, reduction, dloss), torch.float32)
    with torch.no_grad():
        alone = linear_cross_entropy(
            *leaves[:2], target, linear_bias=leaves[2], reduction=reduction
        )
    assert torch.equal(alone, found["loss"])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 7, 2), (2, 3, 17)], ids=str)
def test_gradcheck(isa, size, reduction):
    leaves, target = make(*size, dtype=torch.float64)

    def call(x, w, b):
        return linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradcheck(call, leaves, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_double_backward_where_the_input_is_made_from_the_weight(reduction):
    """The output layer may be tied to the embedding."""
    (x, w, b), target = make(5, 7, 6, dtype=torch.float64)
    results = []
    for function in (baseline, linear_cross_entropy):
        hidden = (w[target.flip(0)] + x).tanh()
        loss = function(hidden, w, target, linear_bias=b, reduction=reduction).square().sum()
        first = torch.autograd.grad(loss, [x, w, b], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, w, b])
        results.append([*first, *second])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_float64_over_several_tiles():
    leaves, target = make(259, 65, 1030, dtype=torch.float64)
    for found, expected in zip(
        run(linear_cross_entropy, leaves, target).values(),
        run(baseline, leaves, target).values(),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [50, 1e4, 1e30])
def test_large_logits(isa, scale):
    """No logit overflows, and probabilities far below the largest are zero."""
    leaves, target = make(40, 7, 1030, scale=scale)
    found, expected = (run(f, leaves, target) for f in (linear_cross_entropy, baseline))
    for name in expected:
        assert found[name].isfinite().all()
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["input", "target's bias", "all biases", "a tile's biases"])
def test_not_finite(isa, where, value):
    """NaN and infinities appear where torch has them. A logit of -inf bans a class."""
    leaves, target = make(9, 7, 1030)
    target[:] = 3
    with torch.no_grad():
        if where == "input":
            leaves[0][4, 2] = value
        else:
            classes = {"target's bias": [3], "all biases": slice(None)}
            leaves[2][classes.get(where, slice(512, 1024))] = value
    found = run(linear_cross_entropy, leaves, target, "none")
    expected = run(baseline, leaves, target, "none")
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-5, equal_nan=True
        )


@pytest.mark.parametrize("size", [(600, 33, 40), (259, 65, 1030), (215, 7, 20_001)], ids=str)
def test_threads_change_no_bit(num_threads, size):
    leaves, target = make(*size)
    results = []
    for threads in (1, 2, 3, 8):
        num_threads(threads)
        results.append(run(linear_cross_entropy, leaves, target))
    for result in results[1:]:
        for name, expected in results[0].items():
            assert torch.equal(result[name], expected), name


@pytest.mark.parametrize("wanted", range(1, 7))
def test_some_gradients(wanted):
    """Each gradient is the same whether it is computed alone or with others."""
    leaves, target = make(259, 65, 1030)
    expected = run(linear_cross_entropy, leaves, target)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(bool(wanted >> i & 1))
    linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2]).backward()
    for i, (name, leaf) in enumerate(zip(NAMES, leaves, strict=True)):
        assert (leaf.grad is not None) == bool(wanted >> i & 1)
        assert leaf.grad is None or torch.equal(leaf.grad, expected[name])


def test_second_backward():
    leaves, target = make(5, 65, 17)
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2])
    first, second = (
        torch.autograd.grad(loss, leaves, torch.tensor(g), retain_graph=True) for g in (1.0, 2.0)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(2 * a, b)
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_accumulate():
    leaves, target = make(5, 65, 17)
    expected = run(linear_cross_entropy, leaves, target)
    loss = linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2])
    for _ in range(3):
        loss.backward(retain_graph=True)
    for name, leaf in zip(NAMES, leaves, strict=True):
        torch.testing.assert_close(leaf.grad, 3 * expected[name])


def test_tied_weight():
    (_, weight, _), target = make(40, 8, 17)
    results = []
    for function in (linear_cross_entropy, baseline):
        loss = function(weight[target.flip(0)].tanh(), weight, target)
        results.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("memory", ["rows", "transposed", "columns", "expanded"])
def test_strides(memory):
    leaves, target = make(6, 8, 12)

    def view(t):
        if memory == "rows":
            return torch.cat([t, t], -1)[..., : t.shape[-1]]
        if memory == "transposed":
            return t.mT.contiguous().mT if t.dim() == 2 else t
        if memory == "columns":
            return t.repeat_interleave(2, -1)[..., ::2]
        return t[:1].expand_as(t)

    views = [view(t.detach()).requires_grad_() for t in leaves]
    copies = [
        t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in views
    ]
    found = run(linear_cross_entropy, views, target.repeat_interleave(2)[::2])
    for name, expected in run(linear_cross_entropy, copies, target).items():
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_run_on_torch(dtype):
    leaves, target = make(5, 7, 17, dtype=dtype)
    found, expected = (run(f, leaves, target) for f in (linear_cross_entropy, baseline))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_transforms_and_autocast():
    leaves, target = make(5, 7, 17)
    found, expected = (
        torch.func.grad(lambda x, f=f: f(x, leaves[1], target))(leaves[0])
        for f in (linear_cross_entropy, baseline)
    )
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (run(f, leaves, target) for f in (linear_cross_entropy, baseline))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_empty_batch():
    leaves, _ = make(1, 7, 17)
    empty = leaves[0][:0]
    assert linear_cross_entropy(empty, leaves[1], torch.zeros(0, dtype=torch.int64)).isnan()


@pytest.mark.parametrize("gradient", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("wrong", [-1, 17, -100, 2**40, -(2**63)])
def test_target_out_of_range(wrong, gradient):
    leaves, target = make(5, 7, 17)
    target[3] = wrong
    with torch.set_grad_enabled(gradient), pytest.raises(IndexError, match=rf"target {wrong} .*17"):
        linear_cross_entropy(*leaves[:2], target)


@pytest.mark.parametrize("wrong", [-1, 17, -100, 2**40])
def test_target_out_of_range_on_torchs_operators(wrong):
    (x, w, _), target = make(5, 7, 17, dtype=torch.bfloat16)
    target[3] = wrong
    with pytest.raises(IndexError, match=str(wrong)):
        linear_cross_entropy(x, w, target)


def test_bias_that_would_broadcast_on_torchs_operators():
    (x, w, _), target = make(5, 7, 17, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"linear_bias must be \(17,\)"):
        linear_cross_entropy(x, w, target, linear_bias=torch.zeros(1, dtype=torch.bfloat16))


WRONG = {
    "input rank": ("input", {"input": torch.zeros(1, 5, 7)}),
    "input rows": ("input", {"input": torch.zeros(4, 7)}),
    "input size": ("linear_weight", {"input": torch.zeros(5, 6)}),
    "input dtype": ("linear_weight", {"input": torch.zeros(5, 7, dtype=torch.float64)}),
    "weight rank": ("linear_weight", {"linear_weight": torch.zeros(7)}),
    "target rank": ("target", {"target": torch.zeros(5, 1, dtype=torch.int64)}),
    "target dtype": ("target", {"target": torch.zeros(5)}),
    "bias size": ("linear_bias", {"linear_bias": torch.zeros(16)}),
    "bias dtype": ("linear_bias", {"linear_bias": torch.zeros(17, dtype=torch.float64)}),
    "no classes": ("linear_weight", {"linear_weight": torch.zeros(0, 7)}),
    "weight device": ("linear_weight", {"linear_weight": torch.zeros(17, 7, device="meta")}),
}


@pytest.mark.parametrize("gradient", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong, gradient):
    named, change = WRONG[wrong]
    leaves, target = make(5, 7, 17)
    arguments = dict(zip(NAMES, leaves, strict=True)) | {"target": target} | change
    with torch.set_grad_enabled(gradient), pytest.raises(RuntimeError, match=named):
        linear_cross_entropy(**arguments)


def test_wrong_reduction():
    leaves, target = make(5, 7, 17)
    with pytest.raises(ValueError, match="average"):
        linear_cross_entropy(*leaves[:2], target, reduction="average")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_opcheck(reduction):
    leaves, target = make(5, 7, 17)
    x, w, b = (t.detach() for t in leaves)
    dloss = torch.rand(5) if reduction == "none" else None
    operator = torch.ops.rnnfast.linear_cross_entropy.default
    torch.library.opcheck(operator, (x, w, target, None, None, reduction, False, False, False))
    for needs in ((True, True, True), (False, True, False)):
        for memory in (lambda t: t, lambda t: t.mT.contiguous().mT):
            arguments = (memory(x), memory(w), target, b, dloss, reduction, *needs)
            torch.library.opcheck(operator, arguments)


def test_operator_wants_dloss_only_without_a_reduction():
    (x, w, _), target = make(5, 7, 17)
    call = torch.ops.rnnfast.linear_cross_entropy
    for dloss, reduction in ((None, "none"), (torch.rand(5), "mean")):
        with pytest.raises(ValueError, match="dloss"):
            call(x.detach(), w.detach(), target, None, dloss, reduction, True, True, False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile(reduction):
    leaves, target = make(5, 7, 17)
    torch.compiler.reset()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    found, expected = (run(f, leaves, target, reduction) for f in (compiled, linear_cross_entropy))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_compiled_once_for_all_numbers_of_rows():
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend=counter, dynamic=True)
    for N in (5, 9, 33):
        leaves, target = make(N, 7, 17)
        torch.testing.assert_close(
            compiled(*leaves[:2], target), linear_cross_entropy(*leaves[:2], target)
        )
    assert counter.frame_count == 1
