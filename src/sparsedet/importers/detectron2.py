"""Detectron2's trained C4 models (.pkl of its model zoo, .pth of its checkpointer).

Conventions, all in the preset `r101-c4-detectron2`: MSRA's bottlenecks have their stride in the
first 1x1, pixels are BGR minus a mean, background is the last class and has no box deltas, RoIAlign
samples adaptively. Depth, widths, classes, pixel statistics and anchors are read from the file if
it has them. Of a Mask R-CNN the box head is read and the mask head ignored. One set of box deltas
for all classes (CLS_AGNOSTIC_BBOX_REG) is repeated for each class: the results are equal.

A file does not state whether its model reads BGR or RGB (INPUT.FORMAT). Detectron2's recipe for
RGB, with torchvision's backbones (tools/convert-torchvision-to-d2.py), changes three things: the
channel order, the pixel statistics, and the stride, which is then in the 3x3.

Detectron2 resizes images to a short side of 800 and at most 1333 by PIL's filter; our models have
a network input of one size. For the same network input, the detections are the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..model import boxes
from ..model.c4 import build_network
from ..model.config import ModelConfig
from ..model.graph import Layer
from ..model.presets import preset
from .containers import open_source
from .tensor_source import Imported, Source, count_blocks, resolve_config

_NORM = ("weight", "bias", "running_mean", "running_var")
_STAGES = (
    r"backbone\.res2\.(\d+)\.",
    r"backbone\.res3\.(\d+)\.",
    r"backbone\.res4\.(\d+)\.",
    r"roi_heads\.res5\.(\d+)\.",
)
_NAMES = {
    "rpn.conv": "proposal_generator.rpn_head.conv",
    "rpn.objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "box.logits": "roi_heads.box_predictor.cls_score",
    "box.deltas": "roi_heads.box_predictor.bbox_pred",
}
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


def load_detectron2(
    path: str | os.PathLike[str],
    base: ModelConfig | None = None,
    fields: Mapping[str, Any] | None = None,
    rgb: bool = False,
) -> Imported:
    """Read a checkpoint.

    Args:
        path: the checkpoint.
        base: configuration of all that the file does not state; default: the preset
            `r101-c4-detectron2`, with `rgb` changed as in the recipe above.
        fields: fields of the configuration (BGR), which override all others.
        rgb: True if the model reads RGB: its first layer and stated pixel statistics are reversed.

    Raises:
        InputError: the file is unreadable, hostile or not a Faster R-CNN C4, or its tensors do not
            fit together.
    """
    _, source = open_source(Path(path))
    _check_model(source)
    if base is None:
        torchvision, base = preset("r101-c4"), preset("r101-c4-detectron2")
        if rgb:
            base = replace(
                base,
                stride_in="conv2",
                pixel_mean=torchvision.pixel_mean,
                pixel_std=torchvision.pixel_std,
            )
    config, notes = _config(source, base, fields or {}, rgb)
    tensors: dict[str, Any] = {}
    for layer in build_network(config).weighted:
        name = layer_name(layer)
        if layer.name == "box.deltas" and _agnostic(source):
            classes = layer.out_channels // 4
            for leaf, shape in (("weight", (4, layer.in_channels)), ("bias", (4,))):
                value = source.take(f"{name}.{leaf}", shape)
                tensors[f"{layer.name}.{leaf}"] = np.concatenate([value] * classes)
            continue
        tensors[f"{layer.name}.weight"] = source.take(f"{name}.weight", layer.weight_shape)
        if layer.norm:
            for leaf in _NORM:
                tensors[f"{layer.name}.norm.{leaf}"] = source.take(
                    f"{name}.norm.{leaf}", (layer.out_channels,)
                )
        else:
            tensors[f"{layer.name}.bias"] = source.take(f"{name}.bias", (layer.out_channels,))
    source.ignore(
        r"optimizer\..*",
        r"scheduler\..*",
        r"trainer\..*",
        r".*_momentum",
        r".*\.num_batches_tracked",
        r"roi_heads\.mask_head\..*",
    )
    ignored = source.finish(config.name)
    if rgb:
        stem = tensors["stem.conv.weight"]
        tensors["stem.conv.weight"] = np.ascontiguousarray(stem[:, ::-1])
    provenance = {"source": f"Detectron2 checkpoint {Path(path).name}"}
    return Imported(config, source.fold(tensors, config), provenance, ignored, tuple(notes))


def layer_name(layer: Layer) -> str:
    """Detectron2's name of a layer."""
    if layer.name == "stem.conv":
        return "backbone.stem.conv1"
    if layer.name.startswith("res5."):
        return f"roi_heads.{layer.name}"
    return _NAMES.get(layer.name, f"backbone.{layer.name}")


