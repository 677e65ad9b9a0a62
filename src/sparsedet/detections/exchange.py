"""Detections in the forms of other libraries, and back; each is imported when it is asked for.

Foreign conventions are converted here. Boxes are xyxy pixels of the image everywhere but in COCO
([x, y, width, height]). Labels are 1..K here and in torch, where 0 is the background; class ids of
supervision are labels - 1. Masks go out and do not come back: a detection holds mask probabilities
of its box, which other libraries do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.letterbox import Letterbox

if TYPE_CHECKING:
    import pandas
    import polars
    import supervision
    import torch

Self = TypeVar("Self", bound="Conversions")
Ids = Sequence[int] | None

_CORNERS = ("x0", "y0", "x1", "y1")


class Conversions:
    """What `Detections` converts to and from. All `from_...` sort by score.

    Arguments of all `from_...`: `class_names`, K names; `height` and `width` of the image in
    pixels; `category_ids`, K ids of the data set (default: 1, 2, ... K).
    """

    if TYPE_CHECKING:
        scores: NDArray[np.float32]
        labels: NDArray[np.int64]
        class_names: tuple[str, ...]
        category_ids: tuple[int, ...]
        track_ids: NDArray[np.int64] | None

        @property
        def boxes(self) -> NDArray[np.float32]: ...
        @property
        def names(self) -> list[str]: ...
        @property
        def masks(self) -> NDArray[np.bool_] | None: ...

        letterbox: Letterbox
        from_boxes: Callable[..., Any]
        _run_lengths: Callable[[], list[dict[str, Any]]]
        __iter__: Callable[[], Iterator[tuple[str, float, NDArray[np.float32]]]]
        __len__: Callable[[], int]

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
                **track,
            }
            for label, (name, score, box), track in zip(
                self.labels, self, self._tracks(), strict=True
            )
        ]

    def _tracks(self) -> list[dict[str, int]]:
        """`track_id` of each detection, as a dictionary to merge; or {}."""
        if self.track_ids is None:
            return [{} for _ in range(len(self))]
        return [{"track_id": track} for track in self.track_ids.tolist()]

    def to_csv(self) -> str:
        """CSV: a header and one line per detection, in pixels of the image; no masks."""
        import csv
        import io

        text = io.StringIO()
        fields = ["name", "label", "category_id", "score", *_CORNERS]
        fields += [] if self.track_ids is None else ["track_id"]
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
        import json

        return json.dumps(self.to_dict())

    def to_numpy(self) -> NDArray[np.float64]:
        """[N, 6] float64: x0, y0, x1, y1 in pixels of the image, score, label 1..K."""
        return np.column_stack([self.boxes, self.scores, self.labels]).astype(np.float64)

    @classmethod
    def from_numpy(
        cls: type[Self],
        array: Any,
        class_names: Sequence[str],
        *,
        height: int,
        width: int,
        category_ids: Ids = None,
    ) -> Self:
        """From [N, 6]: x0, y0, x1, y1 in pixels of the image, score, label 1..K.

        Raises:
            InputError: the array has another shape, or impossible values.
        """
        rows = np.asarray(array, np.float64)
        if rows.ndim != 2 or rows.shape[1] != 6:
            raise InputError(f"the array has shape {list(rows.shape)}, expected [N, 6]")
        return _made(
            cls, rows[:, :4], rows[:, 4], rows[:, 5], class_names, height, width, category_ids
        )

    def to_columns(self) -> dict[str, Any]:
        """Name of a column -> its N values: name, label, category_id, score, x0, y0, x1, y1."""
        ids = np.array(self.category_ids, np.int64)
        columns: dict[str, Any] = {
            "name": self.names,
            "label": self.labels,
            "category_id": ids[self.labels - 1] if len(self.labels) else self.labels,
            "score": self.scores,
            **{key: self.boxes[:, place] for place, key in enumerate(_CORNERS)},
        }
        return columns if self.track_ids is None else {**columns, "track_id": self.track_ids}

    @classmethod
    def from_columns(
        cls: type[Self],
        columns: Any,
        class_names: Sequence[str],
        *,
        height: int,
        width: int,
        category_ids: Ids = None,
    ) -> Self:
        """From a data frame or dictionary with the columns of `to_columns`.

        Only label, score and the corners are read, and track_id if it is there.

        Raises:
            InputError: a column is missing, or holds impossible values.
        """
        missing = [key for key in ("label", "score", *_CORNERS) if key not in columns]
        if missing:
            raise InputError(f"the table has no column {missing[0]!r}")
        boxes = np.column_stack([np.asarray(columns[key]) for key in _CORNERS])
        tracks = np.asarray(columns["track_id"]) if "track_id" in columns else None
        return _made(
            cls,
            boxes,
            columns["score"],
            columns["label"],
            class_names,
            height,
            width,
            category_ids,
            tracks,
        )

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas data frame with the columns of `to_columns`, one row a detection."""
        frame: pandas.DataFrame = _library("pandas", "tables").DataFrame(self.to_columns())
        return frame

    from_pandas = from_columns

    def to_polars(self) -> polars.DataFrame:
        """A polars data frame with the columns of `to_columns`, one row a detection."""
        library = _library("polars", "tables")
        frame: polars.DataFrame = library.DataFrame(self.to_columns())
        return frame.with_columns(library.col("name").cast(library.String))  # of no rows as well

    from_polars = from_columns

    @classmethod
    def from_coco(
        cls: type[Self],
        entries: Iterable[Mapping[str, Any]],
        class_names: Sequence[str],
        *,
        height: int,
        width: int,
        category_ids: Ids = None,
    ) -> Self:
        """From the entries of one image in a COCO results file, as `to_coco` gives them.

        Raises:
            InputError: a category_id is none of `category_ids`, or a key is missing.
        """
        entries = list(entries)
        ids = list(category_ids or range(1, len(class_names) + 1))
        try:
            boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
            labels = [ids.index(entry["category_id"]) + 1 for entry in entries]
            scores = [entry["score"] for entry in entries]
        except (KeyError, ValueError) as error:
            raise InputError(f"not entries of COCO results for these classes ({error})") from None
        boxes[:, 2:] += boxes[:, :2]
        return _made(cls, boxes, scores, labels, class_names, height, width, ids)

    def to_supervision(self) -> supervision.Detections:
        """supervision's `Detections`, for its annotators, zones, trackers and metrics.

        `class_id` is label - 1, `data["class_name"]` has the names.
        """
        found: supervision.Detections = _library("supervision", "supervision").Detections(
            xyxy=self.boxes.copy(),
            mask=self.masks,
            confidence=self.scores.copy(),
            class_id=self.labels - 1,
            tracker_id=None if self.track_ids is None else self.track_ids.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )
        return found

    @classmethod
    def from_supervision(
        cls: type[Self],
        found: supervision.Detections,
        class_names: Sequence[str],
        *,
        height: int,
        width: int,
        category_ids: Ids = None,
    ) -> Self:
        """From supervision's `Detections`, whose class ids are 0..K-1.

        Raises:
            InputError: it has no confidence or class_id, or impossible values.
        """
        if len(found) and (found.confidence is None or found.class_id is None):
            raise InputError("supervision's detections have no confidence or no class_id")
        scores: Any = [] if found.confidence is None else found.confidence
        labels = np.zeros(0) if found.class_id is None else np.asarray(found.class_id) + 1
        return _made(
            cls,
            found.xyxy,
            scores,
            labels,
            class_names,
            height,
            width,
            category_ids,
            found.tracker_id,
        )

    def to_torch(self) -> dict[str, torch.Tensor]:
        """torchvision's dictionary of a detector's output, also read by torchmetrics.

        boxes [N, 4] float32 xyxy pixels, labels [N] int64 1..K, scores [N] float32, and where
        there are masks [N, H, W] bool.
        """
        library = _library("torch", "train")
        fields: dict[str, Any] = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        if self.masks is not None:
            fields["masks"] = self.masks
        return {name: library.from_numpy(value.copy()) for name, value in fields.items()}

    @classmethod
    def from_torch(
        cls: type[Self],
        output: Mapping[str, torch.Tensor],
        class_names: Sequence[str],
        *,
        height: int,
        width: int,
        category_ids: Ids = None,
    ) -> Self:
        """From torchvision's dictionary of one image, with labels 1..K.

        Raises:
            InputError: a key is missing, or holds impossible values.
        """
        try:
            values = [output[key].detach().cpu().numpy() for key in ("boxes", "scores", "labels")]
        except KeyError as error:
            raise InputError(
                f"the output has no {error}, as torchvision's detectors have"
            ) from None
        boxes, scores, labels = values
        return _made(cls, boxes, scores, labels, class_names, height, width, category_ids)


