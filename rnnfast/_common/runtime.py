"""The device, the threads and the processes that a program runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import distributed

from .errors import ArgumentError, UserError


def check_device(device: str) -> None:
    """Raise UserError if `device` is not available on this machine."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not available here: use --device cpu") from error


def set_up(device: str, threads: int | None) -> None:
    """Check the device, and set torch's number of threads (None leaves the number as it is).

    Raises UserError if the device is not available or the number of threads is below 1.
    """
    check_device(device)
    if threads is not None:
        if threads < 1:
            raise ArgumentError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run the body of a `with` statement on one thread.

    Threads that share the units of a single sequence meet at every time step. On an idle machine
    they gain little. On a busy machine they lose much: 512 units on two cores that had other work
    made 32,000 tokens/s with one thread and 1,600 with two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rank() -> int:
    """Return the number of this process among those that train together. Process 0 writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1
