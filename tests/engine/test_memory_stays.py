"""The memory of a process stays the same over many images of changing size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT
from helpers.exports import small_network

from sparsedet.model.file import save_model

PROGRAM = """
import os, random, sys
import numpy as np
from sparsedet import Detector

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

detector = Detector.load(sys.argv[1], threads=2, streams=int(sys.argv[2]))
rng = random.Random(1)
pixels = np.random.default_rng(1).integers(0, 256, (400, 400, 3), dtype=np.uint8)
sizes = [(400, 400), (400, 200), (200, 400)] * 20  # the largest first
sizes += [(rng.randint(1, 400), rng.randint(1, 400)) for _ in range(940)]
if int(sys.argv[2]) > 1:
    done = detector.stream(pixels[:h, :w] for h, w in sizes)
else:
    done = (detector(pixels[:h, :w]) for h, w in sizes)
found = 0
for number, detections in enumerate(done):
    found += len(detections)
    if number == 200:
        before = resident()
print(number + 1, found, resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("streams", [1, 2])
def test_a_thousand_images_of_changing_size(streams: int, tmp_path: Path) -> None:
    """A model that keeps the shape of its images, so that each has a plan of its own."""
    network = small_network("faster-rcnn", (96, 128))
    config = replace(network.config, resize="shorter", min_size=96, max_size=160)
    path = tmp_path / "m.safetensors"
    save_model(path, config, network.tensors, {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(streams)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    images, found, grown = map(int, done.stdout.split())
    assert images == 1000 and found > 1000
    assert grown < 4 << 20, f"{grown:,} bytes more after 1,000 images than after 200"
