"""Compile the C++ of the benchmarks when it is first needed, into build/benchmarks/."""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "benchmarks"


def load(source: str, *flags: str, key: str = "") -> ctypes.CDLL:
    """Return the shared library that is built from `benchmarks/<source>`.

    It is built again only if the source, the flags or `key` have changed. `key` stands for
    everything else that the result depends on.

    Raises:
        RuntimeError: the compiler failed. The message has its first error.
    """
    text = (HERE / source).read_bytes()
    name = hashlib.sha256(repr((text, flags, key)).encode()).hexdigest()[:16]
    library = FOLDER / f"{Path(source).stem}-{name}.so"
    if not library.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            built = Path(folder) / library.name
            compiler = os.environ.get("CXX", "c++")
            common = ["-std=c++17", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra"]
            run = subprocess.run(
                [compiler, *common, str(HERE / source), "-o", str(built), *flags],
                capture_output=True,
                text=True,
            )
            if run.returncode:
                first = next((line for line in run.stderr.splitlines() if "error" in line), "")
                raise RuntimeError(f"{compiler} cannot compile {source}: {first}")
            os.replace(built, library)
    return ctypes.CDLL(str(library))
