"""What the exporters' tests share: a small network's fields, and an image."""

from __future__ import annotations

from sparsedet.testing import colour_gradients

SMALL = {
    "blocks": (1, 1, 2, 1),
    "stem_channels": 16,
    "bottleneck_channels": (8, 8, 16, 24),
    "stage_channels": (32, 32, 48, 64),
    "rpn_channels": 32,
    "proposals": 50,
    "anchor_sizes": (16.0, 32.0, 64.0, 96.0, 128.0),
}

picture = colour_gradients
"""The image that the exported networks run on."""
