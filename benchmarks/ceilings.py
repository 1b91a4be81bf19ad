"""Measure the ceilings of the machine, in the same run as the contestants."""

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import native
import torch

from rnnfast import bench

MEMORY_BYTES = 1 << 28  # size of an array that no cache holds


def measure(dtypes: Iterable[str], working_sets: Iterable[int], threads: int) -> dict[str, Any]:
    """Measure the ceilings for a report.

    Args:
        dtypes: names of the dtypes whose matrix product is timed.
        working_sets: numbers of bytes to read again and again.
        threads: number of threads. Each one reads its own share.

    Returns:
        A dict: `gemm_gflops`, the GFLOP/s of a product of two large matrices, by dtype; `read_gbs`,
        the GB/s of reading, by working set; `levels`, the GB/s of reading a working set that fits
        in each level of the memory hierarchy, by level; `copy_gbs`, the GB/s of a copy in memory,
        read and written bytes added.
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
    """Return the higher of two measurements, for every entry of a nested dict."""
    return {key: best(a[key], b[key]) for key in a} if isinstance(a, dict) else max(a, b)


def _working_sets(threads: int) -> dict[str, int]:
    """Return a number of bytes, of all threads together, for each of L1, L2, L3 and memory."""
    caches = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            size = int((index / "size").read_text().strip().removesuffix("K")) << 10
            caches[f"L{(index / 'level').read_text().strip()}"] = size
    sets = {level: threads * size // 2 for level, size in caches.items() if level in ("L1", "L2")}
    # The threads share L3. Its working set is larger than L2, because L2 would serve it otherwise.
    if "L3" in caches:
        sets["L3"] = min(caches["L3"] // 2, 8 * threads * caches.get("L2", caches["L3"]))
    return dict(sorted(sets.items())) | {"memory": max(MEMORY_BYTES, 8 * caches.get("L3", 0))}
