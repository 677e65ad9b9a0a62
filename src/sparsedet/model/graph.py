"""The graph of a network: all its operations, in order of execution, with shapes.

A family of detectors is a function that builds a graph (`model.c4`). Everything else reads it: the
torch model, importers, exporters, calibration, pruning, `info`, and the engine, to which
`engine.lower` hands a rewritten one (`model.rewrite`). `model.interpreter` walks it.

The kinds of operations are in `operations`, whose names are names of this module, too.

Glossary: H, W are rows and columns; a MAC is one multiply-accumulate (2 FLOPs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ..errors import InputError
from .operations import (
    IMAGE,
    KINDS,
    Activate,
    Activation,
    Add,
    Affine,
    Attention,
    Attributes,
    AveragePool,
    CellAnchors,
    CellOutput,
    Concat,
    Conv,
    DepthToSpace,
    Detecting,
    DetectionOutput,
    Domain,
    FcosOutput,
    GroupNorm,
    Kind,
    MaskOutput,
    MaxPool,
    Mean,
    Multiply,
    Normalise,
    Operation,
    Padding,
    Pasting,
    Proposals,
    Resize,
    RetinaNetOutput,
    RoiAlign,
    Shape,
    Shuffle,
    Slice,
    output_length,
    typed,
)
from .record import Record

__all__ = [
    "IMAGE",
    "KINDS",
    "Activate",
    "Activation",
    "Add",
    "Affine",
    "Attention",
    "Attributes",
    "AveragePool",
    "CellAnchors",
    "CellOutput",
    "Concat",
    "Conv",
    "DepthToSpace",
    "Detecting",
    "DetectionOutput",
    "Domain",
    "FcosOutput",
    "Graph",
    "GroupNorm",
    "Kind",
    "Layer",
    "MaskOutput",
    "MaxPool",
    "Mean",
    "Multiply",
    "Normalise",
    "Operation",
    "Padding",
    "Pasting",
    "Proposals",
    "Resize",
    "RetinaNetOutput",
    "RoiAlign",
    "Shape",
    "Shuffle",
    "Slice",
    "output_length",
    "typed",
]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Layer(Record):
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
        return self.output.per_roi

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
        """(out, in, k, k), or (out, in * k * k) for a fully connected layer."""
        if self.attributes.linear:
            return (self.out_channels, self.weights // self.out_channels)
        groups = self.attributes.groups
        return (self.out_channels, self.in_channels // groups, *self.attributes.kernel)

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        height, width = self.attributes.kernel
        return self.out_channels * (self.in_channels // self.attributes.groups) * height * width

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
        """Dense MACs per image (or per RoI) of one operation, taps in the padding included."""
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

    @cached_property
    def norms(self) -> dict[str, int]:
        """Channels of the norms that no layer took, by the name of their tensors."""
        return {
            operation.attributes.layer: self.shapes[operation.name].channels
            for operation in self.operations
            if isinstance(operation.attributes, GroupNorm | Affine)
        }

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
        return sum(layer.parameters for layer in self.layers) + 2 * sum(self.norms.values())

    def macs(self, rois: int) -> int:
        """Dense MACs of one image with that number of RoIs."""
        cells = self.cells(rois)
        return sum(layer.weights * cells[layer.name] for layer in self.layers)

    def cells(self, rois: int) -> dict[str, int]:
        """Output cells of each layer for one image with that number of RoIs.

        A layer may run on several levels. The RoIs of detections are no more than `rois`.
        """
        found = {layer.name: 0 for layer in self.layers}
        for operation, conv in self.of_kind(Conv):
            shape = self.shapes[operation.name]
            count = rois if shape.count == self.rois else min(rois, shape.count)
            for name in conv.layers:
                found[name] += shape.height * shape.width * (count if shape.per_roi else 1)
        return found

    def flops(self, rois: int) -> int:
        """FLOPs of convolutions and fully connected layers, 2 per MAC."""
        return 2 * self.macs(rois)
