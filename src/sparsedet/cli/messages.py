"""What a command says on stderr: lines, warnings, and how far it is."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable


def complain(what: object) -> None:
    """One line on stderr."""
    _tell(f"sparsedet: {' '.join(str(what).splitlines())}\n")


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or a full disk
        print(text, end="", file=sys.stderr, flush=True)


def warn(lines: Iterable[str]) -> None:
    """Each as a warning on stderr."""
    for line in lines:
        complain(f"warning: {line}")


class Progress:
    """How far a command is: a bar on a terminal, a plain line every ten seconds elsewhere.

    Args:
        what: the name before the bar.
        unit: of the numbers; "MB" shows bytes as megabytes.

    An instance is a callback: progress(done, total), total None where it is not known.
    """

    def __init__(self, what: str = "", unit: str = "images") -> None:
        self.what, self.unit = what, unit
        self.terminal = sys.stderr.isatty()
        self.started = self.shown = time.monotonic()
        self.first: int | None = None
        self.open = False

    def __call__(self, done: int, total: int | None = None, what: str | None = None) -> None:
        now = time.monotonic()
        if what is not None and what != self.what:  # the next file
            self.end()
            self.what, self.started, self.first = what, now, None
        self.first = done if self.first is None else self.first
        last = done == total
        if now - self.shown < (0.1 if self.terminal else 10) and not (last and self.terminal):
            return
        self.shown = now
        text = self._text(done, total, now)
        if self.terminal:
            _tell(f"\r\x1b[K{text}")
            self.open = True
            if last:
                self.end()
        else:
            complain(text)

    def _text(self, done: int, total: int | None, now: float) -> str:
        size = 1e6 if self.unit == "MB" else 1
        digits = 1 if self.unit == "MB" else 0
        rate = (done - (self.first or 0)) / max(now - self.started, 1e-3)
        text = f"{self.what} " if self.what else ""
        if total:
            left = (total - done) / rate if rate else 0
            text += f"[{'#' * (30 * done // total):<30}] {done / size:.{digits}f} of "
            text += f"{total / size:.{digits}f} {self.unit}  {rate / size:.1f}/s"
            return f"{text}  {left // 60:02.0f}:{left % 60:02.0f} left"
        return f"{text}{done / size:.{digits}f} {self.unit}  {rate / size:.1f}/s"

    def hide(self) -> None:
        """Clear the bar's line for one of another kind; the next call shows the bar again."""
        if self.open:
            _tell("\r\x1b[K")
        self.open = False

    def note(self, line: str) -> None:
        """A line for the user, apart from the bar."""
        self.end()
        complain(line)

    def end(self) -> None:
        """Leave the bar's line."""
        if self.open:
            _tell("\n")
        self.open = False
