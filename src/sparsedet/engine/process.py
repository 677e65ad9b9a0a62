"""What happens to engines when their process forks, and when it ends with threads still running.

A forked process has the memory of its parent, but of its threads only the one that forked. A lock
that another thread held stays locked for ever, and what that thread was changing stays half
changed. Whoever has such a thing is kept here by `remake_after_fork`.

A process ends without waiting for its daemon threads: each is stopped when it next asks for
Python's global lock. The core survives that (native/bindings). OpenCV does not: the process would
abort, so that its calls are waited for.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

from .._native import ignore_leaks

LONGEST_WAIT = 5.0
"""Seconds that the end of the process waits for calls in `finished_before_exit`. Source: choice;
they take milliseconds."""
DELAY = 0.5
"""Seconds that a call waits for the end that has begun. Source: choice. Not for ever, because an
exit hook may wait for its thread."""


class Forkable(Protocol):
    """Has locks, or works in a thread."""

    def _after_fork(self) -> None:
        """Called in a new process, in its only thread: make locks anew."""
        ...


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()
_threads_at_fork = 1
_inside: set[int] = set()  # threads in `finished_before_exit`
_ended_by = 0  # the thread that ends the process


def remake_after_fork(forkable: Forkable) -> None:
    """Call `forkable._after_fork()` in each process that forks from this one."""
    _forkables.add(forkable)


@contextlib.contextmanager
def finished_before_exit() -> Iterator[None]:
    """Around a call of OpenCV that may run in a daemon thread: the process ends after it."""
    thread = threading.get_ident()
    _inside.add(thread)  # before looking whether the end has begun, which looks here
    try:
        if _ended_by not in (0, thread):
            _inside.discard(thread)
            time.sleep(DELAY)
            _inside.add(thread)
        yield
    finally:
        _inside.discard(thread)


def _before_fork() -> None:
    global _threads_at_fork
    _threads_at_fork = len(sys._current_frames())


def _in_child() -> None:
    if _threads_at_fork > 1:
        ignore_leaks()
    _inside.intersection_update({threading.get_ident()})
    for forkable in list(_forkables):
        forkable._after_fork()


def _at_exit() -> None:
    """Wait for what has to be finished.

    A daemon thread that still runs never releases what it holds: the bindings would report it as
    leaks, and leaks they are not. Without such threads leaks are reported.
    """
    global _ended_by
    _ended_by = threading.get_ident()
    if len(sys._current_frames()) > 1:
        ignore_leaks()
    end = time.monotonic() + LONGEST_WAIT
    while _inside - {_ended_by} and time.monotonic() < end:
        time.sleep(0.001)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
