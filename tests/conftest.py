"""What every test file shares: the devices and instruction sets a test runs on."""

import os

import hypothesis
import pytest
import torch

# No test asserts a time; a busy machine would fail it.
hypothesis.settings.register_profile("rnnfast", deadline=None)
hypothesis.settings.load_profile("rnnfast")


def pytest_configure(config):
    # They would colour what the command line prints, here and in processes that tests start.
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    # The rule compares float32 with float32; test_cuda.py asks for TF32 where it means it.
    torch.backends.cudnn.allow_tf32 = False


def pytest_generate_tests(metafunc):
    # Imported here and not above: only the tests that ask need the native module.
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
    """Every device there is, the CPU with the instruction set it picks itself."""
    return _existing(request.param)


@pytest.fixture
def isa(request):
    """Every instruction set this CPU can run, forced in turn; its name."""
    yield from _forced(request.param)


@pytest.fixture
def target(request):
    """Every device there is, once for each instruction set or kernel it has; the device."""
    device, name = request.param
    _existing(device)
    for _ in _forced(name) if device == "cpu" else _forced_kernel(name):
        yield device


@pytest.fixture(params=["auto", "cluster", "grid", "step"])
def cuda_kernel(request):
    """Every way to run on a GPU, forced in turn; its name."""
    _existing("cuda")
    yield from _forced_kernel(request.param)


@pytest.fixture
def num_threads():
    """``torch.set_num_threads``, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread():
    """For a module whose models are so small that threads only wait for one another."""
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
    """Runs a command in this process: (status, stdout, stderr)."""
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
