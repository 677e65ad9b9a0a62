"""What the exporters' tests share: a small network, an image, and the comparison of rows."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from sparsedet.testing import colour_gradients

SMALL: dict[str, Any] = {
    "blocks": (1, 1, 2, 1),
    "stem_channels": 16,
    "bottleneck_channels": (8, 8, 16, 24),
    "stage_channels": (32, 32, 48, 64),
    "rpn_channels": 32,
    "proposals": 50,
    "anchor_sizes": (16.0, 32.0, 64.0, 96.0, 128.0),
}
"""Fields of a small network."""

edges_image = colour_gradients
"""The image that the exported networks run on."""


def assert_same_rows(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Equal rows [N, 7] up to 1e-4, where equal scores may come in another order."""
    assert len(ours) >= 20 and len(ours) == len(theirs)
    for row in ours:
        same = theirs[(theirs[:, 1] == row[1]) & (abs(theirs[:, 2] - row[2]) < 1e-4)]
        assert len(same) and abs(same[:, 3:] - row[3:]).max(axis=1).min() < 1e-4
