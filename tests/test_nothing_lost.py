"""kill -9 before each change of the disk, full disks, read-only and vanished folders."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT
from helpers.parity import DETECTRON2

HERE = Path(__file__).parent


def killed_at(
    number: int, *arguments: object, cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command that is killed before its Nth change of the disk; 0: never."""
    environment = {**ENVIRONMENT, **({"SPARSEDET_CACHE": str(cache)} if cache else {})}
    return subprocess.run(
        [sys.executable, "-m", "helpers.kills", str(number), *map(str, arguments)],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def changes(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stderr
    found = re.search(r"changes: (\d+)", done.stderr)
    assert found
    return int(found[1])


def some(count: int, most: int) -> list[int]:
    """At most `most` of 1..count, evenly; the last one is the one before the end."""
    return sorted({1 + round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def whole_or_absent(folder: Path, expected: dict[str, bytes]) -> None:
    """Besides hidden partial files there is nothing but what an undisturbed run writes."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".partial"):
            name = str(path.relative_to(folder))
            assert name in expected, name
            assert path.read_bytes() == expected[name], name


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["detect", "cache", "convert", "export"])
def test_killed_before_each_change_of_the_disk(
    what: str, small_model: Path, photo: Path, tmp_path: Path
) -> None:
    def command(folder: Path) -> list[object]:
        detect = ["detect", photo, "--model", small_model]
        return {
            "detect": [*detect, "-o", folder / "a.png"],
            "cache": [*detect, "--no-save", "--cache"],
            "convert": ["convert", DETECTRON2, "-o", folder / "m.safetensors"],
            "export": ["export", small_model, "--to", "onnx", "-o", folder / "m.onnx"],
        }[what]

    whole = tmp_path / "whole"
    whole.mkdir()
    count = changes(killed_at(0, *command(whole), cache=whole))
    assert count >= 3
    expected = contents(whole)
    assert expected
    for number in some(count, 12):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        done = killed_at(number, *command(folder), cache=folder)
        assert done.returncode == -9, done.stderr
        if what != "cache":  # whose key tells the files of two folders apart by their times
            whole_or_absent(folder, expected)
        again = killed_at(
            0, *command(folder), *(["--overwrite"] if what != "cache" else []), cache=folder
        )
        assert again.returncode == 0, again.stderr
        assert "damaged" not in again.stderr
        assert set(contents(folder)) == set(expected)  # no partial file is left
        shutil.rmtree(folder)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    full_disk: Path, small_model: Path, photo: Path
) -> None:
    (full_disk / "fill").write_bytes(bytes(60_000))
    for arguments in (
        ["detect", photo, "--model", small_model, "-o", full_disk / "a.png"],
        ["convert", DETECTRON2, "-o", full_disk / "m.safetensors"],
        ["export", small_model, "--to", "onnx", "-o", full_disk / "m.onnx"],
    ):
        done = killed_at(0, *arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith("changes")]
        assert len(lines) == 1, lines
        assert os.listdir(full_disk) == ["fill"]
    # A cache that cannot be written is a warning: the work is done.
    detect = ["detect", photo, "--model", small_model, "--no-save", "--cache"]
    done = killed_at(0, *detect, cache=full_disk)
    assert done.returncode == 0 and "cannot be kept there" in done.stderr
    assert not list((full_disk / "packed").iterdir())


def test_a_folder_that_vanishes_is_one_line(small_model: Path, photo: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = (
        "import os, shutil, sys; from sparsedet import detector; from sparsedet.cli import main\n"
        f"run = detector.Detector.__call__\n"
        "def vanishing(self, *a, **k):\n"
        f"    shutil.rmtree({str(gone)!r}, ignore_errors=True)\n"
        "    return run(self, *a, **k)\n"
        "detector.Detector.__call__ = vanishing\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "detect", str(photo), "--model", str(small_model), "-o",
         str(gone / "a.png")],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "a.png" in done.stderr and not gone.exists()
