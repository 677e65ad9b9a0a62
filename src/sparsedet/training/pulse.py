"""A sign of life of a long run: a line wherever the run itself has said nothing for a while."""

from __future__ import annotations

import threading
import time
from types import TracebackType


class Pulse:
    """Prints what a run does at present, while it is silent.

    Args:
        first: seconds to the first line.
        every: seconds without a line after which the next one comes.

    Attributes:
        doing: what the run does at present, in words.
        silent: whether something else shows it, as a progress bar on a terminal.
    """

    def __init__(self, first: float = 5.0, every: float = 45.0) -> None:
        self.first, self.every = first, every
        self.doing, self.silent = "starting", False
        self._spoken = 0.0
        self._waited = first
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def spoke(self) -> None:
        """A line was printed just now."""
        self._spoken, self._waited = time.monotonic(), self.every

    def __enter__(self) -> Pulse:
        self._spoken = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        began = time.monotonic()
        while not self._end.wait(min(1.0, self.first / 4)):
            now = time.monotonic()
            if not self.silent and now - self._spoken >= self._waited:
                try:
                    print(f"{self.doing} ({now - began:.0f} s since the start)", flush=True)
                except (OSError, ValueError):  # stdout is closed, which the run will find itself
                    return
                self.spoke()
