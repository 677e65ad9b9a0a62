"""Names that tensors have in Detectron2, and the tensors of a graph by them."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ...model.graph import Graph, Layer
from ..tensor_source import Source, take_transposed
from .keys import FamilyName

Arrays = dict[str, NDArray[np.float32]]

NORM = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a batch norm."""

_OF_ROIS = {
    "rpn.conv": "proposal_generator.rpn_head.conv",
    "rpn.objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "box.logits": "roi_heads.box_predictor.cls_score",
    "box.deltas": "roi_heads.box_predictor.bbox_pred",
    "mask.upsample": "roi_heads.mask_head.deconv",
    "mask.logits": "roi_heads.mask_head.predictor",
}
_RETINANET = {"class.logits": "head.cls_score", "box.deltas": "head.bbox_pred"}
_NUMBERED = {
    "box.fc": "roi_heads.box_head.fc",
    "box.conv": "roi_heads.box_head.conv",
    "mask.conv": "roi_heads.mask_head.mask_fcn",
}
_TOWERS = {"class.conv": "head.cls_subnet", "box.conv": "head.bbox_subnet"}

MASK = "roi_heads.mask_head."
"""What names of a mask head begin with."""
MASK_CONV = r"roi_heads\.mask_head\.mask_fcn(\d+)\.weight"
"""The convolutions of a mask head before its transposed one."""

NO_PART = (
    r"optimizer\..*",
    r"scheduler\..*",
    r"trainer\..*",
    r".*_momentum",
    r".*\.num_batches_tracked",
    r"n_averaged",
)
"""Tensors that are no part of a network."""


def layer_name(layer: Layer, family: FamilyName = "c4") -> str:
    """Detectron2's name of a layer."""
    name = layer.name
    fixed = _RETINANET if family == "retinanet" else _OF_ROIS
    if name in fixed:
        return fixed[name]
    if family == "c4" and name.startswith("res5."):
        return f"roi_heads.{name}"
    backbone = "backbone" if family == "c4" else "backbone.bottom_up"
    if name == "stem.conv":
        return f"{backbone}.stem.conv1"
    if name.startswith("res"):
        return f"{backbone}.{name}"
    if found := re.fullmatch(r"fpn\.(lateral|output)(\d)", name):
        if family == "retinanet" and int(found[2]) > 5:
            return f"backbone.top_block.p{found[2]}"
        return f"backbone.fpn_{found[1]}{found[2]}"
    part, number = re.fullmatch(r"(.*?)(\d+)", name).groups()  # type: ignore[union-attr]
    if family == "retinanet":  # convolutions and ReLUs take turns
        return f"{_TOWERS[part]}.{2 * int(number)}"
    return f"{_NUMBERED[part]}{int(number) + 1}"


def count_layers(source: Source, pattern: str) -> int:
    """How many numbers stand in the group of a regular expression for names of tensors."""
    found = {m[1] for name in source.left if (m := re.fullmatch(pattern, name))}
    if len(found) > 100:
        raise source.error(f"has {len(found)} layers {pattern!r}, expected at most 100")
    return len(found)


def for_all_classes(source: Source, family: FamilyName) -> set[str]:
    """The predictors that all classes share: "box.deltas" and "mask.logits"."""
    if family == "retinanet":
        return set()
    return {
        layer
        for layer, outputs in (("box.deltas", 4), ("mask.logits", 1))
        if f"{_OF_ROIS[layer]}.weight" in source
        and source.length(f"{_OF_ROIS[layer]}.weight", 0) == outputs
    }


def take_tensors(source: Source, graph: Graph, family: FamilyName) -> Arrays:
    """The tensors of a graph, in training form.

    Raises:
        InputError: a tensor is missing or has the wrong shape or values.
    """
    shared = for_all_classes(source, family)
    tensors: Arrays = {}
    for layer in graph.layers:
        name, shape = layer_name(layer, family), layer.weight_shape
        if layer.name == "mask.upsample":
            weight, bias = take_transposed(source, name, shape)
            tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"] = weight, bias
            continue
        if layer.name in shared:
            outputs = 4 if layer.name == "box.deltas" else 1
            copies = layer.out_channels // outputs
            for leaf, one in (("weight", (outputs, *shape[1:])), ("bias", (outputs,))):
                value = source.take(f"{name}.{leaf}", one)
                tensors[f"{layer.name}.{leaf}"] = np.concatenate([value] * copies)
            continue
        tensors[f"{layer.name}.weight"] = source.take(f"{name}.weight", shape)
        channels = (layer.out_channels,)
        for leaf in NORM if layer.norm else ("bias",):
            inner = f"norm.{leaf}" if layer.norm else leaf
            tensors[f"{layer.name}.{inner}"] = source.take(f"{name}.{inner}", channels)
    return tensors


def reverse_colours(tensors: Arrays) -> None:
    """Make the first layer of a network of RGB images read BGR."""
    stem = tensors["stem.conv.weight"]
    tensors["stem.conv.weight"] = np.ascontiguousarray(stem[:, ::-1])
