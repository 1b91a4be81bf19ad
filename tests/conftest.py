"""Fixtures that many test files use: devices, instruction sets, threads, the command line."""

import contextlib
import os

import hypothesis
import pytest
import torch

# hypothesis has a deadline for each example by default, which a busy machine would miss.
hypothesis.settings.register_profile("rnnfast", deadline=None)
hypothesis.settings.load_profile("rnnfast")


def pytest_configure(config):
    # These variables would colour the output of the command line, also in child processes.
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    # The rule compares float32 with float32. The tests that need TF32 enable it.
    torch.backends.cudnn.allow_tf32 = False


def pytest_runtest_setup():
    # Numbers that a test draws without a generator of its own must not depend on the tests before.
    torch.manual_seed(0)


def pytest_generate_tests(metafunc):
    # The import is not at the top, because only tests with these fixtures need the native module.
    if {"target", "isa"} & set(metafunc.fixturenames):
        import rnnfast

        isas = rnnfast.build_info()["isas"]
        if "isa" in metafunc.fixturenames:
            metafunc.parametrize("isa", isas, indirect=True)
        else:
            targets = [("cpu", isa) for isa in isas]
            targets += [("cuda", kernel) for kernel in (None, "auto", "cluster", "grid", "step")]
            ids = [f"{device}-{name or 'torch'}" for device, name in targets]
            metafunc.parametrize("target", targets, ids=ids, indirect=True)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device of this machine. The CPU uses the instruction set that it chooses by default."""
    return _existing(request.param)


@pytest.fixture
def isa(request):
    """The name of each instruction set that this CPU can run. The kernels are made to use it."""
    yield from _forced(request.param)


@pytest.fixture
def target(request):
    """Each device of this machine, once for each of its instruction sets or CUDA kernels."""
    device, name = request.param
    _existing(device)
    for _ in _forced(name) if device == "cpu" else _forced_kernel(name):
        yield device


@pytest.fixture(params=["auto", "cluster", "grid", "step"])
def cuda_kernel(request):
    """The name of each kind of CUDA kernel. rnnfast is made to use it."""
    _existing("cuda")
    yield from _forced_kernel(request.param)


@pytest.fixture
def precision():
    """Set the precision of float32 in torch's RNNs for one test."""
    with contextlib.ExitStack() as flags:

        def set_to(dtype):
            tf32 = dtype == "tf32"
            flags.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32))
            return torch.float32 if tf32 else dtype

        yield set_to


@pytest.fixture
def num_threads():
    """The function torch.set_num_threads. The number of threads is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread():
    """Run the tests of a module on one thread: several would only wait for each other.

    This is for modules whose models are so small that a thread has hardly any work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_products():
    """For a module in which it does not matter what is measured, only how it is reported."""
    from rnnfast.bench import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "GEMM_SIZE", 64)
        yield


@pytest.fixture
def rnnfast(capsys):
    """A function that runs a command in this process and returns (status, stdout, stderr)."""
    from rnnfast import cli

    def run(*argv):
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in argv])
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    return run


def _existing(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine, or this build of torch, has no CUDA device")
    return device


def _forced(name):
    import rnnfast

    rnnfast.set_isa(name)
    yield name
    rnnfast.set_isa(None)


def _forced_kernel(name):
    import rnnfast

    if name is not None and not rnnfast.build_info()["cuda"]:
        pytest.skip("this build has no CUDA kernels: there was no nvcc")
    rnnfast.set_cuda_kernel(name)
    yield name
    rnnfast.set_cuda_kernel(None)
