"""Fuzz a target for some seconds: python -m tests.fuzz TARGET --seconds 60

Guided by the coverage of the Python code, by atheris (libFuzzer); the mutators know the formats. A
finding is a file in build/fuzz, and `--replay FILE` runs it again. `--until N` fuzzes targets in
turn until each has had N executions in all its runs; stopped, it goes on. `--check` is what the
check of the repository does: as many changed seeds as the target's table says,
the same ones each time. `--coverage` lists the lines of the reader that the corpus does not reach,
`--merge` keeps in tests/fuzz/corpus what adds to it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]


def main() -> int:
    arguments = _parser().parse_args()
    from fuzz import NAMES, NATIVE

    groups = {"all": NAMES, "native": NATIVE}
    names: tuple[str, ...] = groups.get(arguments.target, (arguments.target,))
    if unknown := set(names) - {*NAMES, *NATIVE}:
        known = ", ".join((*groups, *NAMES, *NATIVE))
        print(f"unknown target {unknown.pop()!r}, expected one of: {known}")
        return 2
    here = arguments.replay or arguments.coverage or arguments.merge
    if here and (set(names) & set(NATIVE) or (arguments.replay and len(names) > 1)):
        print(
            "--replay takes one Python target, --coverage and --merge take Python targets; a native"
        )
        print("fuzzer replays a file that is its argument")
        return 2
    if arguments.replay:
        from fuzz.child import run_once
        from fuzz.targets import TARGETS

        run_once(TARGETS[names[0]].run, arguments.replay.read_bytes())
        return 0
    if arguments.coverage or arguments.merge:
        from fuzz.coverage import merge, show

        for name in names:
            (show if arguments.coverage else merge)(name)
        return 0
    from fuzz.processes import FuzzLimits, run_all, run_target

    limits = FuzzLimits(arguments.seconds, arguments.runs, arguments.seed, arguments.check)
    if arguments.until:
        from fuzz.campaign import run_until

        totals = run_until(names, arguments.until, limits)
        return int(any(totals[name].failures for name in names))
    if len(names) > 1 or arguments.check:
        return run_all(names, limits)
    return run_target(names[0], limits, capture=False).code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a target of tests/fuzz/targets.py, all, or native")
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--runs", type=int, default=-1, help="how many executions; -1: any number")
    parser.add_argument("--until", type=int, metavar="N", help="go on until there were so many")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0: another one")
    parser.add_argument("--check", action="store_true", help="the same executions each time")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one file, and no other")
    parser.add_argument("--coverage", action="store_true", help="lines that the corpus reaches")
    parser.add_argument("--merge", action="store_true", help="keep what adds to the corpus")
    return parser


if __name__ == "__main__":
    sys.exit(main())
