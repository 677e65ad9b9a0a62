"""The examples in docstrings are what happens."""

from __future__ import annotations

import doctest
import importlib
import re
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


@pytest.mark.parametrize("page", ["inputs-outputs.md", "start.md", "recipes/video.md"])
def test_the_python_of_documents_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("supervision")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, {})
    printed = capsys.readouterr().out
    if page == "inputs-outputs.md":
        assert len(blocks) == 2 and (tmp_path / "found.csv").exists()
        assert "examples/beach.jpg <Detections in 640x427: 6 person" in printed
    elif page == "start.md":
        assert printed.count("person") == 6
    else:
        assert (tmp_path / "stream.jsonl").read_text().count("\n") == 2
