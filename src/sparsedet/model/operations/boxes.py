"""Operations that make boxes and detections, and those that read boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..record import Record
from .maps import Activation
from .shape import IMAGE, Shape, expect

CellAnchors = tuple[tuple[tuple[float, float, float, float], ...], ...]
"""Of each level, the anchors of the cell at the origin, xyxy pixels."""

Pasting = Literal["whole", "continuous"]
"""How masks are pasted into an image (`images.masks.paste`): over whole pixels, or in continuous
coordinates."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Proposals(Record):
    """maps and the image -> boxes: decoded anchors that survive non-maximum suppression.

    Inputs: the objectness logits of each level, then the deltas of each level, then the image.
    Boxes are xyxy pixels of the network input.

    Attributes:
        cell_anchors: of each level, the anchors of the cell at the origin.
        strides: of each level, pixels between two cells; 0: those of the network input over
            those of the map, on each axis (torchvision).
        box_weights: divisors of the deltas.
        delta_clamp: largest dw and dh.
        pre_nms: boxes of each level before NMS.
        count: boxes after NMS, at most.
        remove_empty, inclusive: as `ModelConfig.rpn_remove_empty` and `rpn_inclusive`.
        min_size: boxes with a shorter side, in pixels, are dropped; 0: none.
        score_threshold: boxes whose objectness, the sigmoid of the logit, is less are dropped.
    """

    kind: ClassVar[str] = "proposals"
    cell_anchors: CellAnchors
    strides: tuple[int, ...]
    box_weights: tuple[float, float, float, float]
    delta_clamp: float
    pre_nms: int
    count: int
    nms_threshold: float
    remove_empty: bool
    inclusive: bool
    min_size: float = 0.0
    score_threshold: float = 0.0

    def output(self, inputs: Sequence[Shape]) -> Shape:
        levels = len(self.strides)
        expect(len(self.cell_anchors) == levels, "needs a stride for each set of anchors")
        domains = [i.domain for i in inputs]
        expect(domains == ["map"] * (2 * levels) + [IMAGE], "reads maps and the image")
        for anchors, logits, deltas in zip(
            self.cell_anchors, inputs, inputs[levels:-1], strict=False
        ):
            fits = logits.channels == len(anchors) and deltas.channels == 4 * len(anchors)
            expect(fits and logits.size == deltas.size, "has maps that do not fit its anchors")
        return Shape("boxes", 4, count=self.count)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RoiAlign(Record):
    """maps and boxes -> RoIs: RoIAlign, then bias and activation.

    Inputs: the map of each level, then boxes, or the rows whose boxes it reads.

    Attributes:
        scales: of each level, map cells for each pixel of the network input.
        size: bins along each axis.
        sampling_ratio: samples of a bin along each axis; 0: one for each cell, rounded up.
        sampling: as `ModelConfig.roi_sampling`; "legacy": without the half-pixel shift, and boxes
            are at least one cell long (torchvision's aligned=False).
        step: only the bins 0, step, 2 * step ... are computed.
        canonical_size, canonical_level, first_level: level of a box, floor(canonical_level +
            log2(sqrt(area) / canonical_size)); `first_level` is that of the first map.
        bias_of: layer whose bias is added; "": none.
    """

    kind: ClassVar[str] = "roi_align"
    scales: tuple[float, ...]
    size: int
    sampling_ratio: int
    sampling: Literal["aligned", "legacy", "corners"]
    step: int = 1
    canonical_size: float = 224.0
    canonical_level: int = 4
    first_level: int = 2
    bias_of: str = ""
    activation: Activation = "none"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        domains = [i.domain for i in inputs]
        ok = domains[:-1] == ["map"] * len(self.scales) and domains[-1] in ("boxes", "rows")
        expect(ok, "reads maps and boxes")
        expect(len({i.channels for i in inputs[:-1]}) == 1, "reads maps that differ in channels")
        bins = -(-self.size // self.step)
        return Shape("rois", inputs[0].channels, bins, bins, inputs[-1].count)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DetectionOutput(Record):
    """RoIs, boxes and the image -> rows: softmax, decoding, non-maximum suppression by class.

    Inputs: class logits, deltas, proposals, the image. The attributes are fields of `ModelConfig`,
    and `min_size` as of `Proposals`.
    """

    kind: ClassVar[str] = "detections"
    num_classes: int
    background: Literal["first", "last"]
    background_deltas: bool
    box_weights: tuple[float, float, float, float]
    delta_clamp: float
    score_threshold: float
    nms_threshold: float
    max_detections: int
    min_size: float = 0.0

    def output(self, inputs: Sequence[Shape]) -> Shape:
        domains = [i.domain for i in inputs]
        expect(domains == ["rois", "rois", "boxes", IMAGE], "reads RoIs, boxes and the image")
        logits, deltas = inputs[:2]
        fits = logits.channels == self.num_classes + 1
        fits &= deltas.channels == 4 * (self.num_classes + self.background_deltas)
        expect(fits and logits.size == deltas.size == (1, 1), "does not fit its logits and deltas")
        return Shape("rows", 7, count=self.max_detections)


def _expect_levels(inputs: Sequence[Shape], channels: Sequence[Sequence[int]]) -> None:
    """Maps of several levels, kind after kind, then the image.

    Args:
        channels: of each kind, channels of each level.
    """
    levels, domains = len(channels[0]), [i.domain for i in inputs]
    expect(
        levels > 0 and domains == ["map"] * (len(channels) * levels) + [IMAGE],
        "reads maps and the image",
    )
    for i, of_kind in enumerate(channels):
        maps = inputs[i * levels : (i + 1) * levels]
        fits = all(
            x.channels == wanted and x.size == first.size
            for x, wanted, first in zip(maps, of_kind, inputs[:levels], strict=True)
        )
        expect(fits, "has maps that do not fit each other, its anchors or classes")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RetinaNetOutput(Record):
    """maps and the image -> rows: sigmoid, decoding of anchors, non-maximum suppression by class.

    Inputs: the class logits of each level, anchor after anchor, then the deltas of each level, then
    the image. Of each level the best `pre_nms` scores above `score_threshold` are decoded.

    Attributes:
        cell_anchors, strides, box_weights, delta_clamp, pre_nms: as of `Proposals`.
        num_classes: logits of each anchor; the first one is label 1.
        clip_first: boxes end at the image's edges before non-maximum suppression; else after it.
    """

    kind: ClassVar[str] = "retinanet_detections"
    num_classes: int
    cell_anchors: CellAnchors
    strides: tuple[int, ...]
    box_weights: tuple[float, float, float, float]
    delta_clamp: float
    pre_nms: int
    score_threshold: float
    nms_threshold: float
    max_detections: int
    clip_first: bool = True

    def output(self, inputs: Sequence[Shape]) -> Shape:
        fits = len(self.cell_anchors) == len(self.strides)
        expect(fits, "needs a stride for each set of anchors")
        anchors = [len(cell) for cell in self.cell_anchors]
        _expect_levels(inputs, [[n * self.num_classes for n in anchors], [4 * n for n in anchors]])
        return Shape("rows", 7, count=self.max_detections)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FcosOutput(Record):
    """maps and the image -> rows: sigmoid, boxes around points, non-maximum suppression by class.

    A score is sqrt(sigmoid(logit) * sigmoid(centerness)). Inputs: the class logits of each level,
    then the distances (left, top, right, bottom) of each level, then the centerness of each level,
    then the image. Of each level the best `pre_nms` scores above `score_threshold` are decoded.

    Attributes:
        num_classes: logits of each cell; the first one is label 1.
        sizes: of each level, pixels in one unit of distance.
        strides: as of `Proposals`; cell (y, x) stands for the point (x * stride, y * stride).
    """

    kind: ClassVar[str] = "fcos_detections"
    num_classes: int
    sizes: tuple[float, ...]
    strides: tuple[int, ...]
    pre_nms: int
    score_threshold: float
    nms_threshold: float
    max_detections: int

    def output(self, inputs: Sequence[Shape]) -> Shape:
        levels = len(self.strides)
        expect(len(self.sizes) == levels, "needs a stride for each size")
        _expect_levels(inputs, [[n] * levels for n in (self.num_classes, 4, 1)])
        return Shape("rows", 7, count=self.max_detections)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CellOutput(Record):
    """maps and the image -> rows: sigmoid, one box a cell, non-maximum suppression by class, as in
    YOLOX, YOLOv8 and PicoDet; and in YOLOv5, each of whose anchors is a level of its own.

    A score is sigmoid(logit), times sigmoid(objectness) if there is one. Inputs: the class logits
    of each level, then the boxes of each level, then the objectness of each level if there is one,
    then the image. Of each level the best `pre_nms` scores above `score_threshold` are decoded.

    Attributes:
        num_classes: logits of each cell; the first one is label 1.
        strides: of each level, pixels between two cells; cell (y, x) stands for the point
            ((x + offset) * stride, (y + offset) * stride).
        boxes: "distances": left, top, right and bottom from the point, in strides; "centre": x and
            y of the centre from the point and the logarithms of width and height, in strides;
            "anchor": with s twice the sigmoid of each, the centre is s - 1 from the point, in
            strides, and width and height are s * s times the anchor's.
        bins: channels of each distance; from 2 on it is the mean of 0, 1, ... by their softmax.
        objectness: whether there is one.
        several_labels: a cell may have several labels; else only that of its best score.
        anchors: of each level, width and height in pixels; of "anchor" alone.
    """

    kind: ClassVar[str] = "cell_detections"
    num_classes: int
    strides: tuple[int, ...]
    boxes: Literal["distances", "centre", "anchor"]
    bins: int
    offset: float
    objectness: bool
    several_labels: bool
    pre_nms: int
    score_threshold: float
    nms_threshold: float
    max_detections: int
    anchors: tuple[tuple[float, float], ...] = ()

    def output(self, inputs: Sequence[Shape]) -> Shape:
        levels = len(self.strides)
        expect(min(self.strides, default=0) > 0, "needs strides")
        anchors = levels if self.boxes == "anchor" else 0
        expect(len(self.anchors) == anchors, f"has {len(self.anchors)} anchors, needs {anchors}")
        expect(self.boxes == "distances" or self.bins == 1, "has bins that its boxes do not need")
        channels = [self.num_classes, 4 * self.bins, *([1] if self.objectness else [])]
        _expect_levels(inputs, [[n] * levels for n in channels])
        return Shape("rows", 7, count=self.max_detections)


Detecting = DetectionOutput | RetinaNetOutput | FcosOutput | CellOutput
"""The kinds that make rows."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaskOutput(Record):
    """RoIs and rows -> masks: the sigmoid of the channel of each row's label.

    Inputs: mask logits, one channel for each class; the rows, whose boxes are the RoIs'.

    Attributes:
        background: whether the first channel is that of the background, which no label has.
        pasting: how the masks are pasted into the image. It changes nothing in the network.
    """

    kind: ClassVar[str] = "masks"
    background: bool
    pasting: Pasting = "whole"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        ok = [i.domain for i in inputs] == ["rois", "rows"] and inputs[0].count == inputs[1].count
        expect(ok, "reads RoIs and their rows")
        return Shape("masks", 1, *inputs[0].size, inputs[1].count)
