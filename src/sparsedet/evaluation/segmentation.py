"""Masks in COCO files: polygons, and run lengths as numbers or as text, become pycocotools' RLE.

pycocotools reads damaged text past its end and trusts all numbers; here they are checked before.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from ..images.run_lengths import read_counts
from .coco_fields import finite_numbers

Rle = dict[str, Any]
"""{"size": [height, width], "counts": bytes}."""

_FURTHEST = 1e6
"""Pixels; no image is larger. pycocotools walks along each edge of a polygon."""


def to_rle(segmentation: Any, height: int, width: int) -> Rle | str:
    """A mask of an image in pycocotools' form, or what is wrong with it.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], rasterised by pycocotools; or
            {"size": [height, width], "counts": numbers or text}.
        height, width: of the image.
    """
    from pycocotools import mask  # type: ignore[import-untyped,unused-ignore]

    if isinstance(segmentation, Mapping):
        size = finite_numbers(segmentation.get("size"), 2)
        if size != [height, width]:
            return (
                f"segmentation has size {reprlib.repr(segmentation.get('size'))}, "
                f"expected that of the image, {[height, width]}"
            )
        return _from_counts(segmentation.get("counts"), height, width)
    polygons = segmentation if isinstance(segmentation, list) else []
    numbers = [finite_numbers(p, len(p)) if isinstance(p, list) else None for p in polygons]
    usable = [p for p in numbers if p is not None and len(p) >= 4 and len(p) % 2 == 0]
    if not polygons or len(usable) < len(polygons):
        return (
            f"segmentation is {reprlib.repr(segmentation)}, "
            "expected polygons [[x, y, x, y, x, y, ...], ...] or run lengths"
        )
    if len({len(p) == 4 for p in usable}) > 1 and len(usable[0]) == 4:
        return "segmentation has boxes among its polygons"  # pycocotools takes four numbers as one
    if max(abs(v) for p in usable for v in p) > _FURTHEST:
        return "segmentation has a corner far outside of any image"
    merged: Rle = mask.merge(mask.frPyObjects(usable, height, width))
    return merged


def _from_counts(counts: Any, height: int, width: int) -> Rle | str:
    """`to_rle` of run lengths."""
    from pycocotools import mask

    size = [height, width]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        try:
            pixels = int(read_counts(counts).sum())
        except ValueError as error:
            return f"segmentation's counts cannot be read: {error}"
        rle: Rle = {"size": size, "counts": counts.encode()}
    else:
        lengths = finite_numbers(counts, len(counts)) if isinstance(counts, list) else None
        if not lengths or any(v < 0 or v != int(v) for v in lengths):
            return (
                f"segmentation's counts are {reprlib.repr(counts)}, "
                "expected text or whole numbers from 0 on"
            )
        pixels = int(sum(lengths))
        if pixels == height * width:
            rle = mask.frPyObjects({"size": size, "counts": list(map(int, lengths))}, *size)
    if pixels != height * width:
        return f"segmentation's counts are of {pixels} pixels, expected {height * width}"
    return rle


def area_and_box(rle: Rle) -> tuple[float, list[float]]:
    """Number of pixels, and x, y, width, height of the box around them."""
    from pycocotools import mask

    return float(mask.area(rle)), [float(v) for v in mask.toBbox(rle)]
