"""`sparsedet env`: what it says, and that nothing stops it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Run

import sparsedet
from sparsedet.choices import EMBEDDED


def told(run: Run) -> dict[str, str]:
    outcome = run("env")
    assert outcome.code == 0 and outcome.err == ""
    lines = [line.split("  ", 1) for line in outcome.out.splitlines()]
    return {name: text.strip() for name, text in lines}


def test_it_says_what_a_bug_report_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE", "/some/where")
    said = told(run)
    assert said["sparsedet"].startswith(sparsedet.__version__)
    assert said["python"].startswith(platform.python_version())
    assert said["cache"] == said["SPARSEDET_CACHE"] == "/some/where"
    assert said["threads"].endswith(f"of {os.cpu_count()} CPUs")
    assert said["instruction sets"].split(", ") == sparsedet.available_isas()
    assert any(said["in use"].startswith(f"{isa}, with f32") for isa in sparsedet.available_isas())
    assert said["numpy"] == importlib.metadata.version("numpy")
    assert said["CPU"] and said["embedded models"].split(", ") == list(EMBEDDED)


def test_nothing_stops_it(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(*_: Any) -> Any:
        raise RuntimeError("no home")

    errors = iter([importlib.metadata.PackageNotFoundError(), OSError(), KeyError("Version")])

    def version(name: str) -> str:
        for error in errors:
            raise error
        return "1"

    monkeypatch.setenv("SPARSEDET_ISA", "mmx")
    monkeypatch.delenv("SPARSEDET_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", gone)
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr(
        "sparsedet.detector.embedded_model", lambda name: tmp_path / "models" / name
    )
    monkeypatch.setattr("builtins.open", gone_file(open))
    said = told(run)
    assert "'mmx'" in said["in use"] and said["SPARSEDET_ISA"] == "mmx"
    assert "no home folder" in said["cache"] and said["embedded models"].endswith("(missing)")
    assert said["numpy"] == "not installed" and "damaged" in said["opencv-python"]
    assert said["CPU"]


def gone_file(real: Any) -> Any:
    def opened(path: Any, *arguments: Any, **settings: Any) -> Any:
        if path == "/proc/cpuinfo":
            raise FileNotFoundError(path)
        return real(path, *arguments, **settings)

    return opened
