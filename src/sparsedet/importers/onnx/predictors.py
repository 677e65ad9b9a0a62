"""The predictors of a detector in an ONNX file: what the maps that its tail reads are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...model.graph import Activate, Concat, Conv, Graph
from ...model.network import NetworkConfig
from .decoding import Family, Level

F32 = NDArray[np.float32]
_MOST_LEVELS = 6


@dataclass(frozen=True, slots=True)
class Predictor:
    """A map of predictions, or some of its channels.

    Attributes:
        name: of the value that has them, before a sigmoid that may follow.
        sigmoid: whether one follows.
        channels, size: of the predictions.
        first: their first channel in that value.
        whole: channels of that value.
    """

    name: str
    sigmoid: bool
    channels: int
    size: tuple[int, int]
    first: int
    whole: int

    def part(self, first: int, channels: int) -> Predictor:
        """Some of its channels."""
        return replace(self, first=self.first + first, channels=channels)


@dataclass(frozen=True, slots=True)
class Found:
    """A family, and the predictors of each level: logits, boxes, objectness if there is one.

    Attributes:
        strides: of each level.
        anchors: of each level, width and height in pixels; none: the family has no anchors.
    """

    family: Family
    levels: tuple[tuple[Predictor, ...], ...]
    strides: tuple[int, ...]
    anchors: tuple[tuple[float, float], ...] = ()


def _made_of(graph: Graph, name: str) -> list[Predictor]:
    """What a map that a tail reads is made of, in order of its channels."""
    operation, shape = graph.by_name[name], graph.shapes[name]
    attributes = operation.attributes
    if isinstance(attributes, Concat):
        return [part for source in operation.inputs for part in _made_of(graph, source)]
    sigmoid = isinstance(attributes, Conv | Activate) and attributes.activation == "sigmoid"
    if isinstance(attributes, Activate) and sigmoid:
        name = operation.inputs[0]
    return [Predictor(name, sigmoid, shape.channels, shape.size, 0, shape.channels)]


@dataclass(frozen=True, slots=True)
class Levels:
    """The predictors of all levels, and random numbers in their place.

    Attributes:
        parts: of each level, the finest first.
        strides: of each level.
        raw: random outputs of each predictor, by its name, float64.
        values: what the tail would read, by its name.
    """

    parts: tuple[tuple[Predictor, ...], ...]
    strides: tuple[int, ...]
    raw: Mapping[str, Any]
    values: Mapping[str, F32]

    def level(self, predictors: Sequence[Predictor], stride: int) -> Level:
        """The outputs of logits, boxes and perhaps objectness."""
        arrays = [self.raw[p.name][p.first : p.first + p.channels] for p in predictors]
        return Level(arrays[0], arrays[1], arrays[2] if len(arrays) > 2 else None, stride)


def find_levels(config: NetworkConfig) -> Levels | None:
    """The levels of a network whose tail reads as many predictors of each; None: it reads others.

    A level is known by the size of its maps: that of the network input over a power of two.
    """
    graph = config.graph
    leaves = {name: _made_of(graph, name) for name in config.read}
    sizes: dict[tuple[int, int], list[Predictor]] = {}
    for parts in leaves.values():
        for part in parts:
            sizes.setdefault(part.size, []).append(part)
    order = sorted(sizes, reverse=True)
    counts = {len(parts) for parts in sizes.values()}
    strides = _strides(graph.image.size, order)
    if not 1 <= len(order) <= _MOST_LEVELS or len(counts) != 1 or strides is None:
        return None
    numbers = np.random.default_rng(0)
    raw = {
        part.name: numbers.uniform(-2, 2, (part.channels, *part.size))
        for parts in leaves.values()
        for part in parts
    }
    values = {}
    for name, parts in leaves.items():
        made = [1 / (1 + np.exp(-raw[p.name])) if p.sigmoid else raw[p.name] for p in parts]
        values[name] = np.concatenate(made).astype(np.float32)[None]
    return Levels(tuple(tuple(sizes[size]) for size in order), strides, raw, values)


def _strides(image: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, ...] | None:
    """Pixels between two cells of each level: a power of two, of which the last cell may be cut."""
    strides = []
    for size in sizes:
        stride = 2 ** round(math.log2(image[0] / size[0]))
        if tuple(-(-length // stride) for length in image) != size:
            return None
        strides.append(stride)
    return tuple(strides) if len(set(strides)) == len(strides) else None
