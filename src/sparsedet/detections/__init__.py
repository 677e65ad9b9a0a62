"""`Detections`: the objects found in one image, from rows of seven; data only, no files.

Glossary: N detections, K classes. A row is (image_id, class_id, confidence, x0, y0, x1, y1)
with coordinates divided by the network input's size; image_id -1 marks a padding row. Labels are
contiguous 1..K, category_id is the data set's own. Boxes are xyxy float pixels.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, warn_renamed
from ..images.letterbox import Letterbox, check_image
from ..images.masks import Patch, paste
from ..images.run_lengths import encode_mask
from ..model.graph import Pasting
from .exchange import Conversions, empty_letterbox, sorted_by_score
from .rows import contract_rows, not_padding, pad_rows

__all__ = ["Detections", "check_threshold", "contract_rows", "from_rows", "not_padding", "pad_rows"]

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detections(Conversions):
    """The objects found in one image, best first.

    >>> from sparsedet import Detector, read_image
    >>> image = read_image("examples/beach.jpg")
    >>> found = Detector.load()(image, 0.9)
    >>> found
    <Detections in 640x427: 5 person 0.93..1.00>
    >>> found.above(0.99).to_coco(image_id=7)[0]["category_id"]
    1

    `Conversions` lists the forms of other libraries.

    Attributes:
        normalised: (N, 4) float32 xyxy, divided by the network input's size.
        scores: (N,) float32, descending.
        labels: (N,) int64, 1..K.
        class_names, category_ids: names and ids of the labels 1, 2, ... K.
        letterbox: mapping from the network input to the image.
        mask_probabilities: (N, h, w) float32, 0..1: how probable it is that the object covers each
            cell of its box, which the cells divide evenly; None where the detector makes no masks.
        pasting: how masks of the image are made of them, as `images.masks.paste` takes it.
        track_ids: (N,) int64, the number of each object in a video, the same in all frames; -1
            where a tracker has not made sure of it; None where nothing was tracked.
    """

    normalised: F32
    scores: F32
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    letterbox: Letterbox
    mask_probabilities: F32 | None = None
    pasting: Pasting = "whole"
    track_ids: NDArray[np.int64] | None = None

    @classmethod
    def from_boxes(
        cls,
        boxes: Any,
        scores: Any,
        labels: Any,
        class_names: Sequence[str],
        *,
        height: int,
        width: int,
        category_ids: Sequence[int] | None = None,
        track_ids: Any = None,
    ) -> Detections:
        """Detections that another program made.

        Args:
            boxes: (N, 4) xyxy in pixels of the image.
            scores: (N,), 0..1, in any order.
            labels: (N,) whole numbers 1..K.
            class_names: K names.
            height, width: of the image, in pixels.
            category_ids: K ids of the data set; default: 1, 2, ... K.
            track_ids: (N,), or None.

        Raises:
            InputError: the shapes do not fit, or a value is one that no detection can have.

        >>> Detections.from_boxes([[1, 1, 9, 9]], [0.8], [2], ["cat", "dog"], height=90, width=60)
        <Detections in 60x90: 1 dog 0.80>
        """
        letterbox = empty_letterbox(height, width)
        columns = sorted_by_score(boxes, scores, labels, len(class_names), track_ids)
        scale = np.array([width, height, width, height], np.float64)
        ids = tuple(category_ids or range(1, len(class_names) + 1))
        if len(ids) != len(class_names):
            raise InputError(f"{len(ids)} category_ids for {len(class_names)} class_names")
        return cls(
            (columns[0] / scale).astype(np.float32),
            columns[1],
            columns[2],
            tuple(class_names),
            ids,
            letterbox,
            track_ids=columns[3],
        )

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

    def __repr__(self) -> str:
        """As `<Detections in 640x427: 5 person 0.97..1.00, 1 dog 0.88>`."""
        size = f"{self.letterbox.width}x{self.letterbox.height}"
        return f"<Detections in {size}: {self.summary(scores=True) or 'nothing'}>"

    def summary(self, scores: bool = False) -> str:
        """How many of each class, the most frequent first, as "5 person, 1 dog"; "": none."""
        groups: dict[str, list[float]] = {}
        for name, score in zip(self.names, self.scores.tolist(), strict=True):
            groups.setdefault(name, []).append(score)
        parts = []
        for name, values in sorted(groups.items(), key=lambda group: -len(group[1])):
            span = dict.fromkeys(f"{score:.2f}" for score in (min(values), max(values)))
            parts.append(f"{len(values)} {name}{' ' + '..'.join(span) if scores else ''}")
        return ", ".join(parts)

    def select(self, keep: Any) -> Detections:
        """Some of the detections.

        Args:
            keep: (N,) bool, or indices in ascending order.
        """
        columns = ("normalised", "scores", "labels", "mask_probabilities", "track_ids")
        values = {name: getattr(self, name) for name in columns}
        kept: dict[str, Any] = {n: v if v is None else v[keep] for n, v in values.items()}
        selected = replace(self, **kept)
        selected.__dict__["_image"] = self.__dict__.get("_image")
        return selected

    def above(self, threshold: float) -> Detections:
        """The detections with a score of at least `threshold`.

        Raises:
            InputError: `threshold` is no number.
        """
        check_threshold(threshold)
        return self.select(self.scores >= threshold)

    def only(self, names: Iterable[str]) -> Detections:
        """The detections of some classes.

        Raises:
            InputError: the detector knows no class of such a name.
        """
        return self.select(np.isin(self.labels, labels_of(names, self.class_names)))

    def best(self, count: int) -> Detections:
        """The `count` detections with the highest scores."""
        return self.select(slice(0, max(count, 0)))

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
        from ..images.draw import draw_boxes  # detecting needs none of it

        return draw_boxes(image, self.boxes, self.labels, self._texts(), self._patches())

    def _texts(self) -> list[str]:
        """What stands beside each box."""
        tracks = [-1] * len(self) if self.track_ids is None else self.track_ids.tolist()
        return [
            f"{name} {f'#{track} ' if track >= 0 else ''}{score:.2f}"
            for (name, score, _), track in zip(self, tracks, strict=True)
        ]

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows: on the image while it is in memory, else on grey."""
        height, width = self.letterbox.height, self.letterbox.width
        reference = self.__dict__.get("_image")
        image = None if reference is None else reference()
        image = np.full((height, width, 3), 96, np.uint8) if image is None else image
        from ..images.write import encode_image

        return encode_image(self.draw(image), "notebook.png")

    def remember(self, image: U8) -> Detections:
        """Know the image, as long as someone else keeps it, for pictures in notebooks."""
        self.__dict__["_image"] = weakref.ref(image)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_image"}


def labels_of(names: Iterable[str], class_names: Sequence[str]) -> list[int]:
    """The labels 1..K of classes.

    Raises:
        InputError: there is no class of such a name.
    """
    places = {name: label for label, name in reversed(list(enumerate(class_names, 1)))}
    found = []
    for name in names:
        if name not in places:
            import difflib

            near = difflib.get_close_matches(name, class_names, 3, 0.5) or class_names[:5]
            raise InputError(
                f"{name!r} is no class of this model, expected one of its {len(class_names)}, "
                f"as {', '.join(near)}"
            )
        found.append(places[name])
    return found


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
    if len(images := set(array[:, 0].tolist())) > 1:  # np.unique imports numpy.ma: 25 ms
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
