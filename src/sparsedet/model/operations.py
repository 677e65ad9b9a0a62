"""The operations of a graph: kinds with typed attributes, and the shapes of what they make.

An operation makes one value, which has its name. Its attributes are a class, whose `kind` is the
kind of the operation; the classes are in `KINDS`.

A value belongs to a domain: the image (the network input), a map (a feature map of the image), RoIs
(a feature map of each box), boxes, or rows (detections). Code takes these names from `graph`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, TypeVar

from ..errors import InputError

Domain = Literal["image", "map", "rois", "boxes", "rows"]
Activation = Literal["none", "relu"]
Padding = tuple[int, int, int, int]
"""Top, left, bottom, right; a negative one drops rows or columns."""

IMAGE: Final = "image"
"""The name of the network input."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a value.

    Attributes:
        channels, height, width: of the image, a map or each RoI; boxes have 4 channels, rows 7.
        count: RoIs, boxes or rows, at most.
    """

    domain: Domain
    channels: int
    height: int = 1
    width: int = 1
    count: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def output_length(
    length: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int = 1
) -> int:
    """Rows (or columns) of a window operation's output; 0 if the window does not fit.

    Args:
        length: rows of the input.
        padding: rows of zeros before and after; negative: rows that are dropped.
    """
    room = length + padding[0] + padding[1] - (kernel - 1) * dilation - 1
    return max(room // stride + 1, 0)


def _window(
    shape: Shape, kernel: tuple[int, int], stride: int, padding: Padding, dilation: int = 1
) -> tuple[int, int]:
    top, left, bottom, right = padding
    return (
        output_length(shape.height, kernel[0], stride, (top, bottom), dilation),
        output_length(shape.width, kernel[1], stride, (left, right), dilation),
    )


def _expect(ok: bool, what: str) -> None:
    if not ok:
        raise InputError(what)


@dataclass(frozen=True, slots=True)
class Normalise:
    """image -> map: (pixel - mean) / std of each colour, BGR, 0..255."""

    kind: ClassVar = "normalise"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def output(self, inputs: Sequence[Shape]) -> Shape:
        _expect([i.domain for i in inputs] == [IMAGE], "reads the image")
        return Shape("map", 3, *inputs[0].size)


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution or fully connected layer: bias, then `residual` if there is one, activation.

    Inputs: x, and the value that is added before the activation, or not.

    Attributes:
        layers: the layers whose tensors it has, `NAME.weight` and `NAME.bias`, one after the other
            along the output channels.
        bias: whether it adds the bias of `layers`.
        linear: its weights are stored as (out, columns): a fully connected layer, which reads all
            cells of its input.
        norm: batch norm follows in training; for inference it is folded.
        eps: of the batch norm.
        prunable: pruned by default; stem and predictors are not.
    """

    kind: ClassVar = "conv"
    out_channels: int
    kernel: tuple[int, int]
    layers: tuple[str, ...]
    stride: int = 1
    padding: Padding = (0, 0, 0, 0)
    dilation: int = 1
    activation: Activation = "none"
    bias: bool = True
    linear: bool = False
    norm: bool = False
    eps: float = 1e-5
    prunable: bool = False

    def output(self, inputs: Sequence[Shape]) -> Shape:
        ok = 1 <= len(inputs) <= 2 and inputs[0].domain in ("map", "rois")
        _expect(ok, "reads a map or RoIs")
        x = inputs[0]
        size = _window(x, self.kernel, self.stride, self.padding, self.dilation)
        out = Shape(x.domain, self.out_channels, *size, x.count)
        _expect(inputs[1:] in ([], [out]), "adds a value of another shape than its output")
        return out


@dataclass(frozen=True, slots=True)
class MaxPool:
    """map -> map: the largest value of each window. Padding is zeros: the input is not negative."""

    kind: ClassVar = "max_pool"
    kernel: int
    stride: int
    padding: Padding

    def output(self, inputs: Sequence[Shape]) -> Shape:
        _expect([i.domain for i in inputs] == ["map"], "reads a map")
        x = inputs[0]
        height, width = _window(x, (self.kernel, self.kernel), self.stride, self.padding)
        return replace(x, height=height, width=width)


@dataclass(frozen=True, slots=True)
class Mean:
    """RoIs -> RoIs of 1x1: the mean over each."""

    kind: ClassVar = "mean"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        _expect([i.domain for i in inputs] == ["rois"], "reads RoIs")
        return replace(inputs[0], height=1, width=1)


