"""The examples in docstrings are what happens."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sparsedet"

MODULES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8") and path != SOURCE / "__init__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0 and found.failed == 0


def test_the_public_names_have_examples() -> None:
    assert {"sparsedet.detector", "sparsedet.sources", "sparsedet.sinks"} <= set(MODULES)
    assert "sparsedet.detections" in MODULES


def test_the_python_of_inputs_and_outputs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("supervision")
    text = (ROOT / "docs" / "inputs-outputs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, {})
    assert len(blocks) == 2 and (tmp_path / "found.csv").exists()
    assert "examples/beach.jpg <Detections in 640x427: 5 person" in capsys.readouterr().out


def test_the_flags_of_inputs_and_outputs_exist() -> None:
    from sparsedet.cli import build_parser

    text = (ROOT / "docs" / "inputs-outputs.md").read_text(encoding="utf-8")
    commands = [line for line in re.findall(r"^(?:.*\| )?sparsedet (detect .*)$", text, re.M)]
    assert len(commands) >= 6
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)).images
