"""TensorPack's trained C4 models (.npz); the published network descends from them.

Conventions, all in the preset `r101-c4`: strides in the 3x3 convolution, strided windows padded
more before than after, the strided shortcut drops the last row and column, background is the first
class and has box deltas. Kernels are stored as (height, width, in, out), fully connected weights as
(in, out). Of a mask model the box head is read and the mask head ignored.

A file states none of the settings of its training: `TF_PAD_MODE`, `STRIDE_1X1`, anchors from
before 2019-05-21 and box weights from before 2019-05-17 must be given as configuration
(docs/weights.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..model.c4 import build_graph
from ..model.config import ModelConfig
from ..model.graph import Layer
from ..model.presets import preset
from .containers import open_source
from .tensor_source import Imported, Source, count_blocks, resolve_config

_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "mean/EMA",
    "running_var": "variance/EMA",
}
_STAGES = tuple(rf"group{n}/block(\d+)/" for n in range(4))
_NAMES = {
    "stem.conv": "conv0",
    "rpn.conv": "rpn/conv0",
    "rpn.objectness": "rpn/class",
    "rpn.deltas": "rpn/box",
    "box.logits": "fastrcnn/class",
    "box.deltas": "fastrcnn/box",
}


def load_tensorpack(
    path: str | os.PathLike[str],
    base: ModelConfig | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Imported:
    """Read a model.

    Args:
        path: the file.
        base: configuration of all that the file does not state; default: `r101-c4` with the 1000
            proposals that TensorPack itself keeps at test.
        fields: fields of the configuration, which override all others.

    Raises:
        InputError: the file is unreadable or not a Faster R-CNN C4, or its tensors do not fit
            together.
    """
    _, source = open_source(Path(path))
    _check_model(source)
    config = _config(source, base or replace(preset("r101-c4"), proposals=1000), fields or {})
    tensors: dict[str, Any] = {}
    for layer in build_graph(config).layers:
        name, out = layer_name(layer), (layer.out_channels,)
        shape = layer.weight_shape  # (out, in, ...); TensorPack's (..., in, out)
        weight = source.take(f"{name}/W", (*shape[2:], shape[1], shape[0]))
        axes = (3, 2, 0, 1) if len(shape) == 4 else (1, 0)
        tensors[f"{layer.name}.weight"] = np.ascontiguousarray(weight.transpose(axes))
        if layer.norm:
            for ours, theirs in _NORM.items():
                tensors[f"{layer.name}.norm.{ours}"] = source.take(f"{name}/bn/{theirs}", out)
        else:
            tensors[f"{layer.name}.bias"] = source.take(f"{name}/b", out)
    source.ignore(
        r"maskrcnn/.*",
        r"global_step",
        r"learning_rate",
        r"(EMA|AccumGrad|apply_gradients)/.*",
        r".*/(Momentum|AccumGrad|Adam(_1)?|RMSProp(_1)?|Adagrad)",
    )
    ignored = source.finish(config.name)
    notes = (
        f"the file states no settings; assumed: strides in {config.stride_in}, stem padded by "
        f"{config.stem_padding}, box weights {config.box_weights}, {config.proposals} proposals",
        f"network input {config.input_width}x{config.input_height} ({config.resize}); TensorPack "
        "itself resizes to short side 800, at most 1333",
    )
    provenance = {"source": f"TensorPack model {Path(path).name}"}
    return Imported(config, source.fold(tensors, config), provenance, ignored, notes)


def layer_name(layer: Layer) -> str:
    """TensorPack's name of a layer."""
    if layer.name in _NAMES:
        return _NAMES[layer.name]
    stage, block, leaf = layer.name.split(".")
    leaf = leaf.replace("shortcut", "convshortcut")
    return f"group{int(stage.removeprefix('res')) - 2}/block{block}/{leaf}"


def _check_model(source: Source) -> None:
    """Raise InputError, naming the kind of model, unless it is a C4 detector."""
    if any(name.startswith("fpn/") for name in source.left):
        raise source.error("is a model with a feature pyramid, expected Faster R-CNN C4")
    if any("/gn/" in name for name in source.left):
        raise source.error("has group norms, which cannot be folded; expected batch norms")
    if "fastrcnn/class/W" not in source:
        raise source.error("has no box head ('fastrcnn/'), expected a trained Faster R-CNN C4")


def _config(source: Source, base: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
    """The configuration that follows from the tensors."""
    blocks = count_blocks(source.left, _STAGES)
    stages = [f"group{n}/block0" for n in range(4)]
    read: dict[str, Any] = {
        "blocks": blocks,
        "stem_channels": source.length("conv0/W", -1),
        "bottleneck_channels": [source.length(f"{s}/conv1/W", -1) for s in stages],
        "stage_channels": [source.length(f"{s}/conv3/W", -1) for s in stages],
        "rpn_channels": source.length("rpn/conv0/W", -1),
        "name": f"r{3 * sum(blocks) + 2}-c4",
    }
    classes, anchors = source.length("fastrcnn/class/W", -1) - 1, source.length("rpn/class/W", -1)
    config = resolve_config(source, base, read, classes, fields)
    if config.anchors_per_cell != anchors:
        raise source.error(
            f"has {anchors} anchors a cell, {base.name} {config.anchors_per_cell}: state "
            "anchor_sizes and anchor_ratios in the configuration"
        )
    return config
