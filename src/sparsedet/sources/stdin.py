"""Standard input: an image, a video, or JPEGs one after the other, as a camera's program writes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import InputError
from .frame import BadFrame, Frame, Limits, Part


class StdinPart(Part):
    """Standard input, named `-`."""

    def __init__(
        self, every: int = 1, limits: Limits | None = None, keep_damaged: bool = False
    ) -> None:
        super().__init__("stdin")
        self.once = True
        self.every, self.limits, self.keep_damaged = every, limits or Limits(), keep_damaged

    def count(self) -> int | None:
        return None

    def read(self) -> Iterator[Frame | BadFrame]:
        from .url import read_unknown  # urllib.request takes 15 ms

        stream = getattr(sys.stdin, "buffer", None)
        try:
            if stream is None or stream.isatty():
                raise InputError("standard input is a terminal, expected an image or a stream")
            yield from read_unknown(
                _reader(stream), self.name, self.every, self.limits, self.keep_damaged, stream=True
            )
        except InputError as error:
            yield BadFrame(self.name, error)
        except OSError as error:
            what = InputError(f"stdin: cannot be read ({error.strerror or error})")
            yield BadFrame(self.name, what)


def _reader(stream: Any) -> Callable[[int], bytes]:
    """The bytes of a stream, without its buffer: a thread that waits for more would hold the
    buffer's lock, and Python aborts where it needs that lock to end."""
    try:
        number = stream.fileno()
    except (OSError, io.UnsupportedOperation):  # a test's, or a notebook's
        reader: Callable[[int], bytes] = stream.read1
        return reader
    return lambda count: os.read(number, count)
