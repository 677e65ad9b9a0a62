"""Result files of benchmarks: where they lie, and the conditions that stand in each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sparsedet.benchmark import machine
from sparsedet.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


def commit() -> str:
    """The checked-out commit, with a + if sources have changed since; "" outside git."""

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


def describe(isa: str, threads: int) -> dict[str, Any]:
    """The conditions of a run, for its JSON file; also printed."""
    found = {
        **machine.conditions(isa, threads),
        "commit": commit(),
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    listed = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{found['cpu']}, {found['isa']}, {threads} threads; commit {found['commit']}; {listed}")
    rates = found["cycle_rates"]
    print(
        f"one core in a cycle at present: {rates['vector_loads']:.2f} vector loads, "
        f"{rates['multiply_adds']:.2f} vector multiply-adds"
    )
    return found


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a result as JSON; an older one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode(), overwrite=True)
