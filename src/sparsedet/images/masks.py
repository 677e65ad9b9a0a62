"""Masks of detections: from the probabilities of a box's cells to pixels of the image.

Glossary: mask probabilities are (h, w), 28x28 of most detectors, and divide the detection's box
evenly. They are small and masks of the image are not: 100 masks of 12 megapixels are 1.2 GB.
Therefore masks are pasted one at a time, and only the rectangle that a mask can reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .letterbox import bilinear_positions

F32 = NDArray[np.float32]

MASK_THRESHOLD = 0.5
"""The least probability of a pixel inside a mask."""

_FAR = 2.0**30
"""Pixels; where a box ends that reaches further. No image is as large."""

_ONE_THREAD = 200_000
"""Multiplications; OpenBLAS starts threads above 262,144."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The part of an image that a mask can reach; elsewhere its probability is 0.

    Attributes:
        top, left: its first row and column in the image.
        probabilities: (h, w) float32; of no pixels where the box is outside the image.
    """

    top: int
    left: int
    probabilities: F32

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(h, w): the pixels of the mask."""
        return np.asarray(self.probabilities >= MASK_THRESHOLD)

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        height, width = self.probabilities.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def paste(probabilities: F32, boxes: NDArray[Any], height: int, width: int) -> Iterator[Patch]:
    """Masks in an image.

    Args:
        probabilities: (N, h, w), 0..1.
        boxes: (N, 4) xyxy in pixels of the image. Not clipped to it: the cells divide what the
            network gave.
        height, width: of the image.

    Yields:
        The patch of each mask.

    Source: torchvision, `paste_masks_in_image`: a rim of one cell of zeros around the mask, the box
    expanded by as much and truncated to whole pixels, the last of them inside.
    """
    _, rows, columns = probabilities.shape
    rimmed = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    scale = np.array([(columns + 2) / columns, (rows + 2) / rows], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.asarray(boxes, np.float32).reshape(-1, 4)
        half = (corners[:, 2:] - corners[:, :2]) * np.float32(0.5) * scale
        centre = (corners[:, 2:] + corners[:, :2]) * np.float32(0.5)
        expanded = np.nan_to_num(np.hstack([centre - half, centre + half]))
    whole = np.clip(expanded, -_FAR, _FAR).astype(np.int64)
    for cells, (x0, y0, x1, y1) in zip(rimmed, whole.tolist(), strict=True):
        down, top = _axis(rows + 2, y0, y1, height)
        across, left = _axis(columns + 2, x0, x1, width)
        yield Patch(top, left, _product(down @ cells, across.T))


def _axis(length: int, low: int, high: int, limit: int) -> tuple[F32, int]:
    """The pixels of the image along one axis as sums of cells, and the first pixel.

    Args:
        length: number of cells.
        low, high: first and last pixel of the box.
        limit: number of pixels in the image.

    Returns:
        (pixels, length) shares of the cells in each pixel.
    """
    out = max(high - low + 1, 1)
    first, last = min(max(low, 0), limit), max(min(high + 1, limit), 0)
    last = max(first, last)
    near, far, part = bilinear_positions(length, out, first - low, last - low)
    shares = np.zeros((last - first, length), np.float32)
    pixels = np.arange(last - first)
    shares[pixels, near] = 1 - part
    shares[pixels, far] += part
    return shares, first


def _product(lines: F32, across: F32) -> F32:
    """lines @ across, in parts so small that numpy's library for products starts no threads.

    Its threads wait for each other where other threads have work: on a busy machine they are ten
    times as slow as one.
    """
    count = max(1, _ONE_THREAD // max(1, across.size))
    parts = np.zeros((-(-len(lines) // count), count, lines.shape[1]), np.float32)
    parts.reshape(-1, lines.shape[1])[: len(lines)] = lines
    product = np.asarray(parts @ across).reshape(len(parts) * count, across.shape[1])
    return product[: len(lines)]
