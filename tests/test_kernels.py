"""``rnnfast.functional.rnn`` against the NumPy reference, by the rule of `rule`."""

import functools
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rule
import torch
from rule import Case

import rnnfast
from rnnfast.functional import rnn

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["time", "batch", "packed"]

# Every awkward size and option in some company; layouts, dtypes and nonlinearities multiply it.
SIZES = [
    Case(1, 1, 1, 1),
    Case(2, 2, 5, 7, gradients_of="output"),
    Case(19, 1, 1, 16, bias=False),
    Case(1, 5, 64, 33, bidirectional=True, with_hx=False),
    Case(19, 3, 5, 65, gradients_of="h_n", bidirectional=True),
    Case(2, 13, 64, 200, num_layers=2, bidirectional=True, bias=False, with_hx=False),
    Case(19, 1, 64, 257, gradients_of="output", with_hx=False),
    Case(19, 33, 5, 16, num_layers=3),
    Case(2, 33, 1, 257, gradients_of="h_n"),
    Case(19, 13, 5, 33, bidirectional=True),
]


@functools.cache
def judged(case):
    """nn.RNN's results and the reference's, which do not depend on the target."""
    data = rule.make(case)
    return rule.run(rule.baseline, case, data), rule.run_reference(case, data)


def check(case, device="cpu", torchs_dtype=None):
    """The rule; nn.RNN runs in ``torchs_dtype`` if that is given."""
    baseline = replace(case, dtype=torchs_dtype or case.dtype)
    if case.nonlinearity == "relu" and baseline.dtype in rule.HALF:
        return check_at_own_states(*(replace(c, num_layers=1) for c in (case, baseline)), device)
    if device == "cpu":
        torchs, truth = judged(case)
    else:
        torchs = rule.run(rule.baseline, baseline, rule.make(baseline, device))
        truth = judged(case)[1]
    rule.check(rule.run(rnn, case, rule.make(case, device)), torchs, truth, case.dtype)


