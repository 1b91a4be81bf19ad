"""Signals that stop a run. They are noted when they come, and acted on between two updates."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ..._common.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """The signals that ask this process to stop. `received` is the number of the last, or None."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note the signals that come while the body of a `with` statement runs.

        A signal only sets `received`, so that it cannot break an update or a save. Python allows
        signal handlers only in the main thread. In another thread nothing happens.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: FrameType | None) -> None:
            self.received = signum

        before = [signal.signal(number, note) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal has been received."""
        if self.received is not None:
            raise Interrupted(self.received)
