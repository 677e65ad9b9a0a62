"""`sparsedet cache`: what is listed, cleared, and left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import Run, tree

from sparsedet.detector import Detector
from sparsedet.hub.catalogue import CATALOGUE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Path) -> Path:
    """A cache with packed weights, a download, and files of other programs."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPARSEDET_CACHE", str(folder))
    Detector.load(small_model, threads=1, cache=True)
    name, entry = next(iter(CATALOGUE.items()))
    (folder / name).mkdir()
    (folder / name / entry.files[0].name).write_bytes(b"x" * 2_000_000)
    (folder / "packed" / "notes.txt").write_text("mine")
    (folder / "other").mkdir()
    (folder / "other" / "data.bin").write_bytes(b"y")
    return folder


def test_files_are_listed_with_sizes(cache: Path, run: Run) -> None:
    lines = run("cache").out.splitlines()
    assert lines[0] == str(cache)
    assert lines[1].startswith("packed weights: 1 files, ")
    assert lines[3] == "downloads: 1 files, 2.0 MB" and " used 2" in lines[4]


@pytest.mark.parametrize(("what", "left"), [("packed", 3), ("downloads", 3), ("all", 2)])
def test_what_is_asked_for_is_cleared_and_nothing_else(
    cache: Path, run: Run, what: str, left: int
) -> None:
    before = {name for name, data in tree(cache).items() if data is not None}
    assert len(before) == 4
    assert run("cache", "--clear", what).code == 0
    after = {name for name, data in tree(cache).items() if data is not None}
    assert len(after) == left
    assert {"other/data.bin", "packed/notes.txt"} <= after


def test_a_cache_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE", str(tmp_path / "none"))
    outcome = run("cache")
    assert outcome.code == 0 and "packed weights: 0 files, 0.0 MB" in outcome.out
    assert not (tmp_path / "none").exists()
