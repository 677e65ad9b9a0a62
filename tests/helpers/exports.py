"""What the exporters' tests export: a small network's fields and a picture."""

from __future__ import annotations

import cv2
import numpy as np

SMALL = {
    "blocks": (1, 1, 2, 1),
    "stem_channels": 16,
    "bottleneck_channels": (8, 8, 16, 24),
    "stage_channels": (32, 32, 48, 64),
    "rpn_channels": 32,
    "proposals": 50,
    "anchor_sizes": (16.0, 32.0, 64.0, 96.0, 128.0),
}


def picture(height: int, width: int) -> np.ndarray:
    """Smooth random colours with some edges."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3)).astype(np.uint8)
    out = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    out[height // 3 : height // 2, width // 4 : width // 2] = (20, 200, 90)
    return out
