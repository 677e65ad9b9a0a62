"""Signals that stop a run: the trainer finishes its step, and its workers are left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def leave_group(_: int) -> None:
    """In a worker: torchrun and a terminal send signals to the whole process group, and the trainer
    needs its workers for the step that it finishes."""
    os.setpgid(0, 0)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end the loop after the current step instead of losing work."""

    before = {s: signal.signal(s, lambda *_: stop()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
