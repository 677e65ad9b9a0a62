"""What one command did, and what a refusal looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# As on a desktop: in the C locale Python lets any bytes through, and containers often ask for
# unbuffered output.
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONUNBUFFERED": ""}
MAIN = "import sys; from sparsedet.cli import main; sys.exit(main(sys.argv[1:]))"


def python(program: str, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, env=ENVIRONMENT)


class Outcome:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Outcome]
"""A command, run in this process."""


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content; folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(outcome: Outcome, *words: str, code: int = 1) -> None:
    """One line on stderr that holds `words`, nothing on stdout, and the exit code."""
    assert outcome.code == code and outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sparsedet: "), outcome.err
    for word in words:
        assert word in lines[0], lines[0]
