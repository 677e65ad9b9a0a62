"""A process that is killed before its Nth write, sync or rename: `-m helpers.kills N ...`."""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CALLS = ("write", "pwrite", "fsync", "rename", "replace", "unlink", "truncate", "ftruncate")
"""Functions of `os` that change the disk."""


def install(number: int) -> Callable[[], int]:
    """Kill this process before its `number`th change of the disk, 1...; 0: only count them.

    Returns:
        How many there were so far.
    """
    count = [0]

    def step() -> None:
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def stopping(call: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any, **named: Any) -> Any:
            step()
            return call(*arguments, **named)

        return stopped

    for name in CALLS:
        setattr(os, name, stopping(getattr(os, name)))
    opened = builtins.open

    def opening(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if any(letter in mode for letter in "wax+"):
            step()
        found = opened(file, mode, *arguments, **named)
        if "b" in mode and any(letter in mode for letter in "wax+"):
            return _Stopping(found, step)
        return found

    builtins.open = opening
    return lambda: count[0]


class _Stopping:
    """A binary file whose every write may be the last thing that happens, half of it done."""

    def __init__(self, file: Any, step: Callable[[], None]) -> None:
        self._file, self._step = file, step

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._file.write(memoryview(data)[:half])
        self._file.flush()
        self._step()
        self._file.write(memoryview(data)[half:])
        return len(data)

    def writelines(self, pieces: Any) -> None:
        for piece in pieces:
            self.write(piece)

    def __enter__(self) -> _Stopping:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def main() -> None:
    done = install(int(sys.argv[1]))
    from sparsedet.cli import main as command

    code = command(sys.argv[2:])
    print(f"changes: {done()}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
