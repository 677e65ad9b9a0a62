"""Zeros and parameters, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .c4 import build_network
from .config import ModelConfig
from .file import check_tensors
from .tensors import LazyTensors


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One row of a `SparsityReport`.

    Attributes:
        shape: of the weight.
        parameters, zeros: of weight and bias together.
        macs, sparse_macs: of one image (all its regions for res5 and predictors): dense, and by
            nonzero weights alone.
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
        layers: one row for each weighted layer, in the layer table's order.
        rois: regions an image for which costs are counted.
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
        """Dense, 2 FLOPs a MAC."""
        return 2e-9 * sum(layer.macs for layer in self.layers)

    @property
    def sparse_gflops(self) -> float:
        """By nonzero weights alone, 2 FLOPs a MAC."""
        return 2e-9 * sum(layer.sparse_macs for layer in self.layers)


def sparsity_report(
    config: ModelConfig, tensors: Mapping[str, NDArray[np.float32]], rois: int | None = None
) -> SparsityReport:
    """Count the zeros of folded tensors, and what they save.

    Args:
        config: the model.
        tensors: as in `ModelFile`.
        rois: regions an image; default: the configuration's `proposals`.

    Raises:
        InputError: the tensors are not those of `config`.
    """
    check_tensors(config, tensors)
    rois = config.proposals if rois is None else rois
    rows = []
    for layer in build_network(config).weighted:
        weights, biases = (
            tensors.nonzero(name)
            if isinstance(tensors, LazyTensors)
            else int(np.count_nonzero(tensors[name]))
            for name in (f"{layer.name}.weight", f"{layer.name}.bias")
        )
        runs = layer.out_size[0] * layer.out_size[1] * (rois if layer.component == "roi" else 1)
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
    return SparsityReport(tuple(rows), rois)
