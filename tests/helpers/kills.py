"""A process that is killed before its Nth write, sync or rename: `-m helpers.kills N ...`.

The rest is a command of the package, or `run=NAME` and arguments of a function of this file.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("write", "pwrite", "fsync", "rename", "replace", "unlink", "truncate", "ftruncate")
"""Functions of `os` that change the disk."""


count, last = 0, 0
"""Changes of the disk so far, and that before which the process ends; 0: none."""


def step() -> None:
    """A change of the disk comes."""
    global count
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)


def install(number: int) -> None:
    """Kill this process before its `number`th change of the disk, 1...; 0: only count them."""
    global last
    last = number

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
            return _Stopping(found)
        return found

    builtins.open = opening


class _Stopping:
    """A binary file whose every write may be the last thing that happens, half of it done."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._file.write(memoryview(data)[:half])
        self._file.flush()
        step()
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


def download(url: str, digest: str, size: str, target: str) -> int:
    """A file of a server, which disconnects now and then."""
    from sparsedet.hub.catalogue import RemoteFile
    from sparsedet.hub.fetch import RetryPolicy, fetch

    policy = RetryPolicy(attempts=4, pause=0.001, max_pause=0.01)
    fetch(RemoteFile(url, digest, int(size)), Path(target), policy=policy)
    return 0


def video(target: str) -> int:
    """An annotated video; its library writes by itself, so each frame counts as a change."""
    from sparsedet.sinks.video import VideoFile
    from sparsedet.testing import rectangles_on_noise

    file = VideoFile(Path(target), 25.0, overwrite=True)
    for number in range(40):
        step()
        file.write(rectangles_on_noise(96, 128, seed=number), None)
    step()
    file.close()
    return 0


RUNS: dict[str, Callable[..., int]] = {"download": download, "video": video}


def main() -> None:
    install(int(sys.argv[1]))
    kind, _, name = sys.argv[2].partition("=")
    if kind == "run":
        code = RUNS[name](*sys.argv[3:])
    else:
        from sparsedet.cli import main as command

        code = command(sys.argv[2:])
    print(f"changes: {count}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
