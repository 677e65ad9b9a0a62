"""Zeros, parameters and cost of a model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .file import check_tensors
from .network import AnyConfig, NetworkConfig, graph_of
from .tensors import LazyTensors


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One row of a `SparsityReport`.

    Attributes:
        shape: shape of the weight.
        parameters, zeros: number of them in weight and bias together.
        macs, sparse_macs: multiply-accumulates of one image (all its RoIs for res5 and the
            predictors): all of them, and those of nonzero weights.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    zeros: int
    macs: int
    sparse_macs: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.parameters


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """Zeros and cost of a model; totals are over all folded weights and biases.

    Attributes:
        layers: one row for each weighted layer, in the graph's order.
        rois: RoIs per image that the costs assume.
    """

    layers: tuple[LayerSparsity, ...]
    rois: int

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def zeros(self) -> int:
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        return self.zeros / self.parameters

    @property
    def gflops(self) -> float:
        """10^9 FLOPs of all weights, 2 FLOPs per MAC."""
        return 2e-9 * sum(layer.macs for layer in self.layers)

    @property
    def sparse_gflops(self) -> float:
        """10^9 FLOPs of the nonzero weights, 2 FLOPs per MAC."""
        return 2e-9 * sum(layer.sparse_macs for layer in self.layers)


def sparsity_report(
    config: AnyConfig, tensors: Mapping[str, NDArray[np.float32]], rois: int | None = None
) -> SparsityReport:
    """Count the zeros of folded tensors, and the operations that they save.

    Args:
        config: the model's configuration.
        tensors: as in `ModelFile`.
        rois: RoIs per image; default: the configuration's `proposals`.

    Raises:
        InputError: the tensors are not those of `config`.
    """
    check_tensors(config, tensors)
    graph = graph_of(config)
    if rois is None:
        rois = graph.rois if isinstance(config, NetworkConfig) else config.proposals
    rows = []
    cells = graph.cells(rois)

    def nonzero(name: str) -> int:
        if isinstance(tensors, LazyTensors):
            return tensors.nonzero(name)
        return int(np.count_nonzero(tensors[name]))

    for layer in graph.layers:
        weights, biases = nonzero(f"{layer.name}.weight"), nonzero(f"{layer.name}.bias")
        runs = cells[layer.name]
        rows.append(
            LayerSparsity(
                layer.name,
                layer.weight_shape,
                layer.parameters,
                layer.parameters - weights - biases,
                layer.weights * runs,
                weights * runs,
            )
        )
    for name, channels in graph.norms.items():
        zeros = 2 * channels - nonzero(f"{name}.weight") - nonzero(f"{name}.bias")
        rows.append(LayerSparsity(name, (channels,), 2 * channels, zeros, 0, 0))
    return SparsityReport(tuple(rows), rois)
