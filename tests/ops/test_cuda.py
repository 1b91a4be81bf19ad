"""The CUDA kernels, on a GPU if there is one, and their Python side without a GPU.

Without a GPU a stand-in for the kernels runs on CPU tensors. tests/native runs the kernels
themselves without a GPU. Tests for all devices are in test_kernels.py.
"""

import functools
import re
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import rule
import test_ops
import torch
from reset_rule import draw_resets, in_parts, reference_of_parts
from rule import Case
from test_kernels import check
from torch.nn.parallel import DataParallel
from torch.nn.utils.parametrizations import weight_norm
from wrong_arguments import WRONG, check_message

import rnnfast
from rnnfast import _C, _torch, functional
from rnnfast._ops import RNNDescriptor, cuda, dispatch
from rnnfast.functional import _kernels, _run

CASES = [
    Case(1, 1, 1, 1),
    Case(1, 3, 2, 4, bidirectional=True),
    Case(4, 3, 5, 6, num_layers=2, bidirectional=True),
    Case(5, 4, 3, 7, nonlinearity="relu", bias=False),
    Case(4, 5, 3, 6, with_hx=False, bidirectional=True, num_layers=3),
    Case(6, 4, 3, 5, gradients_of="h_n"),
    Case(6, 4, 3, 5, gradients_of="output"),
    Case(4, 3, 5, 6, memory="strided"),
    Case(4, 3, 5, 6, memory="transposed", bidirectional=True),
]


def row_of(layout, sequence, t, b):
    """Return the row of sequence ``b`` at time step ``t``."""
    if layout.starts is not None:
        return sequence[layout.starts[t] + b]
    return sequence[b, t] if layout.batch_first else sequence[t, b]


def length_of(layout, b):
    """Return the number of time steps of sequence ``b``."""
    return layout.T if layout.starts is None else int((layout.starts.diff() > b).sum())


def stand_in(layout, H, backward, relu, dtype, directions, device):
    """Do what csrc/cuda/recurrence.h describes, step by step."""
    f = torch.relu if relu else torch.tanh
    at = functools.partial(row_of, layout)
    for reverse, w_hh, given, h, out, b_ih, b_hh, begin, end in directions:
        bias = 0 if b_ih is None else b_ih + b_hh
        for b in range(layout.B):
            length = length_of(layout, b)

            def is_reset(t, b=b, length=length, reverse=reverse):
                """Return whether a reset precedes step t in the order of the forward pass."""
                later = t + 1 if reverse else t
                return layout.reset is not None and later < length and at(layout.reset, later, b)

            state = torch.zeros(H, dtype=dtype) if begin is None else begin[b]
            for i in range(length):
                t = length - 1 - i if reverse != backward else i
                if not backward and i > 0 and is_reset(t):
                    state = torch.zeros(H, dtype=dtype)
                if backward:
                    state = state + (0 if given is None else at(given, t, b))
                    y = at(h, t, b)
                    dpre = state * ((y > 0) if relu else 1 - y * y)
                    at(out, t, b).copy_(dpre)
                    state = torch.zeros(H, dtype=dtype) if is_reset(t) else dpre @ w_hh
                else:
                    state = f(at(given, t, b) + bias + w_hh @ state)
                    at(out, t, b).copy_(state)
            if end is not None:
                end[b] = state


