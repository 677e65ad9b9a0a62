"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, MAIN, python
from helpers.small import encoded


def test_torch_is_never_imported(small_model: Path, photo: Path) -> None:
    program = f"""
import sys
import sparsedet
from sparsedet.cli import main
for command in (["info", {str(small_model)!r}], ["info", "--preset", "r101-c4"],
                ["detect", {str(photo)!r}, "--model", {str(small_model)!r}]):
    assert main(command) == 0
heavy = {{"torch", "torchvision", "onnx", "pycocotools", "rich"}}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert photo.with_name("street_detected.png").exists()


def test_a_file_name_of_any_bytes(small_model: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            file.write(encoded(".png"))
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    for form in ("table", "json", "csv"):
        done = python(MAIN, "detect", name, "--model", str(small_model), "--format", form)
        assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert len(list(tmp_path.iterdir())) == 4


def test_a_reader_that_stops_reading(small_model: Path, photo: Path) -> None:
    # More output than Python buffers, and less.
    few = ["detect", str(photo), "--model", str(small_model), "--no-save"]
    for arguments in (["info", "--preset", "r101-c4"], few):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, timeout=60, env=ENVIRONMENT
        )
        os.close(writer)
        assert done.returncode == 0 and done.stderr == b"", done.stderr
