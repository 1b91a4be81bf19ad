"""The memory of outputs and gradients: a later call has it again once nobody holds on to it."""

import ctypes
import threading

import pytest
import torch

from rnnfast import _C, FastRNN

LARGE = (300, 7, 11)  # 92,400 bytes: too large to be left to malloc, and no multiple of a block


@pytest.fixture
def like():
    return torch.zeros(1, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (3, 4, 5), LARGE])
def test_empty(shape, dtype):
    new, expected = _C.empty(shape, torch.zeros(1, dtype=dtype)), torch.empty(shape, dtype=dtype)
    assert (new.dtype, new.shape, new.stride()) == (dtype, expected.shape, expected.stride())
    assert new.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
    assert new.data_ptr() % 64 == 0
    assert not new.requires_grad
    assert new.is_leaf


def test_empty_like():
    tensors = [torch.zeros(3, 4, 5).transpose(0, 2), torch.zeros(2, 0), torch.zeros(())]
    freed = torch.zeros(7, dtype=torch.float64)
    freed.untyped_storage().resize_(0)
    *new, nothing = _C.empty_like([*tensors, freed, None])
    assert nothing is None
    for found, tensor in zip(new, [*tensors, freed], strict=True):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.is_contiguous()


def test_too_much_is_refused(like):
    for shape in ((1 << 45,), (1 << 33, 1 << 33)):
        with pytest.raises(MemoryError):
            _C.empty(shape, like)
    with pytest.raises(ValueError, match="shape must not be negative"):
        _C.empty((3, -1), like)


@pytest.mark.parametrize("shape", [LARGE, (1 << 20,)])  # the latter in huge pages
def test_memory_is_used_again(shape, like):
    first = _C.empty(shape, like)
    address = first.data_ptr()
    second = _C.empty(shape, like)
    assert second.data_ptr() != address
    del first
    assert _C.empty(shape, like).data_ptr() == address


def allocated():
    """Bytes that malloc has given out and not got back."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("no mallinfo2: needs glibc 2.33")

    class Info(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    libc.mallinfo2.restype = Info
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


def test_no_memory_is_kept_without_end(like):
    before = allocated()
    large = torch.empty(1 << 24)
    assert allocated() - before >= 1 << 26
    del large
    for megabytes in range(20, 50):  # every size is new; 2 GB in all
        held = [_C.empty((megabytes << 18,), like) for _ in range(2)]
        del held
        assert allocated() - before < 65 << 20


@pytest.mark.parametrize("keep", ["output", "view", "array", "saved"])
def test_what_somebody_holds_is_not_overwritten(keep):
    torch.manual_seed(0)
    rnn = FastRNN(11, 32)
    inputs = torch.randn(20, 50, 10, 11)
    expected = [rnn(x)[0].detach().clone() for x in inputs]
    held = []
    for x in inputs:
        with torch.set_grad_enabled(keep == "saved"):
            output, _ = rnn(x)
        if keep == "view":
            output = output[3:, 2].detach()
        elif keep == "array":
            output = output.numpy()
        elif keep == "saved":
            output = (2 * output**2).sum()  # it alone has `output`, for its backward
        held.append(output)
    for kept, want in zip(held, expected, strict=True):
        if keep == "saved":
            kept.backward()
            continue
        want = want[3:, 2] if keep == "view" else want
        assert torch.equal(torch.as_tensor(kept), want)
    if keep == "saved":
        sums = [p.grad.clone() for p in rnn.parameters()]
        rnn.zero_grad()
        for x in inputs:
            (2 * rnn(x)[0] ** 2).sum().backward()
        assert all(torch.equal(s, p.grad) for s, p in zip(sums, rnn.parameters(), strict=True))


def test_taken_by_one_thread_given_back_by_another():
    torch.manual_seed(0)
    rnn = FastRNN(11, 32)
    inputs = torch.randn(8, 50, 10, 11)
    with torch.no_grad():
        expected = [rnn(x)[0].clone() for x in inputs]
    wrong, outputs, lock = [], [[] for _ in inputs], threading.Lock()

    def work(n):
        for turn in range(100):
            with torch.no_grad():
                output, _ = rnn(inputs[n])
            with lock:
                outputs[(n + turn) % len(inputs)].append((n, output))
                mine, outputs[n] = outputs[n], []
            wrong.extend(m for m, output in mine if not torch.equal(output, expected[m]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(torch.equal(output, expected[m]) for rest in outputs for m, output in rest)
