"""The graph of a network: all its operations, in order of execution, with shapes.

A family of detectors is a function that builds a graph (`model.c4`). Everything else reads it: the
torch model, importers, exporters, calibration, pruning, `info`, and the engine, to which
`engine.lower` hands a rewritten one (`model.rewrite`). `model.interpreter` walks it.

An operation makes one value, which has its name. Its attributes are a class, whose `kind` is the
kind of the operation; the classes are in `KINDS`.

Glossary: H, W are rows and columns; a MAC is one multiply-accumulate (2 FLOPs). A value belongs to
a domain: the image (the network input), a map (a feature map of the image), RoIs (a feature map of
each box), boxes, or rows (detections).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
        linear: its weights are stored as (out, in): a fully connected layer on 1x1 maps.
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
        strides: of each level, pixels between two cells.
        box_weights: divisors of the deltas.
        delta_clamp: largest dw and dh.
        pre_nms: boxes of each level before NMS.
        count: boxes after NMS, at most.
        remove_empty, inclusive: as `ModelConfig.rpn_remove_empty` and `rpn_inclusive`.
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

    Inputs: class logits, deltas, proposals, the image. The attributes are fields of `ModelConfig`.
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

    def output(self, inputs: Sequence[Shape]) -> Shape:
        domains = [i.domain for i in inputs]
        _expect(domains == ["rois", "rois", "boxes", IMAGE], "reads RoIs, boxes and the image")
        logits, deltas = inputs[:2]
        fits = logits.channels == self.num_classes + 1
        fits &= deltas.channels == 4 * (self.num_classes + self.background_deltas)
        _expect(fits and logits.size == deltas.size == (1, 1), "does not fit its logits and deltas")
        return Shape("rows", 7, count=self.max_detections)


Attributes = Normalise | Conv | MaxPool | Mean | Slice | Proposals | RoiAlign | DetectionOutput
KINDS: dict[str, type[Attributes]] = {
    kind.kind: kind
    for kind in (Normalise, Conv, MaxPool, Mean, Slice, Proposals, RoiAlign, DetectionOutput)
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


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or fully connected layer with its tensors and shapes.

    Attributes:
        name: prefix of its tensors, `NAME.weight` and `NAME.bias`.
        operation: the (first) operation that has these tensors.
        input, output: shapes of that operation.
    """

    name: str
    operation: Operation
    attributes: Conv
    input: Shape
    output: Shape

    @property
    def source(self) -> str:
        """Name of the value that it reads."""
        return self.operation.inputs[0]

    @property
    def residual(self) -> str | None:
        """Name of the value that is added before the activation, or None."""
        return self.operation.inputs[1] if len(self.operation.inputs) > 1 else None

    @property
    def kind(self) -> Literal["conv", "linear"]:
        return "linear" if self.attributes.linear else "conv"

    @property
    def per_roi(self) -> bool:
        """Whether it runs once per RoI; all others run once per image."""
        return self.output.domain == "rois"

    @property
    def in_channels(self) -> int:
        return self.input.channels

    @property
    def out_channels(self) -> int:
        return self.attributes.out_channels

    @property
    def kernel(self) -> int:
        """Rows and columns of the filter."""
        return self.attributes.kernel[0]

    @property
    def stride(self) -> int:
        return self.attributes.stride

    @property
    def padding(self) -> tuple[int, int]:
        """(before, after) on both axes; a negative `after` drops rows and columns."""
        return self.attributes.padding[1:3]

    @property
    def relu(self) -> bool:
        return self.attributes.activation == "relu"

    @property
    def norm(self) -> bool:
        return self.attributes.norm

    @property
    def prunable(self) -> bool:
        return self.attributes.prunable

    @property
    def in_size(self) -> tuple[int, int]:
        return self.input.size

    @property
    def out_size(self) -> tuple[int, int]:
        return self.output.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in, k, k), or (out, in) for a fully connected layer."""
        if self.attributes.linear:
            return (self.out_channels, self.in_channels)
        return (self.out_channels, self.in_channels, *self.attributes.kernel)

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        height, width = self.attributes.kernel
        return self.out_channels * self.in_channels * height * width

    @property
    def parameters(self) -> int:
        """Weights and biases, batch norm folded."""
        return self.weights + self.out_channels

    @property
    def crop(self) -> int:
        """Last rows and columns to cut off before the layer, where its padding is negative.

        For runtimes whose convolutions have no negative padding. Mostly 0, because a window of
        stride 2 on an even size never reads the last row.
        """
        before, after = self.padding
        whole = tuple(output_length(n, self.kernel, self.stride, (before, 0)) for n in self.in_size)
        return -after if after < 0 and whole != self.out_size else 0

    @property
    def macs(self) -> int:
        """Dense MACs per image (or per RoI), taps in the padding included."""
        return self.weights * self.output.height * self.output.width


@dataclass(frozen=True)
class Graph:
    """The operations of a network for one size of the network input.

    Attributes:
        image: shape of the network input.
        operations: each reads only the image and values of earlier ones; the last one makes the
            output.

    Raises:
        InputError: an operation does not fit its inputs, or the network input is too small.
    """

    image: Shape
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        shapes = {IMAGE: self.image}
        for operation in self.operations:
            name = operation.name
            if name in shapes:
                raise InputError(f"the graph has two values {name!r}")
            for source in operation.inputs:
                if source not in shapes:
                    raise InputError(f"operation {name!r} reads {source!r}, which no earlier makes")
            try:
                shape = operation.attributes.output([shapes[i] for i in operation.inputs])
            except InputError as error:
                raise InputError(f"operation {name!r} {error}") from None
            if min(shape.size) < 1:
                height, width = self.image.size
                raise InputError(
                    f"network input {height}x{width} is too small: {name} would be empty"
                )
            shapes[name] = shape
        object.__setattr__(self, "_shapes", shapes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each value by name."""
        shapes: dict[str, Shape] = self.__dict__["_shapes"]
        return shapes

    @property
    def output(self) -> str:
        """Name of the last value."""
        return self.operations[-1].name

    @cached_property
    def by_name(self) -> dict[str, Operation]:
        return {operation.name: operation for operation in self.operations}

    @cached_property
    def readers(self) -> dict[str, tuple[Operation, ...]]:
        """The operations that read each value, by its name."""
        found: dict[str, list[Operation]] = {name: [] for name in self.shapes}
        for operation in self.operations:
            for name in dict.fromkeys(operation.inputs):
                found[name].append(operation)
        return {name: tuple(operations) for name, operations in found.items()}

    def of_kind(self, kind: type[Kind]) -> Iterator[tuple[Operation, Kind]]:
        """The operations of one kind with their attributes, in order."""
        for operation in self.operations:
            if isinstance(operation.attributes, kind):
                yield operation, operation.attributes

    def only(self, kind: type[Kind]) -> tuple[Operation, Kind]:
        """The operation of a kind that occurs once."""
        (found,) = self.of_kind(kind)
        return found

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with tensors of their own, in order of execution."""
        found: dict[str, Layer] = {}
        for operation, conv in self.of_kind(Conv):
            for name in conv.layers:
                shapes = self.shapes[operation.inputs[0]], self.shapes[operation.name]
                found.setdefault(name, Layer(name, operation, conv, *shapes))
        return tuple(found.values())

    @cached_property
    def layer(self) -> dict[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.layers}

    def resized(self, height: int, width: int) -> Graph:
        """The same network for another size of the network input, in pixels."""
        return Graph(replace(self.image, height=height, width=width), self.operations)

    @property
    def rois(self) -> int:
        """RoIs of an image, at most; 0: the network has none."""
        return max(
            (shape.count for shape in self.shapes.values() if shape.domain == "rois"), default=0
        )

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole network, batch norm folded."""
        return sum(layer.parameters for layer in self.layers)

    def macs(self, rois: int) -> int:
        """Dense MACs of one image with that number of RoIs."""
        return sum(layer.macs * (rois if layer.per_roi else 1) for layer in self.layers)

    def flops(self, rois: int) -> int:
        """FLOPs of convolutions and fully connected layers, 2 per MAC."""
        return 2 * self.macs(rois)
