"""What detectors make of their predictors' outputs, in numpy.

Each function is a hypothesis: `detectors` gives random numbers to the predictors of a file and
takes the hypothesis whose outputs are those of the file's tail.

Predictors are, of each level, logits [C, H, W], boxes [4 * bins, H, W] and, of some detectors,
objectness [1, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Level:
    """The predictors' outputs of one level, float64."""

    logits: F64
    boxes: F64
    objectness: F64 | None
    stride: int

    @property
    def points(self) -> F64:
        """[2, H * W]: column and row of each cell."""
        rows, columns = np.mgrid[: self.logits.shape[1], : self.logits.shape[2]]
        return np.stack([columns.ravel(), rows.ravel()]).astype(np.float64)


def _flat(x: F64) -> F64:
    return x.reshape(len(x), -1)


def _sigmoid(x: F64) -> F64:
    return np.asarray(1 / (1 + np.exp(-x)))


def _distances(level: Level) -> F64:
    """Left, top, right and bottom of each cell in strides, [4, H * W]."""
    boxes = _flat(level.boxes)
    bins = len(boxes) // 4
    if bins == 1:
        return boxes
    powers = np.exp(boxes.reshape(4, bins, -1))
    return np.asarray((powers * np.arange(bins)[:, None]).sum(1) / powers.sum(1))


def _yolox(level: Level, decoded: bool) -> F64:
    """[H * W, 5 + C]: box, objectness, scores."""
    boxes = _flat(level.boxes)
    if decoded:
        boxes = np.concatenate([boxes[:2] + level.points, np.exp(boxes[2:])]) * level.stride
    assert level.objectness is not None
    rest = [_sigmoid(_flat(x)) for x in (level.objectness, level.logits)]
    return np.concatenate([boxes, *rest]).T


def yolox_raw(levels: Sequence[Level]) -> list[F64]:
    return [np.concatenate([_yolox(level, False) for level in levels])[None]]


def yolox_decoded(levels: Sequence[Level]) -> list[F64]:
    return [np.concatenate([_yolox(level, True) for level in levels])[None]]


def yolov8(levels: Sequence[Level]) -> list[F64]:
    """[1, 4 + C, N]: centre, size, scores."""
    columns = []
    for level in levels:
        sides, points = _distances(level), level.points + 0.5
        first, last = points - sides[:2], points + sides[2:]
        box = np.concatenate([(first + last) / 2, last - first]) * level.stride
        columns.append(np.concatenate([box, _sigmoid(_flat(level.logits))]))
    return [np.concatenate(columns, axis=1)[None]]


def picodet(levels: Sequence[Level]) -> list[F64]:
    """Of each level the scores [1, H * W, C], then of each the bins [1, H * W, 4 * bins]."""
    scores = [_sigmoid(_flat(level.logits)).T[None] for level in levels]
    return scores + [_flat(level.boxes).T[None] for level in levels]


def yolov5_sides(level: Level) -> F64:
    """Width and height in anchors, [2, H * W]."""
    return np.asarray((2 * _sigmoid(_flat(level.boxes)[2:])) ** 2)


def yolov5(levels: Sequence[Level], anchors: Sequence[tuple[float, float]]) -> F64:
    """[1, N, 5 + C]: centre, size, objectness, scores; a level for each anchor."""
    rows = []
    for level, anchor in zip(levels, anchors, strict=True):
        centre = 2 * _sigmoid(_flat(level.boxes)[:2]) - 0.5 + level.points
        sides = yolov5_sides(level) * np.asarray(anchor)[:, None]
        assert level.objectness is not None
        rest = [_sigmoid(_flat(x)) for x in (level.objectness, level.logits)]
        rows.append(np.concatenate([centre * level.stride, sides, *rest]).T)
    return np.concatenate(rows)[None]


@dataclass(frozen=True, slots=True)
class Family:
    """Detectors whose files have one form of outputs.

    Attributes:
        name: of the family.
        outputs: the hypothesis; of a family with anchors none (`anchors`).
        boxes, offset, objectness: as of `CellOutput`.
        order, mean, std: of the pixels, 0..255, in that order.
        resize, border, centred: as of `DetectorConfig`.
        score_threshold, nms_threshold, max_detections: those of the family's own evaluation.
    """

    name: str
    outputs: Callable[[Sequence[Level]], list[F64]] | None
    boxes: Literal["distances", "centre", "anchor"]
    offset: float
    objectness: bool
    order: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["letterbox", "stretch"]
    border: int
    centred: bool
    score_threshold: float
    nms_threshold: float
    max_detections: int


_PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and std of ImageNet's pixels, RGB, 0..255: torchvision's."""
_SCALED = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
_YOLOX = Family(
    "YOLOX",
    yolox_raw,
    "centre",
    0.0,
    True,
    "bgr",
    *_PLAIN,
    "letterbox",
    114,
    False,
    0.01,
    0.65,
    100,
)
YOLOV5 = Family(
    "YOLOv5",
    None,
    "anchor",
    0.5,
    True,
    "rgb",
    *_SCALED,
    "letterbox",
    114,
    True,
    0.001,
    0.65,
    300,
)
FAMILIES = (
    _YOLOX,
    replace(_YOLOX, outputs=yolox_decoded),
    Family(
        "YOLOv8",
        yolov8,
        "distances",
        0.5,
        False,
        "rgb",
        *_SCALED,
        "letterbox",
        114,
        True,
        0.001,
        0.7,
        300,
    ),
    Family(
        "PicoDet",
        picodet,
        "distances",
        0.5,
        False,
        "rgb",
        *IMAGENET,
        "stretch",
        0,
        False,
        0.025,
        0.6,
        100,
    ),
)
"""Sources: Megvii's YOLOX (exps/example, demo/ONNXRuntime), PaddleDetection's configuration of
PicoDet (configs/picodet of 2021), and the published command lines of YOLOv5 (the table of its
README) and YOLOv8 (documentation of val and export): conf 0.001, iou 0.65 and 0.7, max_det 300,
letterbox in the middle with 114."""
