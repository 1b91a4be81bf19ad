"""Take samples of several implementations by turns, and summarise them."""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from .._torch import onednn_product

# Shorter calls are repeated within a sample, so that reading the clock costs next to nothing.
SAMPLE_SECONDS = 2e-3
MODE_SECONDS = 1.5  # spent on one mode of one shape
MIN_ROUNDS = 5
GEMM_SIZE = 2048  # large enough for a matrix product to reach the ceiling of the machine

# Makes one call that is not timed, and then as many as its argument says. Returns the mean seconds
# of the latter.
Timer = Callable[[int], float]


def timer(call: Callable[[], Any]) -> Timer:
    """Return a timer of `call`: a function of the number of calls that returns seconds a call.

    The call before those that it times brings data and code back into the cache, from which
    something else has driven them out.
    """

    def sample(number: int) -> float:
        call()
        return timeit.timeit(call, number=number) / number

    return sample


def alternate(
    timers: dict[str, Timer], repeats: int | None = None, seconds: float = MODE_SECONDS
) -> dict[str, np.ndarray]:
    """Take one sample of each timer in each round, in an order that rotates.

    Noise then hits all of them, and none of them always finds the data of the same other one in the
    cache.

    Args:
        timers: a timer for each implementation, by name.
        repeats: rounds. None takes as many as fit in `seconds`, and at least `MIN_ROUNDS`.
        seconds: time to spend on all rounds together. It is not used if `repeats` is given.

    Returns:
        Seconds a call of each sample, float64 (rounds,), by name.

    Example:
        >>> from rnnfast import bench
        >>> samples = bench.alternate({"sum": bench.timer(lambda: sum(range(100)))}, repeats=3)
        >>> samples["sum"].shape
        (3,)
    """
    cost = {}
    for name, sample in timers.items():
        cost[name] = sample(1)
    number = {name: max(1, math.ceil(SAMPLE_SECONDS / cost[name])) for name in timers}
    round_seconds = sum(cost[name] * (number[name] + 1) for name in timers)  # 1: not timed
    rounds = repeats or max(MIN_ROUNDS, int(seconds / round_seconds))

    samples: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    for _ in range(rounds):
        for name in order:
            samples[name].append(timers[name](number[name]))
        order.append(order.pop(0))
    return {name: np.array(values) for name, values in samples.items()}


def median_seconds(
    calls: dict[str, Callable[[], Any]], repeats: int | None = None
) -> dict[str, float]:
    """Return the median seconds of each call, from samples that `alternate` takes.

    Example:
        >>> from rnnfast import bench
        >>> list(bench.median_seconds({"sum": lambda: sum(range(100))}, repeats=3))
        ['sum']
    """
    samples = alternate({name: timer(call) for name, call in calls.items()}, repeats)
    return {name: float(np.median(values)) for name, values in samples.items()}


def milliseconds(samples: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the median and the 20th and 80th percentile of each, in milliseconds."""
    return {
        name: {"median": 1e3 * float(np.median(values)), **spread(1e3 * values)}
        for name, values in samples.items()
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Return the 20th and the 80th percentile of `values`."""
    p20, p80 = np.percentile(values, [20, 80])
    return {"p20": float(p20), "p80": float(p80)}


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers.

    Example:
        >>> from rnnfast import bench
        >>> round(bench.geometric_mean([1.0, 4.0]), 6)
        2.0
    """
    return math.exp(np.mean([math.log(value) for value in values]))


def gemm_gflops(dtype: torch.dtype) -> float:
    """Measure how many GFLOP/s a product of two large matrices reaches: the best of several runs.

    The product is computed with `torch.mm`. In float32 it is also computed with oneDNN where torch
    has it, because the BLAS under `torch.mm` may leave half of a vector unit idle on CPUs of AMD.
    In 16 bits the matrices are also widened to float32 and then multiplied: on a CPU that has no
    instructions for bfloat16, `torch.mm` in bfloat16 takes hundreds of times as long.
    """
    probes = [_seconds(product) for product in _products(GEMM_SIZE // 8, dtype)]
    seconds = [
        _seconds(product)
        for product, probe in zip(_products(GEMM_SIZE, dtype), probes, strict=True)
        if probe < 8 * min(probes)  # others would take minutes
    ]
    return 2e-9 * GEMM_SIZE**3 / min(seconds)


def _seconds(call: Callable[[], Any]) -> float:
    """Return the shortest of several times of a call, in seconds."""
    return min(timeit.repeat(call, repeat=6, number=1))


def _products(n: int, dtype: torch.dtype) -> list[Callable[[], Any]]:
    """Return functions that multiply two matrices of n x n elements, each in its own way."""
    a, b = torch.ones(2, n, n, dtype=dtype)
    out = torch.empty(n, n, dtype=dtype)
    products: list[Callable[[], Any]] = [lambda: torch.mm(a, b, out=out)]
    onednn = onednn_product(a, b) if dtype == torch.float32 else None
    if onednn is not None:
        products.append(onednn)
    if dtype.itemsize == 2:
        products.append(lambda: torch.mm(a.float(), b.float()).to(dtype))
    return products