@pytest.fixture
def on_cpu(monkeypatch):
    """Run calls on CPU tensors like calls on CUDA tensors, except for the kernels."""
    monkeypatch.setattr(cuda, "launch", stand_in)
    monkeypatch.setattr(cuda, "_upload", lambda numbers, device: torch.tensor(numbers))
    monkeypatch.setattr(dispatch, "rnn_cpu", cuda.rnn_cuda)
    monkeypatch.setattr(dispatch, "rnn_backward_cpu", cuda.rnn_backward_cuda)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["time", "batch", "packed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(on_cpu, case, layout, dtype):
    case = replace(case, layout=layout, dtype=dtype)
    results = [rule.run(call, case, rule.make(case)) for call in (rule.baseline, functional.rnn)]
    rule.check(results[1], results[0], rule.run_reference(case, rule.make(case)), dtype)


@pytest.mark.parametrize("probability", [0.3, 1.0])
@pytest.mark.parametrize("layout", ["time", "batch", "packed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_with_resets(on_cpu, case, layout, probability):
    case = replace(case, layout=layout)
    reset = draw_resets(rule.make(case), probability)
    results = [
        rule.run(functools.partial(call, reset=reset), case, rule.make(case))
        for call in (in_parts, functional.rnn)
    ]
    rule.check(results[1], results[0], reference_of_parts(case, rule.make(case), reset), case.dtype)


@pytest.mark.parametrize("layout", ["time", "packed"])
def test_one_hot(on_cpu, layout):
    """Tokens give the results and gradients of their one-hot vectors."""
    case = Case(5, 3, 4, 6, bidirectional=True, layout=layout, dtype=torch.float64)
    data = rule.make(case)
    tokens = torch.arange(data.input.shape[:-1].numel()).reshape(data.input.shape[:-1]) % 4
    vectors = torch.nn.functional.one_hot(tokens, 4).to(case.dtype)
    found = []
    for x in (tokens, vectors):
        call = functools.partial(
            functional.rnn, x, data.hx, data.weights, batch_sizes=data.batch_sizes, **case.options
        )
        output, h_n = call()
        wanted = [data.hx, *data.weights]
        gradients = torch.autograd.grad((output, h_n), wanted, (data.dy, data.dh_n))
        found.append([output, h_n, *gradients])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_torchs_forward_is_one_with_a_backward(monkeypatch, gradients):
    """cuDNN refuses the backward pass after a forward pass in eval mode, and a strided hx."""
    data = rule.make(Case(2, 3, 4, 5, memory="transposed"))
    assert not data.hx.is_contiguous()
    seen = []
    call = torch.rnn_tanh

    def rnn_tanh(*arguments):
        seen.append((arguments[6], arguments[1].is_contiguous()))
        return call(*arguments)

    monkeypatch.setattr(torch, "rnn_tanh", rnn_tanh)
    monkeypatch.setattr(_run, "can_run_kernel", lambda *_: False)
    monkeypatch.setattr(_torch, "may_run_on_cudnn", lambda input: True)
    with torch.set_grad_enabled(gradients):
        functional.rnn(data.input, data.hx, data.weights)
    assert seen == [(gradients, True)]


def refuse_what_cudnn_refuses(monkeypatch):
    """Let torch's RNN raise what cuDNN raises for tensors that are not contiguous."""
    call = torch.rnn_tanh

    def rnn_tanh(*arguments):
        given = [t for a in arguments for t in (a if isinstance(a, list | tuple) else [a])]
        for t in given:
            if isinstance(t, torch.Tensor) and not t.is_contiguous():
                raise RuntimeError(
                    "view size is not compatible with input tensor's size and stride"
                )
        return call(*arguments)

    monkeypatch.setattr(torch, "rnn_tanh", rnn_tanh)
    monkeypatch.setattr(_run, "can_run_kernel", lambda *_: False)
    monkeypatch.setattr(_torch, "may_run_on_cudnn", lambda input: True)


@pytest.mark.parametrize("layout", ["time", "batch", "packed"])
@pytest.mark.parametrize("memory", ["strided", "transposed", "expanded"])
def test_torchs_path_gives_cudnn_what_it_takes(monkeypatch, layout, memory):
    case = Case(4, 3, 5, 6, 2, bidirectional=True, layout=layout, memory=memory)
    expected = rule.run(rule.baseline, case, rule.make(case))
    refuse_what_cudnn_refuses(monkeypatch)
    found = rule.run(functional.rnn, case, rule.make(case))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("layout", ["time", "batch", "packed"])
@pytest.mark.parametrize("memory", ["strided", "transposed", "expanded"])
def test_torchs_path_copies_nothing_where_cudnn_does_not_run(monkeypatch, layout, memory):
    case = Case(4, 3, 5, 6, 2, bidirectional=True, layout=layout, memory=memory)
    data = rule.make(case)
    expected = rule.run(rule.baseline, case, data)
    call, given = torch.rnn_tanh, []

    def rnn_tanh(*arguments):
        given.extend(t for a in arguments for t in (a if isinstance(a, list | tuple) else [a]))
        return call(*arguments)

    monkeypatch.setattr(torch, "rnn_tanh", rnn_tanh)
    monkeypatch.setattr(_run, "can_run_kernel", lambda *_: False)
    found = rule.run(functional.rnn, case, data)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    assert {id(data.input), id(data.hx), *map(id, data.weights)} <= set(map(id, given))


def test_torchs_path_takes_tokens(monkeypatch):
    """`rnnfast train` gives tokens and a table of which W_ih is a transposed view."""
    refuse_what_cudnn_refuses(monkeypatch)
    table = torch.randn(9, 6)
    output, _ = functional.rnn(torch.randint(9, (4, 3)), None, [table.t(), torch.randn(6, 6)])
    assert output.shape == (4, 3, 6)


def test_second_derivatives_do_without_cudnn(on_cpu, monkeypatch):
    """cuDNN has no second derivatives. It is disabled for them and enabled again."""
    data = rule.make(Case(2, 3, 4, 5))
    seen = []
    call = _kernels.rnn_torch
    monkeypatch.setattr(
        _kernels, "rnn_torch", lambda *a: seen.append(torch.backends.cudnn.enabled) or call(*a)
    )
    output, _ = functional.rnn(data.input, data.hx, data.weights)
    torch.autograd.grad(output.sum(), data.input, create_graph=True)
    assert seen == [False] and torch.backends.cudnn.enabled


def test_rnn_without_a_gradient_of_the_input(on_cpu):
    case = Case(4, 3, 5, 6, num_layers=2)
    full = rule.run(functional.rnn, case, rule.make(case))
    data = rule.make(case)
    data.input.requires_grad_(False)
    partial = rule.run(functional.rnn, case, data)
    assert full.keys() - partial.keys() == {"d input"}
    assert all(torch.equal(partial[name], full[name]) for name in partial)


@pytest.mark.parametrize("layout", ["time", "packed"])
def test_backward_under_autocast(on_cpu, layout):
    """Autocast in the backward pass only does not change the gradients."""
    case = Case(4, 3, 5, 6, layout=layout)
    data = rule.make(case)
    expected = rule.run(functional.rnn, case, data)
    output, h_n = functional.rnn(data.input, data.hx, data.weights, batch_sizes=data.batch_sizes)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad((output, h_n), data.wanted.values(), (data.dy, data.dh_n))
    for name, gradient in zip(data.wanted, found, strict=True):
        assert torch.equal(gradient, expected[f"d {name}"]), name


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(on_cpu, wrong):
    check_message(wrong)


@pytest.fixture
def unset(monkeypatch):
    """Undo what set_cuda_kernel, the environment and a failure decided, for one test."""
    monkeypatch.setattr(cuda, "_choice", "default")
    monkeypatch.delenv("RNNFAST_CUDA_KERNEL", raising=False)
    cuda._read_default.cache_clear()
    yield
    cuda._read_default.cache_clear()


def pretend(monkeypatch, *capabilities):
    """Let torch report CUDA devices of these compute capabilities, and the build its kernels."""
    monkeypatch.setattr(cuda._C, "cuda", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([], None), ([(9, 0)], "auto"), ([(9, 0), (9, 0)], "auto"), ([(9, 0), (8, 0)], None)],
)
def test_kernel_by_default(unset, monkeypatch, capabilities, expected):
    pretend(monkeypatch, *capabilities)
    assert cuda.kernel() is None  # no device is on the list until the kernels have run on it
    cuda._read_default.cache_clear()
    monkeypatch.setattr(cuda, "ON_BY_DEFAULT", ((9, 0),))
    assert cuda.kernel() == expected
    assert cuda.has_kernel(torch.bfloat16) == (expected is not None)
    assert rnnfast.build_info()["cuda_kernel"] == expected


@pytest.mark.parametrize("name", ["torch", "auto", "cluster", "grid", "step"])
def test_kernel_from_the_environment(unset, monkeypatch, name):
    pretend(monkeypatch, (9, 0))
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", name)
    assert cuda.kernel() == (None if name == "torch" else name)
    rnnfast.set_cuda_kernel(None)
    assert cuda.kernel() is None


def test_unknown_kernel_in_the_environment(unset, monkeypatch):
    pretend(monkeypatch, (9, 0))
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", "clusters")
    with pytest.raises(ValueError, match="RNNFAST_CUDA_KERNEL must be None or one of auto"):
        cuda.kernel()


class Kernels:
    """Stands in for the native module: runs are kept, and fail where the test says so."""

    class CudaError(RuntimeError):
        pass

    cuda = True

    def __init__(self, failing=()):
        self.failing, self.ran = failing, []

    def cuda_workspace(self, B, H, directions, backward, precision, force):
        return 16

    def cuda_run(self, T, B, H, backward, relu, precision, force, *_):
        if force in self.failing:
            raise self.CudaError("rnnfast CUDA cluster kernel: out of resources")
        self.ran.append(force)

    def cuda_prefers_torch(self, B, H, directions, precision):
        return (B, H, directions, precision) == (256, 2048, 1, "float32")


LAYOUT = SimpleNamespace(T=3, B=2, batch_first=False, starts=None, reset=None)


def run_on(monkeypatch, kernels, times=1):
    monkeypatch.setattr(cuda, "_C", kernels)
    monkeypatch.setattr(cuda._torch, "cuda_stream", lambda index: 0)
    for _ in range(times):
        cuda._run(LAYOUT, 5, False, False, "float32", [None], torch.device("cpu"), None)


def test_a_kernel_that_cannot_be_launched_is_replaced(unset, monkeypatch):
    """There is one warning with the reason; the call is finished, and later calls are torch's."""
    kernels = Kernels(failing=[None])
    monkeypatch.setattr(cuda, "_choice", "auto")
    with pytest.warns(RuntimeWarning, match="out of resources") as warned:
        run_on(monkeypatch, kernels, times=3)
    assert len(warned) == 1 and kernels.ran == ["step"] * 3
    assert not cuda.has_kernel(torch.float32)


@pytest.mark.parametrize("failing", [["cluster"], [None, "step"]])
def test_an_error_that_nothing_helps_against(unset, monkeypatch, failing):
    monkeypatch.setattr(cuda, "_choice", failing[0] or "auto")
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="out of resources"):
        warnings.simplefilter("ignore")
        run_on(monkeypatch, Kernels(failing))


def test_torchs_path_where_it_is_faster(unset, monkeypatch):
    """Not for ReLU, which cuDNN computes differently, for tokens, or if a kernel is forced."""
    monkeypatch.setattr(cuda, "_C", Kernels())
    options = {"num_layers": 1, "directions": 1, "batch_first": False, "bias": False}
    tanh = RNNDescriptor(nonlinearity="tanh", **options)
    relu = RNNDescriptor(nonlinearity="relu", **options)
    weights = [torch.empty(2048, 1), torch.empty(2048, 2048)]
    x = torch.empty(2, 256, 1)
    for kernel, descriptor, given, expected in (
        ("auto", tanh, x, True),
        ("auto", tanh, x[:, :3], False),
        ("auto", relu, x, False),
        ("auto", tanh, torch.zeros(2, 256, dtype=torch.int64), False),
        ("grid", tanh, x, False),
    ):
        monkeypatch.setattr(cuda, "_choice", kernel)
        assert cuda.is_torch_faster(given, weights, None, descriptor) == expected
    monkeypatch.setattr(cuda, "_choice", "auto")
    sizes = torch.tensor([256, 3])
    assert cuda.is_torch_faster(torch.empty(259, 1), weights, sizes, tanh)


def test_set_cuda_kernel():
    if not torch.cuda.is_available():
        assert "cuda" not in rnnfast.build_info()["kernels"]
    with pytest.raises(ValueError, match="cluster"):
        rnnfast.set_cuda_kernel("clusters")
    if not _C.cuda:
        with pytest.raises(ValueError, match="nvcc"):
            rnnfast.set_cuda_kernel("auto")
        return
    try:
        rnnfast.set_cuda_kernel("auto")
        assert "bfloat16" in rnnfast.build_info()["kernels"]["cuda"]
        with pytest.raises(ValueError, match="got 10, 0, 4"):
            rnnfast.cuda_plan(10, 0, 4)
        if torch.cuda.is_available():
            for kernel in ("cluster", "grid", "step"):
                rnnfast.set_cuda_kernel(kernel)
                plan = rnnfast.cuda_plan(10, 4, 64, torch.bfloat16)
                assert re.match(rf"{kernel} kernel: \d+ groups of \d+ blocks", plan)
        else:  # the error names the call that failed
            with pytest.raises(RuntimeError, match="rnnfast CUDA"):
                rnnfast.cuda_plan(10, 4, 4)
    finally:
        rnnfast.set_cuda_kernel(None)


# On a GPU

GPU_SIZES = [
    Case(7, 3, 5, 33, bidirectional=True),
    Case(5, 33, 5, 130, num_layers=2),
    Case(3, 5, 64, 512, gradients_of="output"),
    Case(3, 70, 16, 384, nonlinearity="relu", with_hx=False),
    Case(3, 2, 16, 1024, gradients_of="h_n"),
    Case(40, 20, 16, 257),
]
GPU_DTYPES = [torch.float32, "tf32", torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["time", "batch", "packed"])
@pytest.mark.parametrize("size", GPU_SIZES, ids=lambda c: f"T{c.T}-B{c.B}-H{c.H}")
def test_rule_on_a_gpu(cuda_kernel, precision, size, layout, dtype):
    case = replace(size, layout=layout, dtype=precision(dtype))
    # torch may not use TF32 for some sizes. float16 has the same number of bits.
    check(case, "cuda", torch.float16 if dtype == "tf32" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["time", "batch", "packed"])
@pytest.mark.parametrize("size", GPU_SIZES[:4], ids=lambda c: f"T{c.T}-B{c.B}-H{c.H}")
def test_resets_on_a_gpu(cuda_kernel, size, layout, dtype):
    case = replace(size, layout=layout, dtype=dtype)
    data = rule.make(case)
    reset = draw_resets(data, 0.3)
    results = [
        rule.run(functools.partial(call, reset=reset), case, rule.make(case, "cuda"))
        for call in (in_parts, functional.rnn)
    ]
    rule.check(results[1], results[0], reference_of_parts(case, data, reset), dtype)


def inference(case, data):
    with torch.no_grad():
        return functional.rnn(
            data.input, data.hx, data.weights,
            batch_first=case.layout == "batch", batch_sizes=data.batch_sizes, **case.options,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_run_gives_the_same_bits(cuda_kernel, dtype):
    case = Case(50, 17, 16, 300, bidirectional=True, dtype=dtype)
    data = rule.make(case, "cuda")
    expected = rule.run(functional.rnn, case, data)
    for _ in range(20):
        for name, tensor in rule.run(functional.rnn, case, data).items():
            assert torch.equal(tensor, expected[name]), name


def test_streams(cuda_kernel):
    """The kernels run on the current stream, after the work that is already there."""
    case = Case(20, 5, 16, 128)
    data, late = rule.make(case, "cuda"), rule.make(case, "cuda", seed=1)
    expected = inference(case, late)
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        torch.cuda._sleep(50_000_000)
        data.input.copy_(late.input)
        data.hx.copy_(late.hx)
        for mine, theirs in zip(data.weights, late.weights, strict=True):
            mine.copy_(theirs)
        found = inference(case, data)
        torch.cuda.current_stream().synchronize()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("layout", ["time", "packed"])
def test_cuda_graph(cuda_kernel, layout):
    """A graph that is captured once is replayed on different data."""
    case = Case(20, 5, 16, 128, num_layers=2, bidirectional=True, layout=layout)
    data, other = rule.make(case, "cuda"), rule.make(case, "cuda", seed=1)
    inference(case, data)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = inference(case, data)
    with torch.no_grad():
        data.input.copy_(other.input)
        data.hx.copy_(other.hx)
    expected = inference(case, data)
    for _ in range(2):
        graph.replay()
        assert all(map(torch.equal, found, expected))


def test_cuda_graph_of_training(cuda_kernel):
    """The graph has the backward pass too. batch_sizes are read on the host only once."""
    case = Case(20, 5, 16, 128, bidirectional=True, layout="packed")
    data, other = rule.make(case, "cuda"), rule.make(case, "cuda", seed=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        rule.run(functional.rnn, case, data)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = rule.run(functional.rnn, case, data)
    with torch.no_grad():
        for mine, theirs in zip(data.wanted.values(), other.wanted.values(), strict=True):
            mine.copy_(theirs)
    expected = rule.run(functional.rnn, case, data)
    for _ in range(2):
        graph.replay()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def test_second_derivatives_on_a_gpu(cuda_kernel):
    case = Case(3, 3, 2, 5, dtype=torch.float64)
    data = rule.make(case, "cuda")

    def call(input, hx, *weights):
        return functional.rnn(input, hx, weights)

    assert torch.autograd.gradgradcheck(call, (data.input, data.hx, *data.weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_a_gpu(cuda_kernel, dtype):
    """The kernels run in the dtype of autocast, and so does a backward pass inside or outside."""
    case = Case(20, 5, 16, 128)
    data = rule.make(case, "cuda")
    with torch.no_grad():
        expected = functional.rnn(data.input.to(dtype), None, [w.to(dtype) for w in data.weights])
    found = []
    for inside in (False, True):
        with torch.autocast("cuda", dtype):
            output, h_n = functional.rnn(data.input, None, data.weights)
        assert torch.equal(output, expected[0]) and torch.equal(h_n, expected[1])
        with torch.autocast("cuda", dtype, enabled=inside):
            found.append(torch.autograd.grad(output.float().square().sum(), data.weights))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("memory", ["contiguous", "transposed"])
@pytest.mark.parametrize("layout", ["time", "packed"])
def test_operators_on_a_gpu(cuda_kernel, layout, memory):
    case = Case(4, 3, 5, 6, 2, bidirectional=True, layout=layout, memory=memory)
    test_ops.check_operators(case, "cuda")


def test_compile_on_a_gpu(cuda_kernel):
    """Forward and backward pass are one graph each."""
    test_ops.compare_compiled(Case(20, 5, 16, 128, bidirectional=True), "inductor", "cuda")


def test_compile_with_graphs(cuda_kernel):
    torch.compiler.reset()
    module = rnnfast.FastRNN(16, 128, 2, device="cuda")
    x = torch.randn(20, 5, 16, device="cuda")
    expected = module(x)
    compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    with torch._dynamo.config.patch(allow_rnn=True):
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_other_than_the_current_device(cuda_kernel):
    case = Case(20, 5, 16, 128)
    expected = inference(case, rule.make(case, "cuda:0"))
    found = inference(case, rule.make(case, "cuda:1"))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_operator_refuses_tensors_of_two_devices(cuda_kernel):
    data = rule.make(Case(20, 5, 16, 128), "cuda:0")
    weights = [w.detach() for w in data.weights]
    weights[1] = weights[1].to("cuda:1")
    with pytest.raises(RuntimeError, match="must be on cuda:1 like the rest, got cuda:0"):
        torch.ops.rnnfast.rnn(
            data.input.detach(), None, weights, None, 1, False, False, True, False
        )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_data_parallel_on_two_gpus(cuda_kernel):
    """The replicas run at the same time, each in its own thread."""

    class Outputs(rnnfast.FastRNN):
        def forward(self, x):
            return super().forward(x)[0]

    module = Outputs(5, 64, 2, bidirectional=True, batch_first=True, device="cuda:0")
    x, results = torch.randn(6, 7, 5, device="cuda:0"), []
    for call in (module, DataParallel(module, [0, 1])):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*flatten_parameters.*")
            output = call(x)
        results.append([output, *torch.autograd.grad(output.sin().sum(), [*module.parameters()])])
    torch.testing.assert_close(*results)


def test_no_warning_of_weights_on_a_gpu(cuda_kernel):
    """cuDNN warns in every call if the weights are not one block of memory."""
    module = weight_norm(rnnfast.FastRNN(5, 64, 2, device="cuda"), "weight_hh_l0")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*flatten_parameters.*")
        module(torch.randn(7, 3, 5, device="cuda"))[0].sum().backward()


def test_a_kernel_that_does_not_fit_says_why():
    if not torch.cuda.is_available():
        pytest.skip("this machine, or this build of torch, has no CUDA device")
    try:
        rnnfast.set_cuda_kernel("cluster")
        with pytest.raises(ValueError, match="cluster kernel cannot hold W_hh of H = 20000"):
            rnnfast.cuda_plan(10, 4, 20000)
    finally:
        rnnfast.set_cuda_kernel(None)
