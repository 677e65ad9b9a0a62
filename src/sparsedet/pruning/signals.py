"""Signals that stop a run: it finishes its step, its workers ignore them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def leave_group(_: int) -> None:
    """Move a worker out of the process group.

    torchrun and a terminal send signals to the whole group, but the trainer still needs its workers
    for the step that it finishes.
    """
    os.setpgid(0, 0)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM and SIGINT call `stop` instead of ending the process.

    In a thread that is not the main one nothing changes: Python gives it no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, lambda *_: stop()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
