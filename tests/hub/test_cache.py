"""The cache of published models: what is listed, what is removed, what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparsedet.errors import InputError
from sparsedet.files import cache_folder
from sparsedet.hub import catalogue
from sparsedet.hub.cache import is_cached, list_cached, remove_cached
from sparsedet.hub.catalogue import CatalogueEntry, RemoteFile


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one complete model, one broken download and files of other origin."""
    entries = {
        name: CatalogueEntry(
            name,
            "MIT",
            tuple(RemoteFile(f"https://models.invalid/{file}", "md5:00") for file in files),
        )
        for name, files in (("net", ("net.xml", "net.bin")), ("weights", ("weights.pth",)))
    }
    monkeypatch.setattr(catalogue, "CATALOGUE", entries)
    monkeypatch.setenv("SPARSEDET_CACHE", str(tmp_path))
    for path, size in (
        ("net/net.xml", 3),
        ("net/net.bin", 5),
        ("weights/weights.pth.part", 7),
        ("weights/weights.pth.part.from", 1),
        ("weights/notes.txt", 9),
        ("packed/model.packed", 11),
        ("other/net.bin", 13),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(bytes(size))
    return tmp_path


def test_files_of_the_catalogue_are_listed(cache: Path) -> None:
    os.utime(cache / "net" / "net.bin", (2e9, 1e9))
    files = list_cached()
    assert [(file.name, file.path.name, file.size, file.complete) for file in files] == [
        ("net", "net.xml", 3, True),
        ("net", "net.bin", 5, True),
        ("weights", "weights.pth.part", 7, False),
        ("weights", "weights.pth.part.from", 1, False),
    ]
    assert files[1].last_used == 2e9 and files[1].path.parent == cache / "net"
    assert list_cached("weights") == files[2:] and list_cached(folder=cache / "none") == []
    assert is_cached("net") and not is_cached("weights")


def test_other_files_are_left_alone(cache: Path) -> None:
    before = list_cached()
    assert remove_cached("net") == before[:2] and not (cache / "net").exists()
    assert list_cached() == before[2:]
    assert remove_cached() == before[2:] and remove_cached() == []
    left = sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    assert left == ["other/net.bin", "packed/model.packed", "weights/notes.txt"]


def test_an_unknown_name(cache: Path) -> None:
    for function in (is_cached, list_cached, remove_cached):
        with pytest.raises(InputError, match=r"unknown name 'nett', expected one of: net, weights"):
            function("nett")


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEDET_CACHE", "~/kept")
    assert cache_folder() == Path.home() / "kept"
    monkeypatch.setenv("SPARSEDET_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "sparsedet"
