"""Build rnnfast._C with ninja, which compiles only what has changed.

These environment variables change the build:

- RNNFAST_OPENMP=0: build without threads, as is done except on Linux.
- RNNFAST_TEST_ISAS=1: add the instruction sets that exist for the tests (csrc/cpu/testing).
- RNNFAST_CXXFLAGS: flags that are added to those of the C++ compiler. CXX names the compiler.
- RNNFAST_CUDA=0: build without the CUDA kernels. RNNFAST_CUDA=1: fail if they cannot be built. By
  default they are built if there is an nvcc in NVCC, in CUDA_HOME or on the PATH.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ninja
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# The lists are sorted, so that two builds of the same source are the same.
CUDA_SOURCES = [ROOT / "csrc/bindings/cuda.cpp", *sorted(ROOT.glob("csrc/cuda/**/*.cu"))]
CPU_SOURCES = [
    source
    for folder in ("bindings", "cpu")
    for source in sorted(ROOT.glob(f"csrc/{folder}/**/*.cpp"))
    if source not in CUDA_SOURCES and source.parent.name != "testing"
]
TEST_SOURCES = sorted(ROOT.glob("csrc/cpu/testing/*.cpp"))
# The kernels are compiled for these architectures. For later architectures the module also contains
# PTX, which the driver compiles.
CUDA_ARCHITECTURES = (80, 90)


def cxx_flags():
    """Return the flags of the C++ compiler as one string."""
    # No -march, so that a wheel does not depend on the machine that has built it.
    # -fno-lto: link-time optimisation could mix code of different instruction sets.
    # -ffp-contract=fast: multiply-adds are also fused with -std=c++17, where GCC would not do it.
    # -Wno-psabi: GCC warns about vectors that are passed to functions, but all of ours are inlined.
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
    flags += ["-Wall", "-Wextra", "-Wno-psabi", "-fno-lto", "-pthread"]
    return " ".join([*flags, os.environ.get("RNNFAST_CXXFLAGS", "")])


def uses_libgomp():
    """Return whether to run threads with libgomp, the OpenMP runtime that torch brings on Linux.

    The kernels call its functions directly, so that GCC and Clang use the same runtime. The module
    is not linked with it: torch has loaded its own into the global namespace, under whatever file
    name. If the module named a file, that of the system could be loaded as a second runtime.
    """
    if os.environ.get("RNNFAST_OPENMP") == "0":
        return False
    if sys.platform != "linux":
        print("rnnfast: torch brings no libgomp here, so the CPU kernels will run on one thread.")
        return False
    return True


def find_nvcc():
    """Return the path of nvcc, or None to build without the CUDA kernels."""
    wanted = os.environ.get("RNNFAST_CUDA")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [os.environ.get("NVCC"), home and str(Path(home, "bin", "nvcc")), "nvcc"]
    found = next(filter(None, (shutil.which(c) for c in candidates if c)), None)
    if wanted == "1" and found is None:
        sys.exit(
            "rnnfast: RNNFAST_CUDA=1 needs nvcc, but there is none in NVCC, in CUDA_HOME or on the "
            "PATH. Install the CUDA toolkit, or set RNNFAST_CUDA=0 to build without CUDA."
        )
    return found


def nvcc_flags():
    """Return the flags of nvcc as one string."""
    flags = ["-std=c++17", "-O3", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    for arch in CUDA_ARCHITECTURES:
        flags += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    last = CUDA_ARCHITECTURES[-1]
    return " ".join([*flags, "-gencode", f"arch=compute_{last},code=compute_{last}"])


def ninja_file(output, build_dir, include):
    """Return the text of the file that tells ninja how to build `output`."""
    cxx, nvcc = os.environ.get("CXX", "c++"), find_nvcc()
    if shutil.which(shlex.split(cxx)[0]) is None:
        sys.exit(f"rnnfast: there is no compiler {cxx}. Install GCC or Clang, or set CXX.")
    # The linker of macOS refuses Python's symbols, which the process has, unless it is told.
    shared = "-shared -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    lines = [
        f"cxx = {cxx}",
        f"cxxflags = {cxx_flags()}{' -DRNNFAST_LIBGOMP' if uses_libgomp() else ''}",
        f"nvcc = {nvcc}",
        f"nvccflags = {nvcc_flags()}",
        "rule cxx",
        "  command = $cxx $cxxflags $include -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule cuda",
        "  command = $nvcc $nvccflags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        # nvcc links the module, because it knows where its runtime is. The runtime is linked
        # statically and its symbols are hidden, so that the module loads on machines without CUDA
        # and does not collide with the runtime of a different library.
        f"  command = $cxx {shared} $in -o $out -pthread"
        if nvcc is None
        else "  command = $nvcc -shared -cudart static -Xlinker --exclude-libs,ALL $in -o $out "
        # The wheel nvidia-cuda-runtime has the runtime in this folder, where nvcc does not look.
        f"-L{shlex.quote(str(Path(nvcc).resolve().parents[1] / 'lib'))} -Xcompiler -pthread",
    ]
    objects = []
    tests = TEST_SOURCES if os.environ.get("RNNFAST_TEST_ISAS") == "1" else []
    for source in CPU_SOURCES + tests + (CUDA_SOURCES if nvcc else []):
        obj = build_dir / source.relative_to(ROOT).with_suffix(source.suffix + ".o")
        rule = "cuda" if source.suffix == ".cu" else "cxx"
        lines.append(f"build {escape(obj)}: {rule} {escape(source.resolve())}")
        if source.parent.name == "bindings":
            # A variable of these files alone: under build isolation pybind11 lies in a different
            # folder each time, which must not rebuild the kernels.
            own = " -DRNNFAST_CUDA" if nvcc else ""
            lines.append(
                "  include = " + " ".join(f"-isystem {shlex.quote(p)}" for p in include) + own
            )
        elif source.name == "isa.cpp" and tests:
            lines.append("  include = -DRNNFAST_TEST_ISAS")
        objects.append(escape(obj))
    lines.append(f"build {escape(output)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def escape(path):
    """Return a path as ninja writes it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaBuild(build_ext):
    """The command build_ext, which runs ninja."""

    def build_extension(self, ext):
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        # build_temp is a new folder for every editable install, where ninja would build everything
        # again.
        build_dir = ROOT.resolve() / "build" / f"ninja-{sys.implementation.cache_tag}"
        output.parent.mkdir(parents=True, exist_ok=True)
        build_dir.mkdir(parents=True, exist_ok=True)
        include = [pybind11.get_include(), *self.include_dirs]
        (build_dir / "build.ninja").write_text(ninja_file(output, build_dir, include))
        program = Path(ninja.BIN_DIR) / "ninja"
        try:
            subprocess.run(
                [program, "-C", build_dir, *(["-v"] if self.verbose > 1 else [])], check=True
            )
        except subprocess.CalledProcessError:
            sys.exit("rnnfast: the kernels could not be compiled. The message above says why.")


# `depends` lists the other files that a source distribution must contain. ninja does not need it,
# because the compiler tells it which headers a file includes.
SOURCES, OTHERS = (
    [str(path.relative_to(ROOT)) for path in paths]
    for paths in (CPU_SOURCES, [*TEST_SOURCES, *CUDA_SOURCES, *sorted(ROOT.glob("csrc/**/*.h"))])
)
setup(
    ext_modules=[Extension("rnnfast._C", SOURCES, depends=OTHERS)],
    cmdclass={"build_ext": NinjaBuild},
)
