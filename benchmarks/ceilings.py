"""What the machine can do at the most, measured in the same run as the contestants."""

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import native
import torch

from rnnfast import bench

MEMORY_BYTES = 1 << 28  # of an array that no cache holds


def measure(dtypes: Iterable[str], working_sets: Iterable[int], threads: int) -> dict[str, Any]:
    """The ceilings, for a report.

    Returns ``gemm_gflops``, by dtype, of the product of two large matrices; ``read_gbs``, by number
    of bytes, of reading so many again and again, each thread its own share; ``levels``, the same
    for a working set that each level of the memory hierarchy holds; ``copy_gbs``, read and written
    bytes added, of a copy in memory.
    """
    library = native.load("bandwidth.cpp", "-pthread")
    for function in (library.read_gbs, library.copy_gbs):
        function.argtypes = [ctypes.c_size_t, ctypes.c_int]
        function.restype = ctypes.c_double
    levels = _working_sets(threads)
    return {
        "gemm_gflops": {name: bench.gemm_gflops(getattr(torch, name)) for name in dtypes},
        "read_gbs": {str(size): library.read_gbs(size, threads) for size in working_sets},
        "levels": {level: library.read_gbs(size, threads) for level, size in levels.items()},
        "copy_gbs": library.copy_gbs(MEMORY_BYTES, threads),
    }


def best(a: Any, b: Any) -> Any:
    """The higher of two measurements of everything."""
    return {key: best(a[key], b[key]) for key in a} if isinstance(a, dict) else max(a, b)


def _working_sets(threads: int) -> dict[str, int]:
    """Bytes, of all threads together, that L1, L2, L3 and memory hold."""
    caches = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            size = int((index / "size").read_text().strip().removesuffix("K")) << 10
            caches[f"L{(index / 'level').read_text().strip()}"] = size
    sets = {level: threads * size // 2 for level, size in caches.items() if level in ("L1", "L2")}
    if "L3" in caches:  # which the threads share; more than L2 has, or L2 would answer
        sets["L3"] = min(caches["L3"] // 2, 8 * threads * caches.get("L2", caches["L3"]))
    return dict(sorted(sets.items())) | {"memory": max(MEMORY_BYTES, 8 * caches.get("L3", 0))}
