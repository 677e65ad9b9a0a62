"""Memory stays where it is over a thousand images of changing size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.commands import python
from helpers.tiny_fpn import tiny_fpn

from sparsedet.model.file import save_model
from sparsedet.testing import random_tensors

PROGRAM = """
import random, resource, sys
import numpy as np
from sparsedet import Detector
detector = Detector.load(sys.argv[1], threads=2, streams=2)
rng = random.Random(0)
pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def images(count):
    for _ in range(count):
        yield pixels[: rng.randint(1, 300), : rng.randint(1, 300)]

found = sum(len(f) for f in detector.stream(images(300)))  # all sizes have been there
before = resident()
found += sum(len(f) for f in detector.stream(images(1000)))
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_over_a_thousand_images(tmp_path: Path) -> None:
    """Network inputs change their size, too, and with them the plan of the activations."""
    config = tiny_fpn("shorter")
    save_model(tmp_path / "m.safetensors", config, random_tensors(config, 0.4), {})
    done = python(PROGRAM, str(tmp_path / "m.safetensors"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4_000_000, done.stdout
