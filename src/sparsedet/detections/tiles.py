"""Large images in tiles, so that small objects are not lost, by supervision's slicer (extra)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from . import Detections


class Tiled:
    """A detector that looks at an image tile by tile, and merges what it finds.

    Objects that two tiles see become one by non-maximum suppression within a class. Masks are
    left out.

    Args:
        detect: image -> detections, as a `Detector`.
        size: of a tile, in pixels.
        overlap: of neighbouring tiles, in pixels; at least as large as the objects that matter.
        iou: of two boxes of a class that are one object, 0..1.

    Raises:
        InputError: supervision is not installed, or the overlap is not smaller than a tile.
    """

    def __init__(
        self,
        detect: Callable[[NDArray[np.uint8]], Detections],
        size: int = 640,
        overlap: int = 128,
        iou: float = 0.5,
    ) -> None:
        if size < 32 or not 0 <= overlap < size:
            raise UsageError(
                f"tiles of {size} pixels that overlap by {overlap}, expected at least 32 pixels "
                "and a smaller overlap"
            )
        try:
            import supervision
        except ImportError:
            raise InputError(
                "tiles need supervision: pip install 'sparsedet[supervision]'"
            ) from None
        self.detect, self.size, self.overlap = detect, size, overlap
        self.iou, self.supervision = iou, supervision

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        classes: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

        def tile(pixels: NDArray[np.uint8]) -> Any:
            found = self.detect(np.ascontiguousarray(pixels))
            classes.append((found.class_names, found.category_ids))
            theirs = found.to_supervision()
            theirs.mask = None
            return theirs

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecations
            slicer = self.supervision.InferenceSlicer(
                callback=tile,
                slice_wh=(self.size, self.size),
                overlap_wh=(self.overlap, self.overlap),
                iou_threshold=self.iou,
            )
            merged = slicer(image)
        names, ids = classes[0]
        height, width = image.shape[:2]
        return Detections.from_supervision(
            merged, names, height=height, width=width, category_ids=ids
        )