@dataclass(frozen=True, slots=True)
class Resize:
    """map -> map: the nearest cell, at the size of the second input (torch's mode "nearest")."""

    kind: ClassVar = "resize"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        _expect([i.domain for i in inputs] == ["map", "map"], "reads two maps")
        return replace(inputs[0], height=inputs[1].height, width=inputs[1].width)


@dataclass(frozen=True, slots=True)
class Slice:
    """The channels [first, first + channels) of a map or of RoIs."""

    kind: ClassVar = "slice"
    first: int
    channels: int

    def output(self, inputs: Sequence[Shape]) -> Shape:
        ok = len(inputs) == 1 and inputs[0].domain in ("map", "rois")
        _expect(ok, "reads a map or RoIs")
        inside = self.first >= 0 and 0 < self.channels <= inputs[0].channels - self.first
        _expect(inside, "reaches beyond the channels of its input")
        return replace(inputs[0], channels=self.channels)


@dataclass(frozen=True, slots=True)
class Proposals:
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
    """

    kind: ClassVar = "proposals"
    cell_anchors: tuple[tuple[tuple[float, float, float, float], ...], ...]
    strides: tuple[int, ...]
    box_weights: tuple[float, float, float, float]
    delta_clamp: float
    pre_nms: int
    count: int
    nms_threshold: float
    remove_empty: bool
    inclusive: bool
    min_size: float = 0.0

    def output(self, inputs: Sequence[Shape]) -> Shape:
        levels = len(self.strides)
        _expect(len(self.cell_anchors) == levels, "needs a stride for each set of anchors")
        domains = [i.domain for i in inputs]
        _expect(domains == ["map"] * (2 * levels) + [IMAGE], "reads maps and the image")
        for anchors, logits, deltas in zip(
            self.cell_anchors, inputs, inputs[levels:-1], strict=False
        ):
            fits = logits.channels == len(anchors) and deltas.channels == 4 * len(anchors)
            _expect(fits and logits.size == deltas.size, "has maps that do not fit its anchors")
        return Shape("boxes", 4, count=self.count)


@dataclass(frozen=True, slots=True)
class RoiAlign:
    """maps and boxes -> RoIs: RoIAlign, then bias and activation.

    Inputs: the map of each level, then the boxes.

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

    kind: ClassVar = "roi_align"
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
        _expect(domains == ["map"] * len(self.scales) + ["boxes"], "reads maps and boxes")
        _expect(len({i.channels for i in inputs[:-1]}) == 1, "reads maps that differ in channels")
        bins = -(-self.size // self.step)
        return Shape("rois", inputs[0].channels, bins, bins, inputs[-1].count)


@dataclass(frozen=True, slots=True)
class DetectionOutput:
    """RoIs, boxes and the image -> rows: softmax, decoding, non-maximum suppression by class.

    Inputs: class logits, deltas, proposals, the image. The attributes are fields of `ModelConfig`,
    and `min_size` as of `Proposals`.
    """

    kind: ClassVar = "detections"
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
        _expect(domains == ["rois", "rois", "boxes", IMAGE], "reads RoIs, boxes and the image")
        logits, deltas = inputs[:2]
        fits = logits.channels == self.num_classes + 1
        fits &= deltas.channels == 4 * (self.num_classes + self.background_deltas)
        _expect(fits and logits.size == deltas.size == (1, 1), "does not fit its logits and deltas")
        return Shape("rows", 7, count=self.max_detections)


Attributes = (
    Normalise | Conv | MaxPool | Mean | Resize | Slice | Proposals | RoiAlign | DetectionOutput
)
KINDS: dict[str, type[Attributes]] = {
    kind.kind: kind
    for kind in (
        Normalise,
        Conv,
        MaxPool,
        Mean,
        Resize,
        Slice,
        Proposals,
        RoiAlign,
        DetectionOutput,
    )
}
Kind = TypeVar("Kind", bound=Attributes)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, and the value that it makes.

    Attributes:
        name: its name and that of its value.
        inputs: names of the values that it reads; `IMAGE` is the network input.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: Attributes

    @property
    def kind(self) -> str:
        return self.attributes.kind


def typed(operation: Operation, kind: type[Kind]) -> Kind:
    """The attributes of an operation that is of that kind."""
    assert isinstance(operation.attributes, kind)
    return operation.attributes
