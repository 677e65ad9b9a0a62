"""The default number of threads: affinity, and CPU quotas of control groups in a made-up tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparsedet.engine import default_threads

CPUS = 64
V2 = "30 23 0:26 {group} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {group} {at} rw,relatime shared:9 - cgroup cgroup rw,{controllers}"


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CPUS)), raising=False)


def tree(root: Path, cgroup: str, mounts: list[str], **quotas: str) -> Path:
    """A root folder with /proc/self and control groups; quotas: file -> content."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "\n".join(mounts) + "\n"}
    for name, content in (files | quotas).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def v2(root: Path, own: str = "/", group: str = "/", **quotas: str) -> int:
    at = "/sys/fs/cgroup"
    inside = {f"sys/fs/cgroup/{name}": content for name, content in quotas.items()}
    return default_threads(tree(root, f"0::{own}\n", [V2.format(group=group, at=at)], **inside))


def v1(root: Path, own: str = "/", group: str = "/", **quotas: str) -> int:
    at = "/sys/fs/cgroup/cpu,cpuacct"
    inside = {f"sys/fs/cgroup/cpu,cpuacct/{name}": value for name, value in quotas.items()}
    mounts = [
        V1.format(group="/", at="/sys/fs/cgroup/memory", controllers="memory"),
        V1.format(group=group, at=at, controllers="cpu,cpuacct"),
    ]
    cgroup = f"5:memory:/elsewhere\n4:cpu,cpuacct:{own}\n1:name=systemd:/x\n0::/\n"
    return default_threads(tree(root, cgroup, mounts, **inside))


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        ("max 100000\n", CPUS),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("1000 100000\n", 1),
        ("6400000 100000\n", CPUS),
        ("99999999 100000\n", CPUS),
        ("50000 20000\n", 3),
        # What no kernel writes sets no limit.
        ("", CPUS),
        ("100000 0\n", CPUS),
        ("0 100000\n", CPUS),
        ("-5 100000\n", CPUS),
        ("1 2 3\n", CPUS),
        ("two of them\n", CPUS),
    ],
)
def test_version_2(tmp_path: Path, content: str, threads: int) -> None:
    assert v2(tmp_path, **{"cpu.max": content}) == threads


@pytest.mark.parametrize(
    ("quota", "period", "threads"),
    [
        ("-1", "100000", CPUS),
        ("200000", "100000", 2),
        ("250000", "100000", 3),
        ("1000", "100000", 1),
        ("", "", CPUS),
        ("100000", "0", CPUS),
    ],
)
def test_version_1(tmp_path: Path, quota: str, period: str, threads: int) -> None:
    files = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}
    assert v1(tmp_path, **files) == threads


def test_a_quota_of_a_group_above_counts(tmp_path: Path) -> None:
    quotas = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}
    assert v2(tmp_path / "above", "/a/b/c", **quotas) == 3
    quotas["a/b/cpu.max"] = "200000 100000"
    assert v2(tmp_path / "between", "/a/b/c", **quotas) == 2
    quotas["a/b/c/cpu.max"] = "900000 100000"
    assert v2(tmp_path / "own", "/a/b/c", **quotas) == 2
    assert v2(tmp_path / "sibling", "/x", **quotas) == CPUS


def test_a_container_sees_a_part_of_the_tree(tmp_path: Path) -> None:
    """Its own group is the mount point; the path in /proc is of the host, or of its namespace."""
    quotas = {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}
    assert v1(tmp_path / "host", "/docker/7f", "/docker/7f", **quotas) == 4
    assert v1(tmp_path / "whole", "/docker/7f", "/", **quotas) == 4
    assert v1(tmp_path / "outside", "/../other", "/docker/7f", **quotas) == 4
    inner = {"inner/cpu.max": "100000 100000", "cpu.max": "400000 100000"}
    assert v2(tmp_path / "inner", "/docker/7f/inner", "/docker/7f", **inner) == 1
    assert v2(tmp_path / "escape", "/docker/7f/../../inner", "/docker/7f", **inner) == 4


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    at = {2: "/sys/fs/cgroup/unified", 1: r"/sys/fs/cgroup/with\040space"}
    mounts = [
        V2.format(group="/", at=at[2]),
        V1.format(group="/", at=at[1], controllers="cpu"),
    ]
    files = {
        "sys/fs/cgroup/unified/a/cpu.max": "700000 100000",
        "sys/fs/cgroup/with space/b/cpu.cfs_quota_us": "500000",
        "sys/fs/cgroup/with space/b/cpu.cfs_period_us": "100000",
    }
    root = tree(tmp_path, "1:cpu:/b\n0::/a\n", mounts, **files)
    assert default_threads(root) == 5


def test_what_cannot_be_read_sets_no_limit(tmp_path: Path) -> None:
    assert default_threads(tmp_path / "nothing") == CPUS
    assert (
        default_threads(tree(tmp_path / "odd", "0\n:\n\n7:cpu", ["", "- - -", " - cgroup2"]))
        == CPUS
    )
    folder = tmp_path / "folder"
    tree(folder, "0::/\n", [V2.format(group="/", at="/sys")], **{"sys/cpu.max/x": ""})
    assert default_threads(folder) == CPUS


def test_affinity_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert v2(tmp_path / "more", **{"cpu.max": "900000 100000"}) == 2
    assert v2(tmp_path / "less", **{"cpu.max": "100000 100000"}) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads(tmp_path / "nothing") == 1