def _agnostic(source: Source) -> bool:
    """Whether all classes share one set of box deltas."""
    return source.length(f"{_NAMES['box.deltas']}.weight", 0) == 4


def _check_model(source: Source) -> None:
    """Raise InputError, naming the kind of model, unless it is a C4 detector."""
    if any(name.startswith("backbone.bottom_up.") for name in source.left):
        raise source.error("is a model with a feature pyramid, expected Faster R-CNN C4")
    if any(name.startswith("backbone.res5.") for name in source.left):
        raise source.error("has res5 in its backbone (a dilated C5 model), expected C4")
    if any(name.startswith("roi_heads.box_predictor.0.") for name in source.left):
        raise source.error("is a cascade, expected Faster R-CNN C4")
    if not any(name.startswith("roi_heads.") for name in source.left):
        raise source.error("has no box head ('roi_heads.'), expected a trained Faster R-CNN C4")


def _config(
    source: Source, base: ModelConfig, fields: Mapping[str, Any], rgb: bool
) -> tuple[ModelConfig, list[str]]:
    """The configuration that follows from the tensors, and notes for the user."""
    notes: list[str] = []
    blocks = count_blocks(source.left, _STAGES)
    stages = [f"backbone.res{n}" for n in (2, 3, 4)] + ["roi_heads.res5"]
    read: dict[str, Any] = {
        "blocks": blocks,
        "stem_channels": source.length("backbone.stem.conv1.weight", 0),
        "bottleneck_channels": [source.length(f"{s}.0.conv1.weight", 0) for s in stages],
        "stage_channels": [source.length(f"{s}.0.conv3.weight", 0) for s in stages],
        "rpn_channels": source.length(f"{_NAMES['rpn.conv']}.weight", 0),
        "name": f"r{3 * sum(blocks) + 2}-c4-detectron2",
    }
    for key in ("pixel_mean", "pixel_std"):  # older checkpoints state them
        if key in source:
            read[key] = source.take(key, (3, 1, 1)).reshape(-1)[:: -1 if rgb else 1].tolist()
    classes = source.length(f"{_NAMES['box.logits']}.weight", 0) - 1
    if _agnostic(source):
        notes.append("has one set of box deltas for all classes: repeated for each of them")
    anchors = source.length(f"{_NAMES['rpn.objectness']}.weight", 0)
    if _ANCHORS in source:  # a buffer of older checkpoints
        value, expected = source.take(_ANCHORS, (anchors, 4)), boxes.cell_anchors(base)
        if value.shape != expected.shape or not np.allclose(value, expected, atol=1e-3):
            read["cell_anchors"] = value.tolist()
            notes.append("its anchors differ from those of the published models; they are kept")
    config = resolve_config(source, base, read, classes, fields)
    if config.anchors_per_cell != anchors:
        raise source.error(
            f"has {anchors} anchors a cell, {base.name} {config.anchors_per_cell}: state "
            "anchor_sizes and anchor_ratios in the configuration"
        )
    notes.append(
        f"assumed: trained on {'RGB' if rgb else 'BGR'} images of mean {config.pixel_mean}, std "
        f"{config.pixel_std} (in BGR order), strides in {config.stride_in}"
    )
    notes.append(
        f"network input {config.input_width}x{config.input_height} ({config.resize}, bilinear); "
        "Detectron2 itself resizes to short side 800, at most 1333, by PIL"
    )
    return config, notes
