"""Targets one after the other, each in a process of its own, and one line about each."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import NATIVE
from .child import BUILD, MEGABYTES, ROOT, WALL_SECONDS

LAST_LINES = 40
"""Of the output of a target that failed."""
SMALL = 4096
"""Bytes of a finding that is printed, in base64: then it does not get lost with the machine."""
SEEDS = ROOT / "tests" / "fuzz" / "corpus"
NATIVE_SEEDS = {"fuzz_jpeg": (ROOT / "tests" / "attacks" / "images", SEEDS / "images")}
ROOMY = 1 << 28
"""Bytes that a folder in memory must have free, for files of an input and a corpus."""
MEANING = {70: "too slow", 71: "too much memory", 77: "a crash or an exception"}
"""libFuzzer's exit codes."""


@dataclass(frozen=True)
class FuzzOutcome:
    """How the run of a target ended, from what libFuzzer prints."""

    name: str
    code: int
    seconds: float
    output: str

    def _number(self, pattern: str) -> int:
        found = re.findall(pattern, self.output)
        return int(found[-1]) if found else 0

    @property
    def executions(self) -> int:
        return self._number(r"number_of_executed_units:\s*(\d+)")

    @property
    def slowest(self) -> int:
        """Seconds of the slowest input."""
        return self._number(r"slowest_unit_time_sec:\s*(\d+)")

    @property
    def megabytes(self) -> int:
        return self._number(r"peak_rss_mb:\s*(\d+)")

    @property
    def edges(self) -> int:
        return self._number(r"\bcov: (\d+)")

    @property
    def verdict(self) -> str:
        if self.code == 0:
            return "skipped: no atheris" if "skipped:" in self.output else "ok"
        if "TooSlow" in self.output:
            return f"too slow (exit code {self.code})"
        return f"{MEANING.get(self.code, 'failed')} (exit code {self.code})"

    def line(self) -> str:
        return (
            f"{self.name:12} {self.executions:8} executions {self.edges:6} edges "
            f"{self.megabytes:5} MB {self.seconds:6.1f} s  {self.verdict}"
        )


@dataclass(frozen=True)
class FuzzLimits:
    """Attributes:
    seconds, runs: how long, and how many executions; -1: any number.
    seed: of the random numbers; 0: another one each time.
    check: what the check of the repository runs instead: changed seeds, the same ones each time.
    """

    seconds: int = 60
    runs: int = -1
    seed: int = 0
    check: bool = False


def run_target(name: str, limits: FuzzLimits, *, capture: bool = True) -> FuzzOutcome:
    """Fuzz a target in a process of its own, in a folder that goes when it ends.

    Args:
        capture: keep the output; False: let it be seen.
    """
    with tempfile.TemporaryDirectory(prefix="sparsedet-fuzz-", dir=_memory()) as folder:
        corpus = Path(folder) / "corpus" if limits.check else BUILD / "corpus" / name
        corpus.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        done = subprocess.run(
            _command(name, corpus, limits),
            cwd=ROOT,
            # The order of sets, so that equal runs are equal.
            env={**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": folder},
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture else None,
            text=True,
            errors="backslashreplace",
        )
        seconds = time.monotonic() - start
    return FuzzOutcome(name, done.returncode, seconds, done.stdout or "")


def _command(name: str, corpus: Path, limits: FuzzLimits) -> list[str]:
    options = {"max_total_time": limits.seconds, "runs": limits.runs, "seed": limits.seed}
    if name not in NATIVE:
        given = [name, str(corpus), json.dumps({} if limits.check else options)]
        return [sys.executable, "-m", "tests.fuzz.child", *given]
    options |= {"timeout": WALL_SECONDS, "rss_limit_mb": MEGABYTES, "print_final_stats": 1}
    if name == "fuzz_jpeg":
        # Of all kinds: without progressive ones a fuzzer does not find its way there.
        from native.fuzz_files import files

        for file, data in files().items():
            if file.endswith(".jpg"):
                (corpus / f"seed-{file}").write_bytes(data)
    seeds = [str(path) for path in (SEEDS / name, *NATIVE_SEEDS.get(name, ())) if path.is_dir()]
    return [
        *(str(BUILD / name), *(f"-{key}={value}" for key, value in options.items())),
        *(f"-artifact_prefix={BUILD}/{name}-", str(corpus), *seeds),
    ]


def _memory() -> str | None:
    """A folder in memory, if it is roomy: in a container it is often not."""
    shared = "/dev/shm"
    if not os.access(shared, os.W_OK) or shutil.disk_usage(shared).free < ROOMY:
        return None
    return shared


def explain(outcome: FuzzOutcome) -> str:
    """What is known of a failure: the last lines, and the finding itself if it is small."""
    lines = outcome.output.splitlines()[-LAST_LINES:]
    written = re.findall(r"Test unit written to (.+)", outcome.output)
    for path in map(Path, written[-1:]):
        lines.append(f"finding: {path}; --replay runs it again")
        if path.is_file() and path.stat().st_size <= SMALL:
            lines.append(f"base64: {base64.b64encode(path.read_bytes()).decode()}")
    return "\n".join(f"  {outcome.name}: {line}" for line in lines)


def run_all(names: Sequence[str], limits: FuzzLimits) -> int:
    """Run targets, print a line of each and what is known of a failure.

    Returns:
        Exit code: 0, or that of the first target that failed.
    """
    outcomes = []
    for name in names:
        outcomes.append(outcome := run_target(name, limits))
        print(outcome.line(), flush=True)
        if outcome.code:
            print(explain(outcome), flush=True)
    failed = [outcome for outcome in outcomes if outcome.code]
    executions = sum(outcome.executions for outcome in outcomes)
    print(f"{len(outcomes)} targets, {executions} executions, {len(failed)} failed")
    for outcome in failed:
        print(f"failed: {outcome.name}, {outcome.verdict}")
    return abs(failed[0].code) if failed else 0
