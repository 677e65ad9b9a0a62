"""Builds a graph of this package, and a tail of numpy steps, from a folded program.

A value is a map, a map that was flattened, or an array: what the tail makes. Whatever reads an
array belongs to the tail. Nodes that neither can run are refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...model.graph import (
    Activate,
    Add,
    Affine,
    Attention,
    Attributes,
    AveragePool,
    Concat,
    Conv,
    DepthToSpace,
    MaxPool,
    Mean,
    Multiply,
    Normalise,
    Operation,
    Resize,
    Shuffle,
    Slice,
)
from .build_tail import MapValue, TailBuilder
from .program import DAMAGE, OnnxNode, Program, as_float

F32 = NDArray[np.float32]
INPUT = "input"
"""The first map: the network input, normalised."""


class NetworkBuilder(TailBuilder):
    """Builds operations and steps, node by node.

    Attributes:
        operations, tensors: of the graph.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.operations: list[Operation] = []
        self.tensors: dict[str, F32] = {}
        shape = program.shapes[program.input]
        normalise = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.operations.append(Operation(self.name(INPUT), ("image",), normalise))
        self.values[program.input] = MapValue(INPUT, shape[1], shape[2], shape[3])

    def run(self) -> None:
        for node in self.program.nodes:
            self.node(node)

    def node(self, node: OnnxNode) -> None:
        """One node, whose inputs are known.

        Raises:
            InputError: it cannot run here.
        """
        values, constants = self.values, self.program.constants
        known = all(not n or n in values or n in constants for n in node.inputs)
        method: Callable[[OnnxNode], bool] | None = getattr(
            self, f"_{node.op.strip('*').lower()}", None
        )
        try:
            if not known or node.out not in self.program.shapes:
                raise self.unknown(node)
            if method is None or not method(node):
                self.tail(node)
        except DAMAGE as error:
            if isinstance(error, InputError):
                raise
            raise self.program.refuse(node, str(error)[:200]) from None

    # ------------------------------------------------------------------ names and values

    def layer_name(self, node: OnnxNode, tensor: str) -> str:
        """The name that the tensors had in training, if the exporter kept it."""
        stem = re.sub(r"\.focus$", "", tensor)
        if stem.endswith(".weight") and "::" not in stem:
            return self.name(stem.removesuffix(".weight"))
        return self.name(re.sub(r"/(Conv|ConvTranspose|Gemm|MatMul)(_\d+)?$", "", node.name))

    def map_of(self, name: str) -> MapValue | None:
        """A value as a map; of a flattened one only if it has one cell."""
        value = self.values.get(name)
        if not isinstance(value, MapValue) or (value.flat and value.height * value.width > 1):
            return None
        return value

    def add(
        self, node: OnnxNode, name: str, inputs: tuple[str, ...], attributes: Attributes
    ) -> bool:
        """An operation that makes the node's value."""
        shape = self.program.shapes[node.out]
        self.operations.append(Operation(name, inputs, attributes))
        if len(shape) not in (2, 4) or shape[0] != 1:
            raise self.unknown(node)
        height, width = shape[2:] or (1, 1)
        self.values[node.out] = MapValue(name, shape[1], height, width, flat=len(shape) == 2)
        return True

    # ------------------------------------------------------------------ maps

    def _conv(self, node: OnnxNode) -> bool:
        x, at = self.map_of(node.inputs[0]), node.attributes
        if x is None or x.flat:
            return False
        weight = as_float(self.program.constants[node.inputs[1]])
        bias = self.program.constant(node, 2)
        (rows, columns), (down, along) = at["stride"], at["dilation"]
        if rows != columns or down != along or rows > 2 or max(*at["kernel"], down) > 64:
            raise self.program.refuse(
                node,
                f"has strides {rows}x{columns}, dilations {down}x{along} and the window "
                f"{at['kernel'][0]}x{at['kernel'][1]}; strides 1 and 2, the same on both axes, "
                "run here",
            )
        name = self.layer_name(node, node.inputs[1])
        conv = Conv(
            out_channels=len(weight),
            kernel=at["kernel"],
            layers=(name,),
            stride=rows,
            padding=at["padding"],
            dilation=down,
            groups=at["groups"],
        )
        self.set_tensors(name, weight, bias)
        return self.add(node, name, (x.name,), conv)

    def _convtranspose(self, node: OnnxNode) -> bool:
        """A 1x1 convolution whose channels become cells."""
        x, block = self.map_of(node.inputs[0]), node.attributes["block"]
        if x is None or x.flat:
            return False
        weight = as_float(self.program.constants[node.inputs[1]])
        bias = self.program.constant(node, 2)
        name = self.layer_name(node, node.inputs[1])
        rows = weight.transpose(2, 3, 1, 0).reshape(-1, x.channels, 1, 1)
        self.set_tensors(name, rows, None if bias is None else np.tile(bias, block**2))
        conv = Conv(out_channels=len(rows), kernel=(1, 1), layers=(name,))
        self.operations.append(Operation(name, (x.name,), conv))
        return self.add(node, self.name(f"{name}.cells"), (name,), DepthToSpace(block))

    def set_tensors(self, name: str, weight: Any, bias: Any) -> None:
        self.tensors[f"{name}.weight"] = np.ascontiguousarray(as_float(weight))
        zeros = np.zeros(len(weight), np.float32)
        self.tensors[f"{name}.bias"] = zeros if bias is None else as_float(bias).reshape(-1)

    def _linear(self, node: OnnxNode) -> bool:
        value, at = self.values[node.inputs[0]], node.attributes
        if not isinstance(value, MapValue) or not value.flat or max(value.height, value.width) > 64:
            return False
        name = self.layer_name(node, at["tensor"])
        conv = Conv(len(at["weight"]), (value.height, value.width), (name,), linear=True)
        self.set_tensors(name, at["weight"], at["bias"])
        return self.add(node, name, (value.name,), conv)

    def _affine(self, node: OnnxNode) -> bool:
        x, at = self.map_of(node.inputs[0]), node.attributes
        return x is not None and self.affine(node, x, at["scale"], at["offset"])

    def affine(self, node: OnnxNode, x: MapValue, scale: Any, offset: Any) -> bool:
        name = self.name(node.name)
        for leaf, values in (("weight", scale), ("bias", offset)):
            spread = np.broadcast_to(np.asarray(values, np.float64).reshape(-1), (x.channels,))
            self.tensors[f"{name}.{leaf}"] = as_float(spread)
        return self.add(node, name, (x.name,), Affine(name))

    def _activate(self, node: OnnxNode) -> bool:
        x = self.map_of(node.inputs[0])
        if x is None:
            return False
        return self.add(
            node, self.name(node.name), (x.name,), Activate(node.attributes["activation"])
        )

    def _pooled(self, node: OnnxNode, attributes: MaxPool | AveragePool) -> bool:
        x = self.map_of(node.inputs[0])
        if x is None or x.flat:
            return False
        return self.add(node, self.name(node.name), (x.name,), attributes)

    def _maxpool(self, node: OnnxNode) -> bool:
        at = node.attributes
        return self._pooled(node, MaxPool(at["kernel"], at["stride"], at["padding"]))

    def _averagepool(self, node: OnnxNode) -> bool:
        at = node.attributes
        return self._pooled(
            node, AveragePool(at["kernel"], at["stride"], at["padding"], at["count_padding"])
        )

    def _reduce(self, node: OnnxNode) -> bool:
        x, at = self.map_of(node.inputs[0]), node.attributes
        if x is None or x.flat or at["how"] != "mean" or sorted(at["axes"]) != [2, 3]:
            return False
        return self.add(node, self.name(node.name), (x.name,), Mean())

    def _resize(self, node: OnnxNode) -> bool:
        x = self.map_of(node.inputs[0])
        if x is None or x.flat or "factor" not in node.attributes:
            return False
        factor = node.attributes["factor"]
        return self.add(node, self.name(node.name), (x.name,), Resize(factor=factor))

    def _attention(self, node: OnnxNode) -> bool:
        x, at = self.map_of(node.inputs[0]), node.attributes
        if x is None or x.flat:
            raise ValueError("attends to the cells of an array")
        attention = Attention(at["heads"], at["key"], at["score_scale"])
        return self.add(node, self.name(node.name), (x.name,), attention)

    def _shuffle(self, node: OnnxNode) -> bool:
        x = self.map_of(node.inputs[0])
        if x is None or x.flat:
            raise ValueError("shuffles channels of an array")
        shuffle = Shuffle(node.attributes["groups"])
        return self.add(node, self.name(node.name), (x.name,), shuffle)

    def _slice(self, node: OnnxNode) -> bool:
        x, at = self.map_of(node.inputs[0]), node.attributes
        if x is None or at["axis"] != 1 or at["step"] != 1:
            return False
        part = Slice(at["start"], at["stop"] - at["start"])
        return self.add(node, self.name(node.name), (x.name,), part)

    def _concat(self, node: OnnxNode) -> bool:
        maps = [self.map_of(name) for name in node.inputs]
        if node.attributes["axis"] != 1 or any(m is None for m in maps):
            return False
        names = tuple(m.name for m in maps if m is not None)
        return self.add(node, self.name(node.name), names, Concat())

    def _reshape(self, node: OnnxNode) -> bool:
        x, shape = self.values[node.inputs[0]], node.attributes["shape"]
        if not isinstance(x, MapValue):
            return False
        flat = (1, x.channels * x.height * x.width)
        whole = (1, x.channels, x.height, x.width)
        if shape not in (flat, whole):
            return False
        self.values[node.out] = MapValue(x.name, x.channels, x.height, x.width, shape == flat)
        return True

    # ------------------------------------------------------------------ sums and products

    def _per_channel(self, x: MapValue, name: str) -> Any:
        """A constant as one number for each channel, or for all; None: it is none."""
        array = self.program.constants.get(name)
        if array is None:
            return None
        dims = 2 if x.flat else 4
        shape = (1,) * (dims - array.ndim) + array.shape
        fits = len(shape) == dims and shape[1] in (1, x.channels)
        return array.reshape(-1) if fits and math.prod(shape) == shape[1] else None

    def _binary(self, node: OnnxNode) -> tuple[MapValue | None, MapValue | None, Any]:
        """The maps among two inputs, and the constant for each channel."""
        a, b = (self.map_of(name) for name in node.inputs)
        x = a or b
        numbers = None
        if x is not None and (a is None or b is None):
            numbers = self._per_channel(x, node.inputs[1 if a else 0])
        return a, b, numbers

    def _add(self, node: OnnxNode) -> bool:
        a, b, numbers = self._binary(node)
        if a and b:
            if a.shape != b.shape:
                return False
            return self.add(node, self.name(node.name), (a.name, b.name), Add())
        x = a or b
        return x is not None and numbers is not None and self.affine(node, x, 1.0, numbers)

    def _sub(self, node: OnnxNode) -> bool:
        a, b, numbers = self._binary(node)
        x = a or b
        if x is None or numbers is None:
            return False
        if a:
            return self.affine(node, x, 1.0, -np.asarray(numbers, np.float64))
        return self.affine(node, x, -1.0, numbers)

    def _mul(self, node: OnnxNode) -> bool:
        a, b, numbers = self._binary(node)
        if a and b:
            if (a.height, a.width) == (1, 1) != (b.height, b.width):
                a, b = b, a
            if b.shape[1:] != (a.channels, 1, 1) or a.flat:
                return False
            return self.add(node, self.name(node.name), (a.name, b.name), Multiply())
        x = a or b
        return x is not None and numbers is not None and self.affine(node, x, numbers, 0.0)

    def _div(self, node: OnnxNode) -> bool:
        a, b, numbers = self._binary(node)
        if a is None or b is not None or numbers is None or (np.asarray(numbers) == 0).any():
            return False
        return self.affine(node, a, 1 / np.asarray(numbers, np.float64), 0.0)
