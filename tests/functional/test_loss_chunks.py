"""The chunks of rows in which the loss runs on CUDA, called directly, on every device there is."""

import pytest
import rule
import torch
from test_loss import NAMES, baseline, make, run, truth
from torch.utils._python_dispatch import TorchDispatchMode

from rnnfast.functional import _loss, _loss_chunks, linear_cross_entropy
from rnnfast.functional._loss_chunks import linear_cross_entropy_in_chunks

# N, H, V and the number of logits of a chunk
SIZES = [(1, 1, 1, 1), (3, 7, 2, 1), (5, 65, 17, 34), (259, 65, 1030, 51_500), (70, 7, 40, 1 << 24)]


def in_chunks(input, linear_weight, target, *, linear_bias=None, reduction="mean"):
    return _loss._in_chunks(input, linear_weight, target, linear_bias, reduction)


@pytest.fixture
def chunk_logits(monkeypatch):
    return lambda number: monkeypatch.setattr(_loss_chunks, "CHUNK_LOGITS", number)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rule(chunk_logits, dtype, size, bias, reduction):
    chunk_logits(size[3])
    leaves, target = make(*size[:3], dtype=dtype, bias=bias)
    dloss = (torch.rand(size[0]) - 0.3 if reduction == "none" else torch.tensor(0.7)).to(dtype)
    found = run(in_chunks, leaves, target, reduction, dloss)
    torchs = run(baseline, leaves, target, reduction, dloss)
    assert {name: t.dtype for name, t in found.items()} == {n: t.dtype for n, t in torchs.items()}
    if dtype is torch.float64:
        for name, expected in torchs.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-14)
    else:
        rule.check(found, torchs, truth(leaves, target, reduction, dloss), dtype)
    with torch.no_grad():
        alone = in_chunks(*leaves[:2], target, linear_bias=leaves[2], reduction=reduction)
    assert torch.equal(alone, found["loss"])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("logits", [1, 6, 100])
def test_gradcheck(chunk_logits, reduction, logits):
    chunk_logits(logits)
    leaves, target = make(5, 7, 3, dtype=torch.float64)

    def call(x, w, b):
        return in_chunks(x, w, target, linear_bias=b, reduction=reduction)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradcheck(call, leaves, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(chunk_logits, reduction):
    """The products are in bfloat16, and the softmax and the loss in float32."""
    chunk_logits(1030 * 50)
    leaves, target = make(259, 65, 1030)
    x = leaves[0].detach().bfloat16().requires_grad_()  # as an RNN returns it under autocast
    for tensors in (leaves, [x, *leaves[1:]]):
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = (run(f, tensors, target, reduction) for f in (in_chunks, baseline))
        assert found["loss"].dtype is torch.float32
        for name, t in expected.items():
            assert found[name].dtype is t.dtype
            torch.testing.assert_close(found[name], t, rtol=0.02, atol=0.01 * float(t.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = in_chunks(*leaves[:2], target)
    (first,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    torch.autograd.grad(first.square().sum(), leaves[1])


@pytest.mark.parametrize("wanted", range(1, 7))
def test_some_gradients(chunk_logits, wanted):
    chunk_logits(1030 * 50)
    leaves, target = make(259, 65, 1030)
    expected = run(in_chunks, leaves, target)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(bool(wanted >> i & 1))
    in_chunks(*leaves[:2], target, linear_bias=leaves[2]).backward()
    for i, (name, leaf) in enumerate(zip(NAMES, leaves, strict=True)):
        assert (leaf.grad is not None) == bool(wanted >> i & 1)
        assert leaf.grad is None or torch.equal(leaf.grad, expected[name])


def test_tied_weight(chunk_logits):
    chunk_logits(17 * 6)
    (_, weight, _), target = make(40, 8, 17)
    results = []
    for function in (in_chunks, baseline):
        loss = function(weight[target.flip(0)].tanh(), weight, target)
        results.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("scale", [50, 1e4, 1e30])
def test_large_logits(chunk_logits, scale):
    chunk_logits(1030 * 7)
    leaves, target = make(40, 7, 1030, scale=scale)
    found, expected = (run(f, leaves, target) for f in (in_chunks, baseline))
    for name in expected:
        assert found[name].isfinite().all()
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("wrong", [-1, 17, -100, 2**40])
def test_target_out_of_range(chunk_logits, wrong):
    chunk_logits(17 * 2)
    leaves, target = make(5, 7, 17)
    target[3] = wrong
    with pytest.raises(IndexError, match=str(wrong)):
        in_chunks(*leaves[:2], target)


class Largest(TorchDispatchMode):
    """Notes the largest number of elements of a tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_are_never_whole(reduction):
    """With 50,000 classes, no tensor is larger than the weight or a chunk."""
    leaves, target = make(512, 16, 50_000)
    with Largest() as largest:
        run(in_chunks, leaves, target, reduction)
    assert largest.elements <= _loss_chunks.CHUNK_LOGITS < 512 * 50_000
    with Largest() as largest:
        run(baseline, leaves, target, reduction)
    assert largest.elements == 512 * 50_000


def test_which_calls_run_in_chunks():
    """On CUDA, except what an autograd Function or a compiler cannot see through."""
    leaves, _ = make(5, 7, 17)
    x, w, _ = (t.detach() for t in leaves)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert _loss._can_run_in_chunks(x.to(dtype), w)
    assert not _loss._can_run_in_chunks(x.half(), w)
    assert not _loss._can_run_in_chunks(x[:0], w) and not _loss._can_run_in_chunks(x, w[:0])
    with torch.autocast("cpu", torch.float16):
        assert not _loss._can_run_in_chunks(x, w)
    torch.func.vmap(lambda row: _refused(row, w))(x)


def _refused(x, w):
    assert not _loss._can_run_in_chunks(x, w)
    return x


def test_sums_of_bfloat16_are_float32():
    leaves, target = make(5, 7, 17, dtype=torch.bfloat16)
    x, w, b = (t.detach() for t in leaves)
    arguments = (x, w, target, b, None, "sum", True, True, True)
    found = linear_cross_entropy_in_chunks(*arguments)
    assert [t.dtype for t in found] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]


def test_waits_for_no_device():
    """Shapes are enough, on a device without values."""
    leaves, target = make(5, 7, 17)
    x, w, b = (t.detach().to("meta") for t in leaves)
    for reduction in ("mean", "none"):
        dloss = torch.ones(5, device="meta") if reduction == "none" else None
        arguments = (x, w, target.to("meta"), b, dloss, reduction, True, True, True)
        loss, *gradients = linear_cross_entropy_in_chunks(*arguments)
        assert loss.is_meta and [g.shape for g in gradients] == [x.shape, w.shape, b.shape]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine, or this build of torch, has no CUDA device"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_on_a_gpu(chunk_logits, dtype):
    chunk_logits(1030 * 50)
    leaves, target = make(259, 65, 1030, dtype=dtype)
    leaves = [t.detach().cuda().requires_grad_() for t in leaves]
    found = run(linear_cross_entropy, leaves, target.cuda())
    torchs = run(baseline, leaves, target.cuda())
    cpu = {name: t.cpu() for name, t in found.items()}
    expected = truth([t.detach().cpu().requires_grad_() for t in leaves], target)
    rule.check(cpu, {name: t.cpu() for name, t in torchs.items()}, expected, dtype)
