"""Commands run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import Outcome, Run
from helpers.exports import small_network

from sparsedet.cli import main
from sparsedet.model.file import save_model


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run_command(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run_command


@pytest.fixture
def detect(run: Run, small_model: Path) -> Callable[..., Outcome]:
    """`sparsedet detect` with the small model on one CPU thread."""
    return lambda *arguments: run("detect", "--model", small_model, "--threads", 1, *arguments)


@pytest.fixture
def mask_model(tmp_path: Path) -> Path:
    """A model file of a small Mask R-CNN."""
    small = small_network("mask-rcnn")
    path = tmp_path / "mask-rcnn.safetensors"
    save_model(path, small.config, small.tensors, {}, dtype="float32")
    return path
