"""What a result depends on beside the code: CPU, versions, commit, and the CPU's arithmetic peak.

Glossary: the peak is the number of f32 (or bf16) FLOPs a second, 2 a multiply-add, that a loop of
independent multiply-adds in registers reaches on all threads at once: the median of short bursts;
measured, not looked up.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sparsedet import _native
from sparsedet.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
_PACKAGES = ("numpy", "opencv-python-headless", "openvino", "nncf", "onnxruntime", "torch")


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The checked-out commit, with a + where sources were changed since; "" outside git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "src", "native", "benchmarks"
        )
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def versions() -> dict[str, str]:
    """Python, this package and those that it is compared with, as far as installed."""
    found = {"python": platform.python_version()}
    for package in ("sparsedet", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(isa: str, threads: int) -> dict[str, Any]:
    """The circumstances of a run, for its JSON file; also printed."""
    found = {
        "cpu": cpu_name(),
        "isa": _native.choose_isa(isa),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "commit": commit(),
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    listed = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{found['cpu']}, {found['isa']}, {threads} threads; commit {found['commit']}; {listed}")
    return found


def peak_gflops(isa: str, threads: int, precision: str = "f32", seconds: float = 0.3) -> float:
    """The arithmetic peak of `threads` threads at once, now; 0.0 without such a precision."""
    probes = {
        "f32": _native.peak_gflops,
        "bf16": _native.peak_gflops_bf16,
        "int8": _native.peak_gflops_int8,
    }
    return float(probes[precision](_native.choose_isa(isa), threads, seconds))


def bandwidth(threads: int) -> float:
    """Bytes a second, read and written, of all threads copying arrays that fit no cache, in 1e9."""
    source = np.ones((threads, 1 << 25), np.float32)  # 128 MB each
    target = np.empty_like(source)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.copyto, target, source))
            best = max(best, 2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a result, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode(), overwrite=True)
