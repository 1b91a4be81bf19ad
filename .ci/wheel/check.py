"""Check the rnnfast that is installed in the environment of this Python, and print what it is.

.ci/wheel/build.py and the release workflow run this script after the installation of a wheel.
"""

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# The kernels run on two threads and agree with nn.RNN. Then the program prints the paths of the
# OpenMP runtimes in the process.
PROGRAM = """
import {first}
import {second}
import sys

torch.set_num_threads(2)
module, x = torch.nn.RNN(64, 128), torch.randn(20, 32, 64, requires_grad=True)
results = []
for rnn in (module, rnnfast.accelerate(torch.nn.Sequential(module))[0]):
    output, h_n = rnn(x)
    results.append((output, h_n, *torch.autograd.grad(output.sum(), [x, *rnn.parameters()])))
assert type(rnn) is rnnfast.FastRNN
for expected, actual in zip(*results):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
if sys.platform == "linux":
    with open("/proc/self/maps") as maps:
        paths = {{line.split()[-1] for line in maps if ".so" in line}}
    print(*(path for path in paths if "omp" in path.rpartition("/")[2]))
"""


def run(*arguments):
    """Run this Python with these arguments, and return what it prints."""
    run = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(f"{arguments[0]} has failed")
    return run.stdout


def check_build_info():
    import torch

    import rnnfast

    info = rnnfast.build_info()
    print(json.dumps({"torch": torch.__version__} | info))
    folder = Path(rnnfast.__file__).parent
    assert folder.parent == Path(sysconfig.get_path("platlib")), f"{folder} is not installed"
    assert info["version"] == importlib.metadata.version("rnnfast")
    assert info["isa"] == info["isas"][-1]
    assert not {"avx512_on_avx2", "amx_emulated"} & set(info["isas"]), "they are for tests only"
    assert info["openmp"] or sys.platform != "linux"
    assert "float32" in info["kernels"]["cpu"]
    # CUDA kernels in the wheel must not keep it from working without a GPU.
    assert info["cuda"] or "cuda" not in info["kernels"]


def check_runtimes():
    import torch

    for first, second in (("torch", "rnnfast"), ("rnnfast", "torch")):
        runtimes = run("-c", PROGRAM.format(first=first, second=second)).split()
        print(f"OpenMP after import of {first}, {second}: {', '.join(runtimes)}")
        if sys.platform == "linux":
            assert len(runtimes) == 1, "there must be one OpenMP runtime"
            assert Path(torch.__file__).parents[1] in Path(runtimes[0]).parents, (
                "it must be torch's"
            )


def check_training():
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        size = ("--nhid", "64", "--batch-size", "16")
        run("-m", "rnnfast", "train", "--max-seconds", "1", *size, "--out", str(model))
        text = run("-m", "rnnfast", "generate", str(model))
        print(f"A trained model has written {len(text)} characters.")
        assert text


check_build_info()
check_runtimes()
check_training()
