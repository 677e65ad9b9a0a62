"""What is said of a target that failed; and equal runs are equal."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from fuzz.processes import FuzzLimits, FuzzOutcome, explain, run_target

DONE = """\
#9	INITED cov: 53 ft: 53 corp: 1/1b exec/s: 0 rss: 88Mb
#4096	NEW    cov: 210 ft: 300 corp: 9/99b exec/s: 2048 rss: 90Mb
stat::number_of_executed_units: 5000
stat::slowest_unit_time_sec:    2
stat::peak_rss_mb:              97
"""


def test_a_line_says_what_a_target_did() -> None:
    outcome = FuzzOutcome("coco", 0, 3.25, DONE)
    assert (outcome.executions, outcome.edges, outcome.megabytes, outcome.slowest) == (
        *(5000, 210, 97, 2),
    )
    assert outcome.line().split() == (
        ["coco", "5000", "executions", "210", "edges", "97", "MB", "3.2", "s", "ok"]
    )


@pytest.mark.parametrize(
    ("code", "meaning"), [(70, "too slow"), (71, "too much memory"), (77, "exception")]
)
def test_a_failure_says_its_kind_and_shows_the_finding(
    code: int, meaning: str, tmp_path: Path
) -> None:
    finding = tmp_path / "crash-1"
    finding.write_bytes(b"\0bad")
    early = [f"early {n}" for n in range(100)]
    output = "\n".join([*early, "KeyError: 'x'", f"Test unit written to {finding}"])
    outcome = FuzzOutcome("coco", code, 1.0, output)
    assert meaning in outcome.line()
    said = explain(outcome)
    assert "KeyError: 'x'" in said and str(finding) in said and "early 9\n" not in said
    assert base64.b64encode(b"\0bad").decode() in said
    finding.write_bytes(bytes(10_000))
    assert "base64" not in explain(outcome)


@pytest.mark.slow
def test_a_check_repeats_itself() -> None:
    said = [run_target("settings", FuzzLimits(check=True)) for _ in range(2)]
    assert all(outcome.code == 0 and outcome.executions > 1000 for outcome in said)
    digests = [re.findall("digest: (.+)", outcome.output) for outcome in said]
    assert digests[0] == digests[1] and digests[0]
