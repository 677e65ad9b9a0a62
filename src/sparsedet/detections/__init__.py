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

from ..errors import InputError, warn_renamed
from ..images.draw import draw_boxes
from ..images.letterbox import Letterbox, check_image
from ..images.masks import Patch, paste
from ..images.run_lengths import encode_mask
from ..model.graph import Pasting

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
        mask_probabilities: (N, h, w) float32, 0..1: how probable it is that the object covers each
            cell of its box, which the cells divide evenly; None where the detector makes no masks.
        pasting: how masks of the image are made of them, as `images.masks.paste` takes it.
    """

    normalised: F32
    scores: F32
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    letterbox: Letterbox
    mask_probabilities: F32 | None = None
    pasting: Pasting = "whole"

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

    @cached_property
    def masks(self) -> NDArray[np.bool_] | None:
        """(N, H, W) bool: the pixels of the image that each object covers; None without masks.

        Made when first asked for, and kept: a byte for each pixel of each mask, which for 100
        masks of 12 megapixels is 1.2 GB. `each_mask` makes one at a time; all other methods need
        no more.
        """
        if self.mask_probabilities is None:
            return None
        masks = np.zeros((len(self), self.letterbox.height, self.letterbox.width), bool)
        for mask, patch in zip(masks, self._patches(), strict=True):
            mask[patch.place] = patch.inside
        return masks

    def each_mask(self) -> Iterator[NDArray[np.bool_]]:
        """(H, W) bool, the mask of each detection, made when its turn comes; none without masks."""
        for patch in self._patches():
            mask = np.zeros((self.letterbox.height, self.letterbox.width), bool)
            mask[patch.place] = patch.inside
            yield mask

    def _patches(self) -> Iterator[Patch]:
        if self.mask_probabilities is None:
            return iter(())
        size = self.letterbox.height, self.letterbox.width
        return paste(self.mask_probabilities, self.unclipped, *size, self.pasting)

    def _run_lengths(self) -> list[dict[str, Any]]:
        """`segmentation` of each detection in COCO's form, as a dictionary to merge; or {}."""
        if self.mask_probabilities is None:
            return [{} for _ in range(len(self))]
        size = self.letterbox.height, self.letterbox.width
        return [
            {"segmentation": encode_mask(patch.inside, *size, patch.top, patch.left)}
            for patch in self._patches()
        ]

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
        probabilities = self.mask_probabilities
        return replace(
            self,
            normalised=self.normalised[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            mask_probabilities=None if probabilities is None else probabilities[keep],
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
        """Entries of a COCO results file.

        `bbox` is [x, y, width, height] in pixels; `segmentation`, where there are masks, is their
        run lengths as pycocotools writes them, with text for its bytes.
        """
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "bbox": [round(v, 3) for v in (*box[:2].tolist(), *size.tolist())],
                "score": score,
                **mask,
            }
            for label, score, box, size, mask in zip(
                self.labels,
                self.scores.tolist(),
                self.boxes,
                sizes,
                self._run_lengths(),
                strict=True,
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
        """CSV: a header and one line per detection, in pixels of the image; no masks."""
        text = io.StringIO()
        fields = ("name", "label", "category_id", "score", *_CORNERS)
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._records())
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """The image's size and a list of detections, in pixels of the image; JSON-ready.

        A mask is the key `segmentation`, as in `to_coco`.
        """
        size = {"width": self.letterbox.width, "height": self.letterbox.height}
        masks = zip(self._records(), self._run_lengths(), strict=True)
        return {**size, "detections": [{**record, **mask} for record, mask in masks]}

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
        return draw_boxes(image, self.boxes, self.labels, texts, self._patches())


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
    masks: NDArray[Any] | None = None,
    pasting: Pasting = "whole",
) -> Detections:
    """The detections in a model's output for one image.

    Args:
        rows: [N, 7] or [1, 1, N, 7], in any order; rows with image_id -1 or confidence 0 are
            padding.
        letterbox: mapping from the network input to the image.
        class_names, category_ids: names and ids of the labels 1, 2, ... K.
        score_threshold: drop lower scores.
        masks: mask probabilities of the rows, [N, h, w]; those of padding have no meaning.
        pasting: as of `Detections`.

    Raises:
        InputError: the rows have another shape, belong to several images, or hold values that no
            detection can have; masks are not one for each row, or not finite; or the threshold is
            no number.
    """
    array = np.asarray(rows, dtype=np.float32)
    if array.shape[-1:] != (7,) or array.ndim not in (2, 4) or array.shape[:-2] not in ((), (1, 1)):
        raise InputError(f"rows have shape {list(array.shape)}, expected [N, 7] or [1, 1, N, 7]")
    array = array.reshape(-1, 7)
    kept = not_padding(array)  # keeps NaN, which the next test refuses
    array, probabilities = array[kept], None
    if masks is not None:
        probabilities = np.asarray(masks, dtype=np.float32)
        if (
            probabilities.ndim != 3
            or len(probabilities) != len(kept)
            or not all(probabilities.shape[1:])
        ):
            raise InputError(
                f"masks have shape {list(probabilities.shape)}, expected [{len(kept)}, h, w]"
            )
        probabilities = probabilities[kept]
        if not np.isfinite(probabilities).all():
            raise InputError("masks hold NaN or infinite values, expected finite numbers")
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
        None if probabilities is None else probabilities[order],
        pasting,
    )
    return detections if score_threshold is None else detections.above(score_threshold)


def not_padding(rows: F32) -> NDArray[np.bool_]:
    """Which of the rows [N, 7] are no padding: image_id -1, or a confidence of 0 or less."""
    return np.asarray((rows[:, 0] != -1) & ~(rows[:, 2] <= 0))  # a NaN confidence stays


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
