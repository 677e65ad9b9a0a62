"""Batch norm, folded into the weights and bias of the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .detector_config import Config, build_graph
from .file import Tensors, check_shape, check_tensors


def fold_batch_norm(tensors: Mapping[str, NDArray[Any]], config: Config) -> Tensors:
    """Fold `NAME.norm.{weight,bias,running_mean,running_var}` into `NAME.weight` and `NAME.bias`.

    Layers without `NAME.norm.weight` stay as they are. Exact zeros stay zeros. Computed in
    float64.

    Raises:
        InputError: a tensor is missing, belongs to no layer, has the wrong shape or is not finite,
            or a variance is negative.
    """
    rest = dict(tensors)

    def take(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        if name not in rest:
            raise InputError(f"tensor {name!r} is missing")
        value = np.asarray(rest.pop(name), np.float64)
        check_shape(name, value.shape, shape)
        return value

    folded: Tensors = {}
    graph = build_graph(config)
    for layer in graph.layers:
        channels = (layer.out_channels,)
        weight = take(f"{layer.name}.weight", layer.weight_shape)
        norm = f"{layer.name}.norm"
        if layer.norm and f"{norm}.weight" in rest:
            variance = take(f"{norm}.running_var", channels) + layer.attributes.eps
            if not (variance > 0).all():
                raise InputError(f"tensor '{norm}.running_var' is negative or not a number")
            scale = take(f"{norm}.weight", channels) / np.sqrt(variance)
            mean, offset = take(f"{norm}.running_mean", channels), take(f"{norm}.bias", channels)
            weight, bias = weight * scale[:, None, None, None], offset - mean * scale
        else:
            bias = take(f"{layer.name}.bias", channels)
        with np.errstate(over="ignore"):  # reported below
            folded[f"{layer.name}.weight"] = weight.astype(np.float32)
            folded[f"{layer.name}.bias"] = bias.astype(np.float32)
    for name, count in graph.norms.items():  # group norms depend on the image: they stay
        for tensor in (f"{name}.weight", f"{name}.bias"):
            folded[tensor] = take(tensor, (count,)).astype(np.float32)
    if rest:
        raise InputError(f"tensor {min(rest)!r} belongs to no layer of {config.name!r}")
    check_tensors(config, folded)
    return folded
