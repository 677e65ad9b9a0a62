"""A service of the small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.service import running

from sparsedet.detector import Detector
from sparsedet.serve.server import Service

pytest.importorskip("starlette")


@pytest.fixture(scope="session")
def detector(small_model: Path) -> Detector:
    return Detector.load(small_model, threads=1)


@pytest.fixture(scope="module")
def service(detector: Detector) -> Iterator[Service]:
    with running({"small": detector}) as served:
        yield served
