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

from ..model.graph import Pasting
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


def paste(
    probabilities: F32,
    boxes: NDArray[Any],
    height: int,
    width: int,
    pasting: Pasting = "whole",
) -> Iterator[Patch]:
    """Masks in an image.

    Args:
        probabilities: (N, h, w), 0..1.
        boxes: (N, 4) xyxy in pixels of the image. Not clipped to it: the cells divide what the
            network gave.
        height, width: of the image.
        pasting: "whole": a rim of one cell of zeros around the mask, the box expanded by as much
            and truncated to whole pixels, the last of them inside. "continuous": the centres of
            pixels between the centres of cells, with zeros around the mask; the box stays as it is.

    Yields:
        The patch of each mask.

    Source: `paste_masks_in_image` of torchvision ("whole") and Detectron2 ("continuous").
    """
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    if pasting == "whole":
        return _paste_whole(probabilities, corners, height, width)
    return _paste_continuous(probabilities, corners, height, width)


def _paste_whole(probabilities: F32, corners: F32, height: int, width: int) -> Iterator[Patch]:
    _, rows, columns = probabilities.shape
    rimmed = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    scale = np.array([(columns + 2) / columns, (rows + 2) / rows], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
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


def _paste_continuous(probabilities: F32, corners: F32, height: int, width: int) -> Iterator[Patch]:
    _, rows, columns = probabilities.shape
    finite = np.clip(np.nan_to_num(corners), -_FAR, _FAR)
    for cells, (x0, y0, x1, y1) in zip(probabilities, finite, strict=True):
        down, top = _continuous_axis(rows, y0, y1, height)
        across, left = _continuous_axis(columns, x0, x1, width)
        yield Patch(top, left, _product(down @ cells, across.T))


def _continuous_axis(length: int, low: np.float32, high: np.float32, limit: int) -> tuple[F32, int]:
    """As `_axis`, between the edges `low` and `high` of a box.

    A pixel more on each side is made, as in Detectron2: beyond, where half a cell reaches further,
    no probability reaches a half. The arithmetic is float32 in the order of torch's `grid_sample`.
    """
    first = min(max(int(np.floor(low)) - 1, 0), limit)
    last = max(first, min(int(np.ceil(high)) + 1, limit))
    if not high > low:
        last = first
    one, two = np.float32(1), np.float32(2)
    centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    at = (centres - low) / (high - low) * two - one if last > first else centres
    at = ((at + one) * np.float32(length) - one) / two
    near = np.floor(at)
    part = at - near
    shares = np.zeros((last - first, length), np.float32)
    pixels = np.arange(last - first)
    for cell, share in ((near, one - part), (near + one, part)):
        inside = (cell >= 0) & (cell < length)
        shares[pixels[inside], cell[inside].astype(np.intp)] = share[inside]
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
