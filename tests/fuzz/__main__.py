"""Fuzz a target for some seconds: python -m tests.fuzz TARGET --seconds 60

Guided by the coverage of the Python code, by atheris (libFuzzer); the mutators know the formats. A
finding is a file in build/fuzz, and `--replay FILE` runs it again. `--check` is what the check of
the repository does: executions as many as the target's table says, from its seeds alone, the same
ones each time. `--coverage` lists the lines of the reader that the corpus does not reach, `--merge`
keeps in tests/fuzz/corpus what adds to it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

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
        from fuzz.child import run_once
        from fuzz.targets import TARGETS

        run_once(TARGETS[names[0]].run, arguments.replay.read_bytes())
        return 0
    if arguments.coverage:
        return max(_coverage(name) for name in names)
    if arguments.merge:
        return max(_merge(name) for name in names)
    from fuzz.processes import Limits, run_all, run_target

    limits = Limits(arguments.seconds, arguments.runs, arguments.seed, arguments.check)
    if len(names) > 1 or arguments.check:
        return run_all(names, limits)
    return run_target(names[0], limits, capture=False).code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a target of tests/fuzz/targets.py, or all")
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--runs", type=int, default=-1, help="how many executions; -1: any number")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0: another one")
    parser.add_argument("--check", action="store_true", help="the same executions each time")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one file, and no other")
    parser.add_argument("--coverage", action="store_true", help="lines that the corpus reaches")
    parser.add_argument("--merge", action="store_true", help="keep what adds to the corpus")
    return parser


def _coverage(name: str) -> int:
    from fuzz.child import BUILD, filled
    from fuzz.coverage import SOURCE, measure
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    inputs = [path.read_bytes() for path in sorted(filled(BUILD / name, name).iterdir())]
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
    from fuzz.child import BUILD, filled
    from fuzz.coverage import measure
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    kept = HERE / "corpus" / name
    with tempfile.TemporaryDirectory() as empty:
        if kept.exists():
            shutil.move(str(kept), empty)
    paths = list(filled(BUILD / name, name).iterdir())
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
