"""How much memory this process may still take, as far as the system says it."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that are free or can be freed, within the limit of the process's container.

    None: the system does not say it, as outside of Linux. A container's limit is that of the
    control group (version 1 or 2) which the process sees as its root.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(1024 * _numbers(_SYSTEM)["MemAvailable:"])
    for limit, used, parts in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max": there is no limit
            taken = int((_GROUP / used).read_text())
            kept = _numbers(_GROUP / parts)  # of files: it is freed for whoever needs it
            taken -= kept["inactive_file"] + kept["active_file"]
            found.append(max(int((_GROUP / limit).read_text()) - taken, 0))
    return min(found, default=None)


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


class PromisedMemory:
    """Memory that engines of this process planned with and have not written yet.

    The system counts memory once it is written: streams that plan at the same time would each find
    the same bytes free.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._bytes: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def plan(self, owner: object, taken: Callable[[], int]) -> Iterator[int | None]:
        """The bytes that `owner` may plan with; None: not known. One plans at a time.

        Args:
            taken: the bytes that it has: those of before are released, those after are promised.
        """
        with self._lock:
            free = available_memory()
            if free is not None:
                free += 0 if owner in self._bytes else taken()
                free -= sum(size for other, size in self._bytes.items() if other is not owner)
            yield None if free is None else max(free, 0)
            self._bytes[owner] = taken()

    def written(self, owner: object) -> None:
        """The system counts the memory of `owner` from now on."""
        if owner in self._bytes:  # at its first run alone
            with self._lock:
                self._bytes.pop(owner, None)
