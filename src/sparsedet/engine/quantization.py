"""Quantization of values in int8: which number a byte is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..model.graph import (
    Activate,
    Add,
    Affine,
    Conv,
    Graph,
    GroupNorm,
    Normalise,
)
from ..model.int8_ranges import Range
from ..model.record import Record

_LEAST = 1e-30
"""Ranges that are narrower hold zero alone: a step would be no normal float32."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Quantization(Record):
    """A byte b is the value (b - zero_point) * scale."""

    scale: float
    zero_point: int


def union(ranges: list[tuple[float, float]]) -> Range:
    """The smallest range that holds all."""
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def quantization_of(low: float, high: float) -> Quantization:
    """255 steps from low to high, one of which is zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < _LEAST:
        return Quantization(1.0, 0)
    scale = float(np.float32(high - low) / np.float32(255))
    return Quantization(scale, min(max(round(-low / scale), 0), 255))


def symmetric(most: float) -> Quantization:
    """127 steps from 0 to `most`, and as many below."""
    return Quantization(1.0 if most < _LEAST else float(np.float32(most) / np.float32(127)), 128)


def negative_values(graph: Graph) -> set[str]:
    """The values that may be negative; boxes and rows are none of them."""
    negative: set[str] = set()
    for operation in graph.operations:
        attributes = operation.attributes
        activation = getattr(attributes, "activation", "none")
        late = isinstance(attributes, Conv) and attributes.residual_last
        if activation in ("relu", "relu6", "hardsigmoid", "sigmoid") and not late:
            continue
        counted = graph.shapes[operation.name].domain not in ("boxes", "rows")
        made = isinstance(attributes, Normalise | Conv | GroupNorm | Activate | Affine | Add)
        if counted and (made or any(name in negative for name in operation.inputs)):
            negative.add(operation.name)
    return negative
