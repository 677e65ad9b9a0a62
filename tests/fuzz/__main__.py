"""Fuzz a target for some seconds: python -m tests.fuzz TARGET --seconds 60

Guided by the coverage of the Python code, by atheris (libFuzzer); the mutators know the formats. A
finding is a file in build/fuzz, and `--replay FILE` runs it again. `--coverage` lists the lines of
the reader that the corpus does not reach, `--merge` keeps in tests/fuzz/corpus what adds to it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fuzz"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

SECONDS, MEGABYTES = 5, 1024
"""The longest that an input may take, and the most memory."""
LARGEST = 8192
"""Bytes of a file in the corpus of the repository."""


def main() -> int:
    arguments = _parser().parse_args()
    from fuzz import NAMES

    names = NAMES if arguments.target == "all" else (arguments.target,)
    if unknown := set(names) - set(NAMES):
        print(f"unknown target {unknown.pop()!r}, expected one of: all, {', '.join(NAMES)}")
        return 2
    if arguments.replay:
        from fuzz.targets import TARGETS

        _run(TARGETS[names[0]].run, arguments.replay.read_bytes())
        return 0
    if arguments.coverage:
        return max(_coverage(name) for name in names)
    if arguments.merge:
        return max(_merge(name) for name in names)
    if len(names) > 1:  # each in a process of its own: libFuzzer ends its own
        given = ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
        codes = [
            subprocess.run([sys.executable, "-m", "tests.fuzz", name, *given], cwd=ROOT).returncode
            for name in names
        ]
        return max(map(abs, codes))
    _fuzz(names[0], arguments.seconds, arguments.runs, arguments.seed)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a target of tests/fuzz/targets.py, or all")
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--runs", type=int, default=-1, help="how many executions; -1: any number")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0: another one")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one file, and no other")
    parser.add_argument("--coverage", action="store_true", help="lines that the corpus reaches")
    parser.add_argument("--merge", action="store_true", help="keep what adds to the corpus")
    return parser


def _run(run: object, data: bytes) -> None:
    from sparsedet.errors import InputError

    assert callable(run)
    try:
        run(data)
    except InputError as error:
        if "\n" in str(error) or not str(error):
            raise AssertionError(f"not one line: {str(error)!r}") from error


def _folder(name: str) -> Path:
    """The working corpus: seeds, and what runs find; it stays for the next run."""
    from fuzz.targets import seeds

    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (folder / f"seed-{number:03}").write_bytes(data)
    return folder


def _fuzz(name: str, seconds: int, runs: int, seed: int) -> None:
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
        _run(target.run, data)

    settings = {
        "max_total_time": seconds,
        "runs": runs,
        "seed": seed,
        "timeout": SECONDS,
        "rss_limit_mb": MEGABYTES,
        "max_len": 1 << 20,
        "len_control": 0,
        "print_final_stats": 1,
        "verbosity": 1,
        "artifact_prefix": f"{BUILD}/{name}-",
    }
    given = [f"-{key}={value}" for key, value in settings.items()]
    atheris.Setup([name, *given, str(_folder(name))], once, custom_mutator=change)
    atheris.Fuzz()


def _coverage(name: str) -> int:
    from fuzz.coverage import SOURCE, measure
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    inputs = [path.read_bytes() for path in sorted(_folder(name).iterdir())]
    found = measure(target.run, inputs, target.reader)
    all_lines = sum(len(lines) for lines, _ in found.values())
    ran = sum(len(reached) for _, reached in found.values())
    print(f"{name}: {ran} of {all_lines} lines, {100 * ran / all_lines:.0f} %")
    for file, (lines, reached) in found.items():
        if missed := sorted(lines - reached):
            print(f"  {file.relative_to(SOURCE)}: {', '.join(map(str, missed))}")
    return 0


def _merge(name: str) -> int:
    """Greedily, smallest first: a file stays in the repository if it reaches a line or a branch of
    the reader that no seed and no smaller file does."""
    from fuzz.coverage import measure
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    kept = HERE / "corpus" / name
    with tempfile.TemporaryDirectory() as empty:
        if kept.exists():
            shutil.move(str(kept), empty)
    paths = list(_folder(name).iterdir())
    seeds = [path.read_bytes() for path in paths if path.name.startswith("seed-")]
    others = [path.read_bytes() for path in paths if not path.name.startswith("seed-")]

    def lines(inputs: list[bytes]) -> set[tuple[str, int]]:
        found = measure(target.run, inputs, target.reader)
        return {(str(file), line) for file, (_, reached) in found.items() for line in reached}

    reached = lines(seeds)
    kept.mkdir(parents=True)
    for data in sorted(others, key=len):
        if len(data) <= LARGEST and (new := lines([data]) - reached):
            reached |= new
            (kept / f"{len(list(kept.iterdir())):03}").write_bytes(data)
    print(f"{name}: {len(list(kept.iterdir()))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
