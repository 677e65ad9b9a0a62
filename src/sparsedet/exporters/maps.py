"""Feature maps in an exported graph: the operations on pixels, maps and RoIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.graph import (
    Activate,
    Activation,
    Add,
    Affine,
    Attention,
    AveragePool,
    Conv,
    DepthToSpace,
    GroupNorm,
    Layer,
    MaxPool,
    Normalise,
    Operation,
    Shuffle,
    Slice,
    typed,
)
from .form import Form
from .primitives import Array, Primitives, Unary

_ACTIVATIONS: dict[Activation, Unary] = {
    "relu": "Relu",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "sigmoid": "Sigmoid",
}


class MapBuilder(Primitives):
    """Operations that make maps.

    Attributes:
        tensors: folded weights by name.
        weights: those that are in the exported graph already, by name.
        flat: names of the model's values that are [R, C] here, not [R, C, 1, 1].
    """

    form: Form
    tensors: Mapping[str, Array]
    weights: dict[str, Any]
    flat: set[str]

    def normalise(self, operation: Operation, image: Any) -> Any:
        attributes = typed(operation, Normalise)
        mean, std = (
            self.constant(np.asarray(numbers, dtype=np.float32).reshape(1, 3, 1, 1))
            for numbers in (attributes.mean, attributes.std)
        )
        x = self.binary("Div", self.binary("Sub", image, mean), std)
        if not attributes.rgb:
            return x
        return self.concat(*(self.part(x, i, i + 1, 1) for i in (2, 1, 0)), axis=1)

    def conv(self, operation: Operation, x: Any, residual: Any = None) -> Any:
        conv, source = typed(operation, Conv), operation.inputs[0]
        shape = self.graph.shapes[source]
        layer = Layer(conv.layers[0], operation, conv, shape, self.graph.shapes[operation.name])
        weight, bias = self.weight(layer), self.bias(layer.name) if conv.bias else None
        if conv.linear:
            assert bias is not None
            if source not in self.flat:
                x = self.reshape(x, shape.count, layer.weight_shape[1])
            self.flat.add(operation.name)
            x = self.linear(x, weight, bias, operation.name)
        else:
            if layer.crop:
                height, width = layer.in_size
                x = self.crop(x, height - layer.crop, width - layer.crop)
            top, left, bottom, right = (max(side, 0) for side in conv.padding)
            padding = (top, left, bottom, right)
            x = self.convolution(x, weight, bias, conv, padding, operation.name)
        if residual is not None and not conv.residual_last:
            x = self.binary("Add", x, residual)
        x = self.activated(x, conv.activation)
        return self.binary("Add", x, residual) if conv.residual_last else x

    def activated(self, x: Any, activation: Activation) -> Any:
        if activation == "none":
            return x
        if activation == "relu6":
            return self.binary("Min", self.unary("Relu", x), self.scalar(6.0))
        if activation == "silu":
            return self.binary("Mul", x, self.unary("Sigmoid", x))
        if activation == "gelu":
            error = self.unary("Erf", self.binary("Mul", x, self.scalar(0.5**0.5)))
            share = self.binary("Add", error, self.scalar(1.0))
            return self.binary("Mul", self.binary("Mul", x, share), self.scalar(0.5))
        return self.unary(_ACTIVATIONS[activation], x)

    def sum_of(self, operation: Operation, x: Any, other: Any) -> Any:
        return self.activated(self.binary("Add", x, other), typed(operation, Add).activation)

    def affine(self, operation: Operation, x: Any) -> Any:
        affine = typed(operation, Affine)
        scale = np.asarray(self.tensors[f"{affine.layer}.weight"], dtype=np.float32)
        factors, terms = (
            self.constant(v.reshape(1, -1, 1, 1)) for v in (scale, self.bias(affine.layer))
        )
        x = self.binary("Add", self.binary("Mul", x, factors), terms)
        return self.activated(x, affine.activation)

    def average_pool(self, operation: Operation, x: Any) -> Any:
        pool = typed(operation, AveragePool)
        settings = (pool.kernel, pool.stride, pool.padding, pool.count_padding)
        return self.average(x, *settings, operation.name)

    def shuffle(self, operation: Operation, x: Any) -> Any:
        shape, groups = self.graph.shapes[operation.name], typed(operation, Shuffle).groups
        x = self.reshape(x, 1, groups, shape.channels // groups, *shape.size)
        return self.reshape(self.transpose(x, 0, 2, 1, 3, 4), 1, shape.channels, *shape.size)

    def attention(self, operation: Operation, x: Any) -> Any:
        attention, shape = typed(operation, Attention), self.graph.shapes[operation.name]
        key, value = attention.key, shape.channels // attention.heads
        cells = shape.height * shape.width
        x = self.reshape(x, 1, attention.heads, 2 * key + value, cells)
        parts = ((0, key), (key, 2 * key), (2 * key, 2 * key + value))
        q, k, v = (self.part(x, start, stop, 2) for start, stop in parts)
        products = self.matmul(self.transpose(q, 0, 1, 3, 2), k)
        logits = self.binary("Mul", products, self.scalar(attention.score_scale))
        shares = self.transpose(self.softmax(logits, 3), 0, 1, 3, 2)
        return self.reshape(self.matmul(v, shares), 1, shape.channels, *shape.size)

    def activate(self, operation: Operation, x: Any) -> Any:
        return self.activated(x, typed(operation, Activate).activation)

    def group_norm(self, operation: Operation, x: Any) -> Any:
        norm, shape = typed(operation, GroupNorm), self.graph.shapes[operation.name]
        scale = np.asarray(self.tensors[f"{norm.layer}.weight"], dtype=np.float32)
        whole = (1, shape.channels, *shape.size)
        x = self.normalise_groups(x, norm.groups, norm.eps, whole, scale, self.bias(norm.layer))
        return self.activated(x, norm.activation)

    def multiply(self, operation: Operation, x: Any, factors: Any) -> Any:
        return self.binary("Mul", x, factors)

    def max_pool(self, operation: Operation, x: Any) -> Any:
        pool = typed(operation, MaxPool)
        return self.largest(x, pool.kernel, pool.stride, pool.padding, operation.name)

    def mean(self, operation: Operation, x: Any) -> Any:
        readers = self.graph.readers[operation.name]
        flat = all(isinstance(r.attributes, Conv) and r.attributes.linear for r in readers)
        if flat:
            self.flat.add(operation.name)
        return self.spatial_mean(x, keep=not flat)

    def resize(self, operation: Operation, x: Any, like: Any = None) -> Any:
        before = self.graph.shapes[operation.inputs[0]].size
        size = self.graph.shapes[operation.name].size
        axes = list(zip(before, size, strict=True))
        if all(_rounds_alike(*axis) for axis in axes):
            return self.nearest(x, size, operation.name)
        rows, columns = (_cells(*axis) for axis in axes)
        index = self.constant((rows[:, None] * before[1] + columns).reshape(-1))
        cells = self.reshape(self.transpose(x, 2, 3, 0, 1), before[0] * before[1], -1)
        cells = self.reshape(self.gather(cells, index), *size, 1, -1)
        return self.transpose(cells, 2, 3, 0, 1)

    def slice(self, operation: Operation, x: Any) -> Any:
        part = typed(operation, Slice)
        if operation.inputs[0] in self.flat:
            self.flat.add(operation.name)
        return self.part(x, part.first, part.first + part.channels, 1)

    def depth_to_space(self, operation: Operation, x: Any) -> Any:
        return self.channels_to_cells(x, typed(operation, DepthToSpace).block)

    def weight(self, layer: Layer) -> Any:
        """The weights of a layer, once for all its operations."""
        name = f"{layer.name}.weight"
        if name not in self.weights:
            self.weights[name] = self._weight(name)
        return self.weights[name]

    def _weight(self, name: str) -> Any:
        value = np.asarray(self.tensors[name], dtype=np.float32)
        if self.form.dtype == "float32":
            return self.constant(value, name)
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            peak = np.abs(value).max()
            raise InputError(
                f"tensor {name!r} holds {peak:.6g}, beyond the range of float16: use float32"
            )
        return self.to_float32(self.constant(half, name))

    def bias(self, layer: str) -> Array:
        return np.asarray(self.tensors[f"{layer}.bias"], dtype=np.float32)


def _cells(length: int, out: int) -> NDArray[np.int64]:
    """The cell, of `length`, that each of `out` cells reads: torch's, in float32."""
    scale = np.float32(length) / np.float32(out)
    positions = np.arange(out, dtype=np.float32) * scale
    return np.minimum(positions.astype(np.int64), length - 1)


def _rounds_alike(length: int, out: int) -> bool:
    """Whether runtimes, which divide by the inverse of torch's scale, read the same cells.

    So it is in every pyramid, whose lengths are halved from level to level.
    """
    scale = np.float32(out) / np.float32(length)
    positions = np.arange(out, dtype=np.float32) / scale
    cells = _cells(length, out)
    exact = np.arange(out) * length // out
    return bool((positions.astype(np.int64) == cells).all() and (exact == cells).all())
