"""The CPUs: their name, and how many this process may use.

That is its affinity, and the CPU quota of its container. A quota is set on a control group
(cgroup); the kernel holds a process to the quotas of its own group and of all groups above it. More
threads than the quota allows would be stopped in the middle of a detection, over and over. Anything
that cannot be read sets no limit.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us, of version 1).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if name := re.search(r"^model name\s*:(.*)", text, re.MULTILINE):
            return name[1].strip()
    return platform.processor() or platform.machine()


def default_threads(root: str | os.PathLike[str] = "/") -> int:
    """Number of CPUs that this process may use; at least 1. A quota is rounded up: 1.5 gives 2.

    Args:
        root: folder that has `proc` and the control groups, for tests.
    """
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return min([len(affinity) or os.cpu_count() or 1, *_quotas(Path(root))])


def _quotas(root: Path) -> Iterator[int]:
    """Whole CPUs, rounded up, that each control group above this process allows it."""
    own = _own_groups(root)
    for version, mounted, mount_point in _mounts(root):
        if version not in own:
            continue
        # The mount may show a part of the tree only, as in a container.
        inside = _below(own[version], mounted) or PurePosixPath()
        for folder in (inside, *inside.parents):
            quota = _quota(root / mount_point.relative_to("/") / folder, version)
            if quota is not None:
                yield quota


def _own_groups(root: Path) -> dict[int, PurePosixPath]:
    """Version of control groups (1 or 2) -> path of the group of this process."""
    groups = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            groups[2] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            groups[1] = PurePosixPath(path)
    return groups


def _mounts(root: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """(version, mounted group, mount point) of each tree of control groups with CPU quotas."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        options = rest.split(" ")
        version = {"cgroup": 1, "cgroup2": 2}.get(options[0])
        paths = [PurePosixPath(_unescape(field)) for field in fields.split(" ")[3:5]]
        if version is None or len(paths) < 2 or not paths[1].is_absolute():
            continue
        if version == 2 or "cpu" in options[-1].split(","):
            yield version, paths[0], paths[1]


def _below(path: PurePosixPath, folder: PurePosixPath) -> PurePosixPath | None:
    """`path` relative to `folder`; None: it is not below it, or leaves it."""
    if not path.is_relative_to(folder):
        return None
    relative = path.relative_to(folder)
    return None if ".." in relative.parts else relative


def _quota(folder: Path, version: int) -> int | None:
    """Whole CPUs that a control group allows, rounded up; None: no limit."""
    if version == 2:
        numbers = (" ".join(_lines(folder / "cpu.max"))).split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = [line for name in names for line in _lines(folder / name)]
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or not what we know
        quota, period = map(int, numbers)
        if quota > 0:  # -1: no limit
            return max(1, -(-quota // period))
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()
    except (OSError, ValueError):
        return []


def _unescape(text: str) -> str:
    r"""A path of mountinfo, where a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
