"""A small model's configuration and a picture in which it finds something."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sparsedet.model.presets import preset

SMALL = replace(
    preset("r50half-c4"),
    name="small",
    input_height=64,
    input_width=96,
    blocks=(1, 1, 1, 1),
    stem_channels=8,
    bottleneck_channels=(4, 6, 8, 10),
    stage_channels=(8, 12, 16, 20),
    rpn_channels=12,
    anchor_sizes=(16.0, 32.0, 64.0),
    proposals=40,
    class_names=("cat", "dög", "traffic light"),
    category_ids=(17, 18, 10),
    max_detections=20,
)


def picture(height: int = 90, width: int = 120, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured rectangles on a noisy ground, (height, width, 3) BGR."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
    for _ in range(8):
        x0, y0 = rng.integers(0, width // 2), rng.integers(0, height // 2)
        x1, y1 = x0 + rng.integers(6, width // 2), y0 + rng.integers(6, height // 2)
        cv2.rectangle(
            image,
            (int(x0), int(y0)),
            (int(x1), int(y1)),
            [int(c) for c in rng.integers(0, 256, 3)],
            cv2.FILLED,
        )
    return image


def encoded(suffix: str) -> bytes:
    """`picture()` as an image file."""
    return cv2.imencode(suffix, picture())[1].tobytes()