def _made(
    cls: type[Self],
    boxes: Any,
    scores: Any,
    labels: Any,
    names: Sequence[str],
    height: int,
    width: int,
    ids: Ids,
    tracks: Any = None,
) -> Self:
    made: Self = cls.from_boxes(
        boxes,
        scores,
        labels,
        names,
        height=height,
        width=width,
        category_ids=ids,
        track_ids=tracks,
    )
    return made


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"{name} is not installed: pip install 'sparsedet[{extra}]'") from None


def empty_letterbox(height: int, width: int) -> Letterbox:
    """The letterbox of an image that is its own network input.

    Raises:
        InputError: it has no pixels.
    """
    if min(height, width) < 1:
        raise InputError(f"the image has {width}x{height} pixels, expected at least 1x1")
    return Letterbox(height, width, height, width, height, width)


def sorted_by_score(
    boxes: Any, scores: Any, labels: Any, classes: int, tracks: Any
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Boxes (N, 4), scores, labels and track ids, checked and with the best first.

    Raises:
        InputError: the shapes do not fit, or a value is one that no detection can have.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    columns = [np.asarray(scores, np.float32).reshape(-1), np.asarray(labels).reshape(-1)]
    if tracks is not None:
        columns.append(np.asarray(tracks).reshape(-1))
    if any(len(column) != len(corners) for column in columns):
        found = ", ".join(str(len(column)) for column in columns)
        raise InputError(f"{len(corners)} boxes, but scores, labels, track ids: {found}")
    if not (np.isfinite(corners).all() and np.isfinite(columns[0]).all()):
        raise InputError("boxes or scores hold NaN or infinite values, expected finite numbers")
    whole = columns[1].astype(np.int64)
    bad = (whole != columns[1]) | (whole < 1) | (whole > classes)
    if bad.any():
        raise InputError(f"label {columns[1][bad][0]:g}, expected a whole number 1..{classes}")
    order = np.argsort(-columns[0], kind="stable")
    ids = None if tracks is None else columns[2].astype(np.int64)[order]
    return corners[order], columns[0][order], whole[order], ids
