"""What rounding the weights of a layer to int8 adds to its output on average, and its bias without.

Rounding errors of weights do not cancel where activations have a mean, as after ReLU or SiLU: each
output channel is off by the sum of (rounded weight - weight) * mean activation. Source: Nagel et
al., arXiv 1906.04721, section 4.2, with means from calibration images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.graph import Conv, Graph, Operation
from .elements import is_depthwise

F32 = NDArray[np.float32]


class RunningMean:
    """The mean of a value over images, of each channel; of RoIs of each cell, too.

    Attributes:
        cells: whether cells are kept apart.
        sums: (C,) or (C, h, w).
        count: cells, or RoIs, that were added.
    """

    def __init__(self, cells: bool) -> None:
        self.cells = cells
        self.sums: Any = 0.0
        self.count = 0

    def add(self, value: F32) -> None:
        """Add (N, C, h, w)."""
        axes = 0 if self.cells else (0, 2, 3)
        self.sums = self.sums + value.sum(axes, dtype=np.float64)
        self.count += value.shape[0] * (1 if self.cells else value.shape[2] * value.shape[3])

    @property
    def mean(self) -> NDArray[np.float64]:
        return np.asarray(self.sums / max(self.count, 1))


def means_for(graph: Graph) -> dict[str, RunningMean]:
    """Empty means of the values that convolutions read, which may run on bytes."""
    return {
        operation.inputs[0]: RunningMean(graph.shapes[operation.inputs[0]].per_roi)
        for operation, conv in graph.of_kind(Conv)
        if _corrected(graph, operation, conv)
    }


def _corrected(graph: Graph, operation: Operation, conv: Conv) -> bool:
    grouped = conv.groups > 1 or is_depthwise(graph, operation)
    return conv.bias and not grouped and operation.inputs[0] in graph.by_name


def rounded(weight: F32) -> F32:
    """Weights (out, ...) as the engine's bytes hold them."""
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(1, keepdims=True)
    times = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, 1), 0)
    steps = np.rint(rows * times.astype(np.float32)).astype(np.float32)
    return np.asarray(steps * (largest / np.float32(127)), np.float32).reshape(weight.shape)


def corrected_biases(
    graph: Graph, tensors: Mapping[str, NDArray[Any]], means: Mapping[str, RunningMean]
) -> dict[str, F32]:
    """The bias of each layer without what rounding its weights adds on average.

    A layer that runs on several levels gets one for all of them.
    """
    added: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for operation, conv in graph.of_kind(Conv):
        known = means.get(operation.inputs[0])
        if known is None or not known.count or not _corrected(graph, operation, conv):
            continue
        mean = known.mean
        whole = mean.shape[1:] == conv.kernel and graph.shapes[operation.name].size == (1, 1)
        for layer in conv.layers:
            weight = np.asarray(tensors[f"{layer}.weight"], np.float32)
            error = (rounded(weight) - weight).astype(np.float64)
            error = error.reshape(len(weight), -1, *conv.kernel)
            if whole:
                off = np.tensordot(error, mean, 3)
            else:
                channels = mean.reshape(len(mean), -1).mean(1)
                off = error.sum((2, 3)) @ channels
            added[layer] = added.get(layer, 0.0) + off * known.count
            counts[layer] = counts.get(layer, 0) + known.count
    return {
        layer: np.asarray(tensors[f"{layer}.bias"] - off / counts[layer], np.float32)
        for layer, off in added.items()
    }
