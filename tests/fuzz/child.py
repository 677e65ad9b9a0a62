"""Fuzzes one target in this process, which libFuzzer ends; `processes` starts it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
"""Of each target the working corpus, which stays from run to run, and findings."""

SECONDS, MEGABYTES = 5, 1024
"""The most time of the CPU that an input may take, and the most memory beside that of the imported
modules."""
CHECK_SECONDS, CHECK_SEED = 25, 1
"""Of a check, which also runs on slow machines."""
WALL_SECONDS = 600
"""The longest by the clock, for loops that Python cannot interrupt; others may use the CPU."""


class TooSlow(BaseException):
    """An input took too long; no reader catches it."""


def run_once(run: Callable[[bytes], object], data: bytes) -> None:
    from sparsedet.errors import InputError

    try:
        run(data)
    except InputError as error:
        if "\n" in str(error) or not str(error):
            raise AssertionError(f"not one line: {str(error)!r}") from error


def _interrupt(number: int, frame: object) -> None:
    raise TooSlow("an input takes too much time")


def filled(folder: Path, name: str) -> Path:
    """A working corpus with the seeds of a target in it."""
    from fuzz.targets import seeds

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("seed-*"):
        old.unlink()
    for number, data in enumerate(seeds(name)):
        (folder / f"seed-{number:03}").write_bytes(data)
    return folder


def _limit_memory() -> None:
    """What is asked for counts, not only what is used: a small machine refuses what a large one
    gives, and an array of zeros takes nothing until somebody reads it."""
    if not os.path.exists("/proc/self/statm"):
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 * MEGABYTES << 20),) * 2)  # threads ask, too


def check(name: str) -> None:
    """Changed seeds, the same ones each time: libFuzzer's choices depend on the time of day."""
    from fuzz.targets import TARGETS, seeds

    target, rng = TARGETS[name], random.Random(CHECK_SEED)
    files = list(seeds(name))
    signal.signal(signal.SIGPROF, _interrupt)
    _limit_memory()
    digest = hashlib.sha256()
    for number in range(target.check_runs):
        data = files[number] if number < len(files) else rng.choice(files)
        for _ in range(rng.randint(1, 4) if number >= len(files) else 0):
            data = target.mutate(data, rng)[: 1 << 20]
        digest.update(data)
        signal.setitimer(signal.ITIMER_PROF, CHECK_SECONDS)
        try:
            run_once(target.run, data)
        except BaseException:
            BUILD.mkdir(parents=True, exist_ok=True)
            finding = BUILD / f"{name}-check-{hashlib.sha256(data).hexdigest()[:16]}"
            finding.write_bytes(data)
            traceback.print_exc()
            print(f"Test unit written to {finding}")
            sys.exit(77)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    print(f"digest: {digest.hexdigest()}")
    print(f"stat::number_of_executed_units: {target.check_runs}")
    print(f"stat::peak_rss_mb: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}")


def fuzz(name: str, corpus: Path, limits: dict[str, int]) -> None:
    """Never returns, unless atheris is missing.

    Args:
        corpus: a folder for the working corpus.
        limits: options of libFuzzer.
    """
    try:
        import atheris
    except ImportError:
        print("skipped: atheris is not installed (pip install atheris; Python 3.11 to 3.13)")
        return
    with atheris.instrument_imports(include=["sparsedet"], enable_loader_override=False):
        from fuzz.targets import TARGETS
    target = TARGETS[name]

    def change(data: bytes, most: int, number: int) -> bytes:
        return target.mutate(data, random.Random(number))[:most]

    def once(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            run_once(target.run, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    signal.signal(signal.SIGPROF, _interrupt)
    filled(corpus, name)
    BUILD.mkdir(parents=True, exist_ok=True)
    # libFuzzer counts the whole process, so OpenVINO's or torch's libraries too if they are loaded.
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    _limit_memory()
    settings = {
        "timeout": WALL_SECONDS,
        **limits,
        "rss_limit_mb": imported + MEGABYTES,
        "max_len": 1 << 20,
        "len_control": 0,
        "print_final_stats": 1,
        "verbosity": 1,
        "artifact_prefix": f"{BUILD}/{name}-",
    }
    given = [f"-{key}={value}" for key, value in settings.items()]
    atheris.Setup([name, *given, str(corpus)], once, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
    given = json.loads(sys.argv[3])
    fuzz(sys.argv[1], Path(sys.argv[2]), given) if given else check(sys.argv[1])
