"""Operations that make feature maps, of the image or of RoIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ..record import Record
from .shape import IMAGE, Padding, Shape, expect, window

Activation = Literal["none", "relu", "hardswish", "hardsigmoid", "relu6", "sigmoid", "silu", "gelu"]
"""relu is max(x, 0), hardsigmoid clip(x / 6 + 1/2, 0, 1), hardswish x * hardsigmoid(x), relu6
clip(x, 0, 6), silu x * sigmoid(x), gelu x * (1 + erf(x / sqrt(2))) / 2."""

LATE_RESIDUALS = ("relu", "silu", "gelu")
"""Activations after which a convolution may add its residual."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Normalise(Record):
    """image -> map: (pixel - mean) / std of each colour, BGR, 0..255.

    Attributes:
        mean, std: of the colours B, G, R.
        rgb: the channels of the map are R, G, B; else B, G, R.
    """

    kind: ClassVar[str] = "normalise"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rgb: bool = False

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == [IMAGE], "reads the image")
        return Shape("map", 3, *inputs[0].size)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Conv(Record):
    """A convolution or fully connected layer: bias, then `residual` if there is one, activation.

    Inputs: x, and the value that is added before the activation, or after it, or not.

    Attributes:
        layers: the layers whose tensors it has, `NAME.weight` and `NAME.bias`, one after the other
            along the output channels.
        bias: whether it adds the bias of `layers`.
        groups: the input channels are cut into so many parts, and each part of the output channels
            reads its own; as many as channels: a depthwise convolution.
        linear: its weights are stored as (out, columns): a fully connected layer, which reads all
            cells of its input.
        norm: batch norm follows in training; for inference it is folded.
        eps: of the batch norm.
        prunable: pruned by default; stem and predictors are not.
        residual_last: the residual is added after the activation, one of `LATE_RESIDUALS`.
    """

    kind: ClassVar[str] = "conv"
    out_channels: int
    kernel: tuple[int, int]
    layers: tuple[str, ...]
    stride: int = 1
    padding: Padding = (0, 0, 0, 0)
    dilation: int = 1
    groups: int = 1
    activation: Activation = "none"
    bias: bool = True
    linear: bool = False
    norm: bool = False
    eps: float = 1e-5
    prunable: bool = False
    residual_last: bool = False

    def output(self, inputs: Sequence[Shape]) -> Shape:
        ok = 1 <= len(inputs) <= 2 and inputs[0].domain in ("map", "rois")
        expect(ok, "reads a map or RoIs")
        x = inputs[0]
        divisible = x.channels % self.groups == self.out_channels % self.groups == 0
        expect(divisible, f"has channels that {self.groups} groups do not divide")
        size = window(x, self.kernel, self.stride, self.padding, self.dilation)
        out = Shape(x.domain, self.out_channels, *size, x.count)
        expect(inputs[1:] in ([], [out]), "adds a value of another shape than its output")
        late = self.activation in LATE_RESIDUALS and self.groups == 1 and len(inputs) == 2
        expect(late or not self.residual_last, "cannot add a value after its activation")
        return out


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaxPool(Record):
    """map -> map: the largest value of each window. Padding is never the largest."""

    kind: ClassVar[str] = "max_pool"
    kernel: int
    stride: int
    padding: Padding

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map"], "reads a map")
        x = inputs[0]
        height, width = window(x, (self.kernel, self.kernel), self.stride, self.padding)
        return replace(x, height=height, width=width)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AveragePool(Record):
    """map -> map: the mean of each window.

    Attributes:
        count_padding: whether cells of the padding count, as zeros.
    """

    kind: ClassVar[str] = "average_pool"
    kernel: int
    stride: int
    padding: Padding
    count_padding: bool = True

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map"], "reads a map")
        x, inside = inputs[0], 0 <= min(self.padding) <= max(self.padding) < self.kernel
        expect(inside, "has padding that its window does not fit")
        height, width = window(x, (self.kernel, self.kernel), self.stride, self.padding)
        return replace(x, height=height, width=width)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Affine(Record):
    """map -> map: each channel times its scale, plus its offset, then activation: a batch norm that
    no convolution could take.

    Attributes:
        layer: whose tensors it has, the scales `NAME.weight` and the offsets `NAME.bias`.
    """

    kind: ClassVar[str] = "affine"
    layer: str
    activation: Activation = "none"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map"], "reads a map")
        return inputs[0]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Add(Record):
    """Two maps -> map: their sum, then activation, where no convolution could take it."""

    kind: ClassVar[str] = "add"
    activation: Activation = "none"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map", "map"], "reads two maps")
        expect(inputs[0] == inputs[1], "adds maps of different shapes")
        return inputs[0]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Concat(Record):
    """maps -> map: all channels, one input after the other."""

    kind: ClassVar[str] = "concat"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect({i.domain for i in inputs} == {"map"}, "reads maps")
        expect(len({i.size for i in inputs}) == 1, "joins maps of different sizes")
        return replace(inputs[0], channels=sum(i.channels for i in inputs))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Shuffle(Record):
    """map -> map: groups of channels take turns (ShuffleNet).

    Channel c * groups + g of the output is channel g * C / groups + c of the input, of C channels.
    """

    kind: ClassVar[str] = "shuffle"
    groups: int

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map"], "reads a map")
        expect(inputs[0].channels % self.groups == 0, "has channels that its groups do not divide")
        return inputs[0]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Attention(Record):
    """map -> map: self-attention among all cells, in float32.

    The channels of each head lie side by side: `key` of the query, `key` of the key, the others of
    the value. A cell gets the mean of all cells' values, weighted by the softmax of its query times
    their keys times `score_scale`.
    """

    kind: ClassVar[str] = "attention"
    heads: int
    key: int
    score_scale: float

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map"], "reads a map")
        x = inputs[0]
        fits = x.channels % self.heads == 0 and x.channels // self.heads > 2 * self.key
        expect(fits, "has channels that its heads do not fit")
        expect(x.height * x.width <= 2**14, "attends to more than 16384 cells")
        return replace(x, channels=x.channels - 2 * self.heads * self.key)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GroupNorm(Record):
    """map -> map: each group of channels gets mean 0 and variance 1 over the whole map, then scale
    and offset of each channel, then activation.

    Attributes:
        layer: whose tensors it has, the scales `NAME.weight` and the offsets `NAME.bias`.
        groups: of neighbouring channels.
        eps: is added to the variance.
    """

    kind: ClassVar[str] = "group_norm"
    layer: str
    groups: int
    eps: float = 1e-5
    activation: Activation = "none"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map"], "reads a map")
        expect(inputs[0].channels % self.groups == 0, "has channels that its groups do not divide")
        return inputs[0]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Activate(Record):
    """map -> map: an activation that no convolution could take, as others read its input, too."""

    kind: ClassVar[str] = "activate"
    activation: Activation

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map"], "reads a map")
        return inputs[0]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Multiply(Record):
    """map and a map of 1x1 -> map: each channel times its factor (squeeze and excitation)."""

    kind: ClassVar[str] = "multiply"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        expect([i.domain for i in inputs] == ["map", "map"], "reads two maps")
        x, factors = inputs
        expect(factors == Shape("map", x.channels), "reads factors that do not fit its map")
        return x


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Mean(Record):
    """A map or RoIs -> the same of 1x1: the mean over all cells."""

    kind: ClassVar[str] = "mean"

    def output(self, inputs: Sequence[Shape]) -> Shape:
        ok = len(inputs) == 1 and inputs[0].domain in ("map", "rois")
        expect(ok, "reads a map or RoIs")
        return replace(inputs[0], height=1, width=1)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Resize(Record):
    """map -> map: the nearest cell, at the size of the second input (torch's mode "nearest").

    Attributes:
        factor: of both axes, then there is no second input; 0: as the second input says.
    """

    kind: ClassVar[str] = "resize"
    factor: int = 0

    def output(self, inputs: Sequence[Shape]) -> Shape:
        if self.factor:
            expect([i.domain for i in inputs] == ["map"], "reads a map")
            height, width = (length * self.factor for length in inputs[0].size)
            return replace(inputs[0], height=height, width=width)
        expect([i.domain for i in inputs] == ["map", "map"], "reads two maps")
        return replace(inputs[0], height=inputs[1].height, width=inputs[1].width)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Slice(Record):
    """The channels [first, first + channels) of a map or of RoIs."""

    kind: ClassVar[str] = "slice"
    first: int
    channels: int

    def output(self, inputs: Sequence[Shape]) -> Shape:
        ok = len(inputs) == 1 and inputs[0].domain in ("map", "rois")
        expect(ok, "reads a map or RoIs")
        inside = self.first >= 0 and 0 < self.channels <= inputs[0].channels - self.first
        expect(inside, "reaches beyond the channels of its input")
        return replace(inputs[0], channels=self.channels)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DepthToSpace(Record):
    """map or RoIs -> the same: channels become cells.

    The cell (y * block + i, x * block + j) of channel c is the cell (y, x) of channel
    (i * block + j) * C + c, where C are the channels of the output (ONNX's mode "DCR").
    """

    kind: ClassVar[str] = "depth_to_space"
    block: int

    def output(self, inputs: Sequence[Shape]) -> Shape:
        ok = len(inputs) == 1 and inputs[0].domain in ("map", "rois")
        expect(ok, "reads a map or RoIs")
        x, cells = inputs[0], self.block**2
        expect(x.channels % cells == 0, f"has channels that {cells} cells do not divide")
        sides = x.height * self.block, x.width * self.block
        return Shape(x.domain, x.channels // cells, *sides, x.count)
