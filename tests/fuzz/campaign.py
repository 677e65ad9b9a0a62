"""Fuzzing until a target has had so many executions: it can be stopped, and goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .child import BUILD
from .processes import FuzzLimits, FuzzOutcome, explain, run_target

TOTALS = BUILD / "totals.json"


@dataclass(frozen=True)
class Total:
    """What all runs of a target together did.

    Attributes:
        edges: the most that a run reached; the working corpus keeps them.
        megabytes: the most memory, that of imported libraries included.
        slowest: whole seconds of the slowest input.
        failures: runs that ended with a finding.
    """

    executions: int = 0
    edges: int = 0
    megabytes: int = 0
    slowest: int = 0
    failures: int = 0

    def __add__(self, outcome: FuzzOutcome) -> Total:
        return Total(
            self.executions + outcome.executions,
            max(self.edges, outcome.edges),
            max(self.megabytes, outcome.megabytes),
            max(self.slowest, outcome.slowest),
            self.failures + bool(outcome.code),
        )


def load_totals(path: Path = TOTALS) -> dict[str, Total]:
    if not path.exists():
        return {}
    return {name: Total(**values) for name, values in json.loads(path.read_text()).items()}


def run_until(
    names: Sequence[str], executions: int, limits: FuzzLimits, path: Path = TOTALS
) -> dict[str, Total]:
    """Run each target in turn, until all have had `executions`; totals are kept after each run.

    A target that finds something, or that ran nothing, is left out of the next turns.
    """
    totals, left, turn = load_totals(path), list(names), 0
    while left := [n for n in left if totals.get(n, Total()).executions < executions]:
        turn += 1
        for name in list(left):
            before = totals.get(name, Total())
            most = executions - before.executions
            seed = limits.seed and limits.seed + turn
            outcome = run_target(name, replace(limits, runs=most, seed=seed))
            totals[name] = before + outcome
            print(f"{outcome.line()}, {totals[name].executions} in all", flush=True)
            if outcome.code:
                print(explain(outcome), flush=True)
            if outcome.code or not outcome.executions:
                left.remove(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path.with_suffix(".new")
            written.write_text(json.dumps({n: asdict(t) for n, t in totals.items()}, indent=1))
            written.replace(path)
    return totals
