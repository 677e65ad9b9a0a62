"""Shell completion, as a shell has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import Run, refused

from sparsedet.cli import COMMANDS
from sparsedet.cli.completion import SHELLS

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
function=$(complete -p sparsedet | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(run: Run, tmp_path: Path) -> Path:
    pytest.importorskip("shtab")
    outcome = run("--print-completion", "bash")
    assert outcome.code == 0 and not outcome.err
    path = tmp_path / "sparsedet.bash"
    path.write_text(outcome.out)
    return path


def answers(script: Path, *words: str, folder: Path | None = None) -> set[str]:
    """What bash offers behind the words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    command = [bash, "--norc", "-c", ASK, "bash", str(script), "sparsedet", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_commands_flags_and_choices_are_completed(script: Path) -> None:
    assert answers(script, "de") == {"detect"}
    assert len(answers(script, "")) >= len(COMMANDS)
    assert answers(script, "detect", "--score-t") == {"--score-threshold"}
    assert answers(script, "export", "--dtype", "float1") == {"float16"}
    assert "--no-picture" not in answers(script, "detect", "--no")  # an old spelling


def test_files_are_completed(script: Path, tmp_path: Path) -> None:
    (tmp_path / "street.jpg").touch()
    assert "street.jpg" in answers(script, "detect", "stre", folder=tmp_path)
    assert "street.jpg" in answers(script, "detect", "--model", "stre", folder=tmp_path)


def test_every_shell_has_a_script(run: Run) -> None:
    pytest.importorskip("shtab")
    for shell in SHELLS:
        outcome = run("--print-completion", shell)
        assert outcome.code == 0 and "quantize" in outcome.out
    assert run("--print-completion", "sh").code == 2


def test_without_shtab_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    refused(run("--print-completion", "bash"), "pip install 'sparsedet[completion]'")
