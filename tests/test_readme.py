"""What the README shows is what happens."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_transcript_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    transcript = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    example = doctest.DocTestParser().get_doctest(transcript, {}, "README", "README.md", 0)
    printed: list[str] = []
    # Another instruction set may round the last digit of a box otherwise: numbers are left out.
    runner = doctest.DocTestRunner(checker=NamesAlone(), optionflags=doctest.NORMALIZE_WHITESPACE)
    failed, tried = runner.run(example, out=printed.append)
    assert tried >= 5 and not failed, "".join(printed)


class NamesAlone(doctest.OutputChecker):
    """Compares the words of each line, and how many lines there are."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return [line.split()[:1] for line in want.splitlines()] == [
            line.split()[:1] for line in got.splitlines()
        ]


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) < 120
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_its_commands_are_those_of_the_program() -> None:
    from sparsedet.cli import build_parser

    (choices,) = (a.choices for a in build_parser()._actions if isinstance(a.choices, dict))
    listed = README[README.index("explains each:") :].split(". ", 1)[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(choices)
