"""What all contestants have in common."""

import importlib.util
import os
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases import Case, Data, data


class NotRunError(Exception):
    """A contestant cannot run a case. The message says why in a few words."""

    def __init__(self, reason: str, contestant: str | None = None):
        super().__init__(reason)
        self.contestant = contestant


class Peer:
    """A contestant. Its constructor raises NotRunError if its library is not installed."""

    version = ""

    def call(self, case: Case, data: Data, mode: str) -> Callable[[], Sequence[Any]]:
        """Return the function that is timed.

        The function returns the arrays that `cases.result_names` lists, of any array type, and only
        after they are computed. `call` raises NotRunError for a case that it cannot run.
        """
        raise NotImplementedError

    def arrays(self, results: Sequence[Any]) -> list[np.ndarray]:
        """Return the results of a call as float32 arrays, with zeros for padding."""
        return [np.asarray(result).astype(np.float32) for result in results]

    def prepare(self, case: Case, mode: str) -> list[np.ndarray]:
        """Prepare the call that is timed next, and return its results to check them."""
        self._call = None  # frees the memory of the call before
        self._call = self.call(case, data(case), mode)
        return self.arrays(self._call())

    def sample(self, number: int) -> float:
        """Return the seconds of one call, averaged over `number` calls."""
        # The first call is not timed: after a process was stopped, its threads are asleep and its
        # data is out of the cache.
        self._call()
        return timeit.timeit(self._call, number=number) / number


def installed(module: str, how: str | None = None) -> None:
    """Raise NotRunError, which says what to install, if `module` cannot be imported."""
    if importlib.util.find_spec(module) is None:
        raise NotRunError(f"not installed: pip install {how or module}")


def threads() -> int:
    """Return the number of CPUs of this process, set to that of the threads at the start."""
    return len(os.sched_getaffinity(0))
