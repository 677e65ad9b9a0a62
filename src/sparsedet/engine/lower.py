"""The layer table -> the operations of the native engine."""

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
"""Operations of the engine that run several layers of the table as one."""


OUTPUTS = frozenset(MERGED) | {name for names in MERGED.values() for name in names}
"""Operations whose values leave the network: float32 in any precision."""


def lower(
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    merge: bool = True,
    weights: bool = True,
) -> Iterator[tuple[Layer, F32 | StoredTensor | None, F32 | None]]:
    """The engine's operations: the layer table with the predictors merged.

    Args:
        tensors: folded weights, `NAME.weight` and `NAME.bias` of every layer.
        merge: without it, the layer table as it is.
        weights: without them, None comes in their place.

    Yields:
        layer, weight [out, in, k, k] and bias [out] (None for pooling). A sparse weight of a
        model file comes as it is stored, [out, in, k, k] or [out, in], unless it is merged, and
        holds until the next one comes.
    """
    size = tensors.largest if isinstance(tensors, LazyTensors) and weights else 0
    buffer = np.empty(size, np.uint8)

    def stored(name: str, into: NDArray[np.uint8] | None = None) -> StoredTensor | None:
        return tensors.stored(name, into) if isinstance(tensors, LazyTensors) else None

    def array(name: str) -> F32:
        """Not kept by `tensors`."""
        found = stored(name)
        return np.asarray(tensors[name], dtype=np.float32) if found is None else found.dense()

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
        found = stored(f"{layer.name}.weight", buffer) if single else None
        weight: F32 | StoredTensor | None = found
        if weights and (found is None or found.mask is None):
            shapes = [(*p.weight_shape, 1, 1)[:4] for p in pending]  # fully connected: a 1x1 kernel
            weight = np.concatenate(
                [
                    array(f"{p.name}.weight").reshape(shape)
                    for p, shape in zip(pending, shapes, strict=True)
                ]
            )
        yield replace(layer, name=name, out_channels=len(bias)), weight, bias
        pending = []
