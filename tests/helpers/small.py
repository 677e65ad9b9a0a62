"""A small model's configuration, and an image in which it detects objects."""

from __future__ import annotations

import struct
import zlib
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


def bomb() -> bytes:
    """A PNG that declares 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk
