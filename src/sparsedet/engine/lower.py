"""Lowering: the layer table becomes the operations of the native engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.c4 import build_network
from ..model.config import ModelConfig
from ..model.graph import Layer
from ..model.tensors import LazyTensors, StoredTensor

F32 = NDArray[np.float32]

MERGED = {
    "rpn.predictors": ("rpn.objectness", "rpn.deltas"),
    "box.predictors": ("box.logits", "box.deltas"),
}
"""Operations that run several layers of the table as one, by name."""

OUTPUTS = frozenset(MERGED) | {name for names in MERGED.values() for name in names}
"""Outputs of the network: float32 in every precision."""


def lower(
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    merge: bool = True,
    weights: bool = True,
) -> Iterator[tuple[Layer, F32 | StoredTensor | None, F32 | None]]:
    """Yield the engine's operations: the layer table with merged predictors.

    Args:
        config: configuration of the model.
        tensors: folded weights and biases, `NAME.weight` and `NAME.bias` of each layer.
        merge: whether to merge the layers of `MERGED`.
        weights: whether to yield weights; False: None instead of each weight.

    Yields:
        Layer, weight float32 [out, in, k, k], bias float32 [out]; weight and bias are None for
        pooling. A sparse weight of a model file that is not merged is yielded in its stored form,
        [out, in, k, k] or [out, in], and is valid until the next operation.
    """
    size = tensors.largest if isinstance(tensors, LazyTensors) and weights else 0
    buffer = np.empty(size, np.uint8)

    def stored(name: str, into: NDArray[np.uint8] | None = None) -> StoredTensor | None:
        return tensors.stored(name, into) if isinstance(tensors, LazyTensors) else None

    def array(name: str) -> F32:
        """As float32; `tensors` does not keep the array."""
        sparse = stored(name)
        return np.asarray(tensors[name], dtype=np.float32) if sparse is None else sparse.dense()

    members = {name: merged for merged, names in MERGED.items() for name in names if merge}
    pending: list[Layer] = []
    for layer in build_network(config).layers:
        if not layer.weights:
            yield layer, None, None
            continue
        pending.append(layer)
        name = members.get(layer.name, layer.name)
        if name in MERGED and len(pending) < len(MERGED[name]):
            continue
        bias = np.concatenate([array(f"{p.name}.bias") for p in pending])
        single = weights and len(pending) == 1
        sparse = stored(f"{layer.name}.weight", buffer) if single else None
        weight: F32 | StoredTensor | None = sparse
        if weights and (sparse is None or sparse.mask is None):
            shapes = [(*p.weight_shape, 1, 1)[:4] for p in pending]  # fully connected is 1x1
            weight = np.concatenate(
                [
                    array(f"{p.name}.weight").reshape(shape)
                    for p, shape in zip(pending, shapes, strict=True)
                ]
            )
        yield replace(layer, name=name, out_channels=len(bias)), weight, bias
        pending = []