def check_at_own_states(case, baseline, device):
    """The rule, where the gradients are those of a function that takes the states as given.

    Rounded to 16 bits, every thousandth input of a ReLU or so gets another sign, and its derivative
    is wrong altogether, with nn.RNN as with us.
    """
    results, truths = [], []
    for implementation, its in ((rnn, case), (rule.baseline, baseline)):
        data = rule.make(its, device)
        results.append(rule.run(implementation, its, data))
        truths.append(rule.run_reference(its, data, results[-1]["output"]))
    rule.check(*results, truths[0], case.dtype, truths[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=lambda c: f"T{c.T}-B{c.B}-I{c.inputs}-H{c.H}")
def test_rule(target, size, layout, nonlinearity, dtype):
    check(replace(size, layout=layout, nonlinearity=nonlinearity, dtype=dtype), target)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rule_for_long_sequences(device, bidirectional, layout, dtype):
    """The backward goes through them in blocks of steps, in which the directions meet.

    The weight gradients are sums over thousands of rows, and must round no worse for it.
    """
    case = Case(200, 33, 5, 16, 2, bidirectional=bidirectional, layout=layout, dtype=dtype)
    check(case, device)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bidirectional_over_blocks_of_one_row(device, layout):
    """Both directions run at the same time, and neither is at the same step as the other."""
    check(Case(1100, 1, 3, 70, bidirectional=True, layout=layout), device)


@pytest.mark.parametrize("rows", range(1, 34))
def test_every_number_of_rows(isa, rows):
    """The height of the last tile takes every value."""
    check(Case(2, rows, 3, 17))


@pytest.mark.parametrize("hidden", [*range(2, 70), 127, 128, 129])
def test_every_hidden_size(isa, hidden):
    """The width of the last panel takes every value, in the widest vectors too."""
    check(Case(3, 2, 3, hidden))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inputs, hidden", [(1, 3), (16, 64), (17, 70), (64, 257)])
@pytest.mark.parametrize("rows", [1, 4, 5])
def test_single_step(isa, rows, inputs, hidden, dtype):
    """Up to four rows are multiplied by weights that are not packed."""
    layout = LAYOUTS[rows % len(LAYOUTS)]
    check(Case(1, rows, inputs, hidden, 2, bidirectional=True, layout=layout, dtype=dtype))


@pytest.mark.parametrize("memory", ["strided", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_contiguous(target, layout, dtype, memory):
    case = Case(4, 5, 7, 9, 2, "tanh", True, layout=layout, dtype=dtype, memory=memory)
    assert not rule.make(case).input.is_contiguous()
    check(case, target)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frozen", ["input", "hx", "weight 0", "weight 1", "weight 2"])
def test_some_need_no_gradient(device, layout, frozen):
    """The other gradients are those of a call where everything needs one, bit for bit."""
    case = Case(3, 4, 5, 6, layout=layout)
    full = rule.run(rnn, case, rule.make(case, device))
    data = rule.make(case, device)
    data.wanted[frozen].requires_grad_(False)
    partial = rule.run(rnn, case, data)
    assert full.keys() - partial.keys() == {f"d {frozen}"}
    for name, tensor in partial.items():
        assert torch.equal(tensor, full[name]), name


def test_gradients_only_of_the_states(device):
    """Weights and input without gradients, as when an optimiser searches for an initial state."""
    case = Case(3, 4, 5, 6)
    expected = rule.run(rnn, case, rule.make(case, device))["d hx"]
    data = rule.make(case, device)
    for name, tensor in data.wanted.items():
        tensor.requires_grad_(name == "hx")
    assert torch.equal(rule.run(rnn, case, data)["d hx"], expected)


def test_inference_equals_training(target):
    """No gradient is needed, so another schema of the operator runs."""
    for layout in LAYOUTS:
        case = Case(5, 4, 3, 21, 2, bidirectional=True, layout=layout)
        data = rule.make(case, target)
        call = functools.partial(
            rnn, data.input, data.hx, data.weights,
            batch_first=layout == "batch", batch_sizes=data.batch_sizes, **case.options,
        )  # fmt: skip
        trained = call()
        with torch.no_grad():
            plain = call()
        with torch.inference_mode():
            inferred = call()
        for expected, *found in zip(trained, plain, inferred, strict=True):
            assert expected.requires_grad
            for tensor in found:
                assert not tensor.requires_grad
                assert torch.equal(tensor, expected)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(device, layout, nonlinearity):
    case = Case(3, 3, 2, 5, 2, nonlinearity, True, layout=layout, dtype=torch.float64)
    data = rule.make(case, device)

    def call(input, hx, *weights):
        return rnn(
            input, hx, weights,
            batch_first=layout == "batch", batch_sizes=data.batch_sizes, **case.options,
        )  # fmt: skip

    assert torch.autograd.gradcheck(call, (data.input, data.hx, *data.weights))


# Special values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_left_of_the_call_before(target, dtype):
    """Work space is used again; a reverse packed row reads the state before its own first step."""
    case = Case(6, 5, 3, 19, bidirectional=True, with_hx=False, layout="packed", dtype=dtype)
    expected = rule.run(rnn, case, rule.make(case, target))
    data = rule.make(replace(case, H=40), target)
    with torch.no_grad():
        data.input.fill_(float("nan"))
    rule.run(rnn, replace(case, H=40), data)
    for name, found in rule.run(rnn, case, rule.make(case, target)).items():
        assert torch.equal(found, expected[name]), name
        assert found.isfinite().all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("where", ["input", "hx", "weight 1"])
def test_not_finite(target, where, value, nonlinearity, dtype):
    """NaN and infinities come out where nn.RNN's on the CPU do. Other rows of the batch never know.

    cuDNN's ReLU turns NaN into 0.
    """
    case = Case(4, 5, 3, 19, nonlinearity=nonlinearity, dtype=dtype)
    results = []
    for implementation, device in ((rule.baseline, "cpu"), (rnn, target)):
        data = rule.make(case, device)
        with torch.no_grad():
            data.wanted[where].view(-1, data.wanted[where].shape[-1])[2, 1] = value
        results.append({n: t.cpu() for n, t in rule.run(implementation, case, data).items()})
    theirs, ours = results
    special = 0
    for name, expected in theirs.items():
        found = ours[name]
        assert torch.equal(found.isnan(), expected.isnan()), name
        infinite = expected.isinf()
        assert torch.equal(found.isinf(), infinite), name
        assert torch.equal(found[infinite], expected[infinite]), name
        special += int((~expected.isfinite()).sum())
    # Infinities saturate in tanh and may vanish altogether; nothing else may.
    assert special or (nonlinearity == "tanh" and np.isinf(value))
    if where != "weight 1":
        row = torch.arange(5) != 2
        assert ours["output"][:, row].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tanh(isa, dtype):
    """Units in the last place over all magnitudes, in full vectors and in their remainders."""
    magnitudes = torch.logspace(-8, np.log10(30), 20001, dtype=torch.float64)
    extremes = torch.tensor([0.0, 1e-300, 1e-40, 0.5, 88.0, 100.0, 710.0, 1e30, float("inf")])
    x = torch.cat([magnitudes, extremes.double()]).to(dtype)
    x = torch.cat([x, -x])[None, :, None]
    H = 19
    w_ih, w_hh = torch.ones(H, 1, dtype=dtype), torch.zeros(H, H, dtype=dtype)
    found, _ = rnn(x, None, [w_ih, w_hh])
    assert torch.equal(found, found[..., :1].expand_as(found))
    wide = np.longdouble if dtype == torch.float64 else np.float64
    expected = np.tanh(x.ravel().double().numpy().astype(wide))
    if dtype == torch.bfloat16:  # the exponents of float32, and 16 digits less
        unit = np.spacing(np.abs(expected).astype(np.float32)).astype(wide) * 2**16
    else:
        like = np.empty(0, str(dtype).removeprefix("torch.")).dtype
        unit = np.spacing(np.abs(expected).astype(like)).astype(wide)
    found = found[0, :, 0].double().numpy().astype(wide)
    pairs = isa == "avx512_bf16" or isa.startswith("amx")
    if pairs and dtype == torch.bfloat16:  # this product takes subnormals for zeros
        normal = np.abs(x.ravel().double().numpy()) >= torch.finfo(dtype).tiny
        assert not found[~normal].any()
        found, expected, unit = found[normal], expected[normal], unit[normal]
    assert (np.abs(found - expected) / unit).max() <= 3
    assert np.abs(found).max() == 1
    assert np.array_equal(np.sign(found), np.sign(expected))


# Threads and processes

THREADED = [
    Case(30, 1, 5, 257),
    Case(30, 33, 5, 257, layout="packed"),
    Case(3, 5, 64, 257, bidirectional=True, layout="batch"),
    Case(30, 9, 5, 257, bidirectional=True),  # several groups of several threads
    Case(200, 2, 7, 65, nonlinearity="relu", num_layers=2),
    Case(1, 2, 5, 801),  # the weights are not packed
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", THREADED, ids=lambda c: f"B{c.B}-H{c.H}-{c.layout}")
def test_threads_do_not_change_a_bit(isa, num_threads, case, dtype):
    case = replace(case, dtype=dtype)
    data = rule.make(case)
    num_threads(1)
    expected = rule.run(rnn, case, data)
    for threads in (1, 2, 3, 8):
        num_threads(threads)
        for name, tensor in rule.run(rnn, case, data).items():
            assert torch.equal(tensor, expected[name]), (threads, name)


def test_rows_do_not_depend_on_the_batch(isa):
    """A sequence gives the same bits alone and in company."""
    case = Case(6, 33, 5, 70)
    data = rule.make(case)
    together = rule.run(rnn, case, data)
    for row in (0, 4, 32):
        output, h_n = rnn(data.input[:, row : row + 1], data.hx[:, row : row + 1], data.weights)
        assert torch.equal(output, together["output"][:, row : row + 1])
        assert torch.equal(h_n, together["h_n"][:, row : row + 1])


def test_gil_is_released(num_threads):
    num_threads(1)
    data = rule.make(Case(16000, 2, 4, 257))  # a call that is nearly all one kernel
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(1e-3):
            ticks.append(time.perf_counter())

    def longest_silence():
        """As a share of a call, 1 had it kept the GIL."""
        start = time.perf_counter()
        with torch.no_grad():
            rnn(data.input, data.hx, data.weights)
        end = time.perf_counter()
        during = [start, *(t for t in ticks if start < t < end), end]
        return max(b - a for a, b in itertools.pairwise(during)) / (end - start)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        while not ticks:
            time.sleep(1e-3)
        # Of several, for all threads are silent while the machine does something else.
        assert min(longest_silence() for _ in range(5)) < 0.5
    finally:
        stop.set()
        ticker.join()


def test_calls_from_many_python_threads(num_threads):
    num_threads(2)
    cases = [Case(20, b, 5, h) for b, h in itertools.product((1, 7, 33), (33, 257))]
    expected = [rule.run(rnn, case, rule.make(case)) for case in cases]
    failures = []

    def work(case, expected):
        try:
            for _ in range(5):
                for name, tensor in rule.run(rnn, case, rule.make(case)).items():
                    assert torch.equal(tensor, expected[name]), (case, name)
        except BaseException as failure:
            failures.append(failure)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def python(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_works_in_a_forked_worker():
    """With one thread, as in the workers of a DataLoader, after the parent has used several."""
    finished = python(
        """
import os, signal, torch, rule
from rnnfast.functional import rnn
case = rule.Case(20, 33, 5, 257)
torch.set_num_threads(2)
expected = rule.run(rnn, case, rule.make(case))
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang is libgomp waiting for threads that were not forked
    torch.set_num_threads(1)
    found = rule.run(rnn, case, rule.make(case))
    same = all(torch.equal(found[name], expected[name]) for name in expected)
    os._exit(0 if same else 3)
assert os.waitpid(child, 0)[1] == 0, "the child failed"
"""
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_one_openmp_runtime():
    """A second runtime would bring threads of its own to compete with those of torch.

    In a process of its own, because scikit-learn, which other tests import, brings a runtime.
    """
    finished = python(
        """
import torch, rule
from rnnfast.functional import rnn
case = rule.Case(19, 13, 64, 65)
rule.run(rnn, case, rule.make(case))
print(open("/proc/self/maps").read())
"""
    )
    assert finished.returncode == 0, finished.stderr
    libraries = {line.split()[-1] for line in finished.stdout.splitlines() if line}
    runtimes = {name for name in libraries if re.search(r"/lib[gi]?omp[0-9]*[-.]", name)}
    assert len(runtimes) <= 1, runtimes
    if rnnfast.build_info()["openmp"]:
        assert runtimes


# The choice of instruction set


def test_set_isa():
    isas = rnnfast.build_info()["isas"]
    assert "generic" in isas
    default = rnnfast.build_info()["isa"]
    for name in isas:
        rnnfast.set_isa(name)
        assert rnnfast.build_info()["isa"] == name
    rnnfast.set_isa(None)
    assert rnnfast.build_info()["isa"] == default
    for wrong in ("sse9", "AVX2 "):
        with pytest.raises(ValueError, match="generic") as raised:
            rnnfast.set_isa(wrong)
        assert all(name in str(raised.value) for name in [wrong, *isas])
    assert rnnfast.build_info()["isa"] == default


def test_isa_differs():
    """Forcing one does something: instruction sets round differently somewhere."""
    isas = rnnfast.build_info()["isas"]
    if len(isas) == 1:
        pytest.skip("this CPU runs the generic kernels only")
    case = Case(19, 13, 64, 65)
    data = rule.make(case)
    rnnfast.set_isa("generic")
    generic = rule.run(rnn, case, data)["output"]
    rnnfast.set_isa(None)
    assert not torch.equal(rule.run(rnn, case, data)["output"], generic)


@pytest.mark.parametrize("name", ["sse9", *rnnfast.build_info()["isas"]])
def test_isa_from_the_environment(name):
    finished = python(
        "import rnnfast, rule; case = rule.Case(2, 3, 4, 5)\n"
        "rule.run(rnnfast.functional.rnn, case, rule.make(case))\n"
        "print(rnnfast.build_info()['isa'])",
        RNNFAST_ISA=name,
    )
    if name == "sse9":
        assert finished.returncode != 0
        last = finished.stderr.strip().splitlines()[-1]
        assert last.startswith("ValueError") and "RNNFAST_ISA" in last
        assert all(isa in last for isa in ["sse9", *rnnfast.build_info()["isas"]])
    else:
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.strip() == name
