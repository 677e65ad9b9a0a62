"""A small model's configuration, and an image in which it detects objects."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from sparsedet.model.presets import preset
from sparsedet.testing import rectangles_on_noise

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

picture = rectangles_on_noise
"""An image in which the small model detects all of its classes."""


def encoded(suffix: str) -> bytes:
    """`picture()` as an image file."""
    return np.asarray(cv2.imencode(suffix, picture())[1]).tobytes()
