"""The ranges of values for int8: which values have one, and what a range may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .config import ModelConfig
from .graph import (
    Activate,
    Add,
    Affine,
    Attention,
    AveragePool,
    Conv,
    GroupNorm,
    MaxPool,
    Mean,
    Multiply,
)
from .network import AnyConfig, graph_of
from .rewrite import is_predictor

Range: TypeAlias = tuple[float, float]
"""The lowest and the highest value that bytes can hold; larger magnitudes saturate."""
ClippingThreshold: TypeAlias = float | Range
"""A range; or one number t: the range [0, t], or [-t, t] of values that may be negative."""

INT8_BIAS = ".int8_bias"
"""Behind the name of a layer: the name of its tensor in a file."""
_LARGEST = 3e38  # of float32


def int8_layers(config: AnyConfig) -> list[str]:
    """The values that have a range: of a Faster R-CNN C4 the outputs of all layers but the stem and
    the predictors, and of the pooling; else all maps and RoIs that are computed, not only moved.
    """
    graph = graph_of(config)
    if isinstance(config, ModelConfig):
        return [
            operation.name
            for operation in graph.operations
            if isinstance(operation.attributes, MaxPool)
            or (isinstance(operation.attributes, Conv) and operation.attributes.prunable)
        ]
    made = Conv, Affine, Add, Activate, Multiply, GroupNorm, AveragePool, Mean, Attention
    return [
        operation.name
        for operation in graph.operations
        if isinstance(operation.attributes, made) and not is_predictor(graph, operation.name)
    ]


def check_clipping_thresholds(
    config: AnyConfig, clipping_thresholds: Mapping[str, Any]
) -> dict[str, ClippingThreshold]:
    """Check that the thresholds belong to the values of a network, of a Faster R-CNN C4 exactly to
    `int8_layers`.

    Returns:
        The same, ranges as tuples.

    Raises:
        InputError: one is missing, belongs to no value that may have one, or is neither a number
            >= 0 nor a range with 0 in it.
    """
    names: set[str] = set(int8_layers(config))
    if isinstance(config, ModelConfig):
        if different := sorted(names ^ set(clipping_thresholds)):
            what = "missing" if different[0] in names else "of no layer that needs one"
            raise InputError(f"the int8 clipping threshold of {different[0]!r} is {what}")
    else:
        shapes = graph_of(config).shapes
        names |= {name for name, shape in shapes.items() if shape.domain in ("map", "rois")}
        if different := sorted(set(clipping_thresholds) - names):
            raise InputError(
                f"the int8 clipping threshold of {different[0]!r} is of no value that has one"
            )
    return {name: _checked(name, value) for name, value in clipping_thresholds.items()}


def check_int8_biases(
    config: AnyConfig, biases: Mapping[str, NDArray[Any]], calibrated: bool
) -> None:
    """Check that biases for int8 are those of layers.

    Raises:
        InputError: one is of no layer or of another shape, type or not finite, or the model has no
            clipping thresholds or is a Faster R-CNN C4, whose files have none.
    """
    if isinstance(config, ModelConfig) or not calibrated:
        raise InputError(f"{config.name} cannot have biases for int8")
    layers = graph_of(config).layer
    for name, bias in biases.items():
        fits = name in layers and bias.shape == (layers[name].out_channels,)
        if not fits or bias.dtype != np.float32 or not np.isfinite(bias).all():
            raise InputError(f"the bias for int8 of {name!r} fits no layer, or is not finite")


def _checked(name: str, value: Any) -> ClippingThreshold:
    pair = isinstance(value, list | tuple) and len(value) == 2
    numbers = list(value) if pair else [0.0, value]
    known = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    ordered = known and numbers[0] <= 0 <= numbers[1]
    if not ordered or not numbers[1] - numbers[0] < _LARGEST:
        raise InputError(
            f"the int8 clipping threshold of {name!r} is {value!r}, expected a number >= 0 or a "
            "range [low, high] with low <= 0 <= high"
        )
    return (float(numbers[0]), float(numbers[1])) if pair else float(value)
