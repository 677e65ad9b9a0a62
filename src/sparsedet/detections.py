"""`Detections`: the objects found in one image, from rows of seven; data only, no files.

Glossary: N detections, K classes. A row is (image_id, class_id, confidence, x0, y0, x1, y1)
with coordinates divided by the network input's size; image_id -1 marks a padding row. Labels are
contiguous 1..K, category_id is the data set's own. Boxes are xyxy float pixels.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, warn_renamed
from .images.draw import draw_boxes
from .images.letterbox import Letterbox, check_image

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

_CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        normalised: (N, 4) float32 xyxy, divided by the network input's size.
        scores: (N,) float32, descending.
        labels: (N,) int64, 1..K.
        class_names, category_ids: names and ids of the labels 1, 2, ... K.
        letterbox: mapping from the network input to the image.
    """

    normalised: F32
    scores: F32
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    letterbox: Letterbox

    @property
    def placement(self) -> Letterbox:
        """Deprecated: `letterbox`."""
        warn_renamed("placement", "letterbox")
        return self.letterbox

    @cached_property
    def boxes(self) -> F32:
        """(N, 4) float32 xyxy in pixels of the image, clipped to it.

        A box in the padding of the network input has no area.
        """
        return self.letterbox.to_image(self.normalised)

    @cached_property
    def unclipped(self) -> F32:
        """As `boxes`, but as the network gives them, not clipped to the image."""
        return self.letterbox.to_image(self.normalised, clip=False)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label - 1] for label in self.labels]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[str, float, F32]]:
        """(class name, score, box (4,)) of each detection."""
        return zip(self.names, self.scores.tolist(), self.boxes, strict=True)

    def above(self, threshold: float) -> Detections:
        """The detections with a score of at least `threshold`.

        Raises:
            InputError: `threshold` is no number.
        """
        check_threshold(threshold)
        keep = self.scores >= threshold
        return replace(
            self,
            normalised=self.normalised[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
        )

    # ---------------------------------------------------------------- as data

    def rows(self, max_detections: int | None = None) -> F32:
        """The rows of the published contract, with image_id 0.

        Args:
            max_detections: number of rows, padded or cut as by `pad_rows`; default: N.

        Returns:
            [N or max_detections, 7] float32.
        """
        image_id = np.zeros(len(self))
        columns = (image_id, self.labels, self.scores, self.normalised)
        rows = np.column_stack(columns).astype(np.float32)
        return rows if max_detections is None else pad_rows(rows, max_detections)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of a COCO results file; `bbox` is [x, y, width, height] in pixels."""
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "bbox": [round(v, 3) for v in (*box[:2].tolist(), *size.tolist())],
                "score": score,
            }
            for label, score, box, size in zip(
                self.labels, self.scores.tolist(), self.boxes, sizes, strict=True
            )
        ]

    def _records(self) -> list[dict[str, Any]]:
        """One flat dictionary per detection, rounded for people."""
        return [
            {
                "name": name,
                "label": int(label),
                "category_id": self.category_ids[label - 1],
                "score": round(score, 4),
                **{key: round(v, 2) for key, v in zip(_CORNERS, box.tolist(), strict=True)},
            }
            for label, (name, score, box) in zip(self.labels, self, strict=True)
        ]

    def to_csv(self) -> str:
        """CSV: a header and one line per detection, in pixels of the image."""
        text = io.StringIO()
        fields = ("name", "label", "category_id", "score", *_CORNERS)
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._records())
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """The image's size and a list of detections, in pixels of the image; JSON-ready."""
        size = {"width": self.letterbox.width, "height": self.letterbox.height}
        return {**size, "detections": self._records()}

    def to_json(self) -> str:
        """`to_dict` as one line."""
        return json.dumps(self.to_dict())

    # ---------------------------------------------------------------- drawn

    def draw(self, image: U8) -> U8:
        """An annotated copy of the image, see `images.draw.draw_boxes`.

        Args:
            image: (H, W, 3) uint8 BGR, the image of these detections.

        Raises:
            InputError: the image has another shape, type or size.
        """
        check_image(image)
        height, width = self.letterbox.height, self.letterbox.width
        if image.shape[:2] != (height, width):
            raise InputError(
                f"image has {image.shape[1]}x{image.shape[0]} pixels, "
                f"but the detections belong to an image of {width}x{height}"
            )
        texts = [f"{name} {score:.2f}" for name, score, _ in self]
        return draw_boxes(image, self.boxes, self.labels, texts)


def check_threshold(threshold: float) -> None:
    """Raise InputError unless `threshold` is a number; NaN would silently drop everything."""
    try:
        value = float("nan" if isinstance(threshold, str | bytes) else threshold)
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if math.isnan(value):
        raise InputError(f"the score threshold is {threshold!r}, expected a number 0..1")


# -------------------------------------------------------------------- rows


def from_rows(
    rows: NDArray[Any],
    letterbox: Letterbox,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    score_threshold: float | None = None,
) -> Detections:
    """The detections in a model's output for one image.

    Args:
        rows: [N, 7] or [1, 1, N, 7], in any order; rows with image_id -1 or confidence 0 are
            padding.
        letterbox: mapping from the network input to the image.
        class_names, category_ids: names and ids of the labels 1, 2, ... K.
        score_threshold: drop lower scores.

    Raises:
        InputError: the rows have another shape, belong to several images, or hold values that no
            detection can have; or the threshold is no number.
    """
    array = np.asarray(rows, dtype=np.float32)
    if array.shape[-1:] != (7,) or array.ndim not in (2, 4) or array.shape[:-2] not in ((), (1, 1)):
        raise InputError(f"rows have shape {list(array.shape)}, expected [N, 7] or [1, 1, N, 7]")
    array = without_padding(array.reshape(-1, 7))  # keeps NaN, which the next test refuses
    if not np.isfinite(array).all():
        raise InputError("rows hold NaN or infinite values, expected finite numbers")
    if len(images := np.unique(array[:, 0])) > 1:
        raise InputError(f"rows belong to {len(images)} images, expected those of one image")
    labels = array[:, 1].astype(np.int64)
    bad = (labels != array[:, 1]) | (labels < 1) | (labels > len(class_names))
    if bad.any():
        raise InputError(f"rows hold class_id {array[bad][0, 1]:g}, expected 1..{len(class_names)}")
    order = np.argsort(-array[:, 2], kind="stable")
    array = array[order]
    detections = Detections(
        array[:, 3:].copy(),
        array[:, 2].copy(),
        labels[order],
        class_names,
        category_ids,
        letterbox,
    )
    return detections if score_threshold is None else detections.above(score_threshold)


def without_padding(rows: F32) -> F32:
    """The rows [N, 7] without padding: image_id -1, or a confidence of 0 or less."""
    kept: F32 = rows[(rows[:, 0] != -1) & ~(rows[:, 2] <= 0)]  # a NaN confidence stays
    return kept


def pad_rows(rows: F32, count: int) -> F32:
    """Exactly `count` rows: cut, or filled with padding.

    Args:
        rows: [N, 7], best first.

    Returns:
        [count, 7] float32; padding rows are image_id -1 and zeros.
    """
    out = np.zeros((count, 7), dtype=np.float32)
    out[:, 0] = -1
    out[: len(rows)] = rows[:count]
    return out


def contract_rows(rows: F32, count: int, four_d: bool) -> F32:
    """Rows [N, 7] in a published form: [count, 7], or [1, 1, count, 7] if `four_d`."""
    padded = pad_rows(rows, count)
    return padded[None, None] if four_d else padded
