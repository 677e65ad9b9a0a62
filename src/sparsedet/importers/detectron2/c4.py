"""Detectron2's Faster and Mask R-CNN with a C4 backbone.

Conventions, all in the preset `r101-c4-detectron2`: MSRA's bottlenecks have their stride in the
first 1x1, pixels are BGR minus a mean, background is the last class and has no box deltas, RoIAlign
samples adaptively. Depth, widths, classes, pixel statistics and anchors are read from the file if
it has them. What all classes share, a set of box deltas (CLS_AGNOSTIC_BBOX_REG) or a mask
(CLS_AGNOSTIC_MASK), is repeated for each class: the results are equal.

A Mask R-CNN becomes a `DetectorConfig`: res5 runs again on the RoIs of its detections, pooled as
those of proposals, and a transposed convolution makes masks of it. With the field `masks` false its
boxes are imported alone, as a `ModelConfig`.

A file of weights states none of its model's settings; the `config.yaml` of its run does (see
`config_yaml`). Without it those of the published models are assumed, and named in notes.
Whether a model reads BGR or RGB (INPUT.FORMAT) is one of them: Detectron2's recipe for RGB, with
torchvision's backbones (tools/convert-torchvision-to-d2.py), changes three things: the channel
order, the pixel statistics, and the stride, which is then in the 3x3.

Detectron2 resizes images to a short side of 800 and at most 1333 by PIL's filter; our models have
a network input of one size. For the same network input, the detections are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...model import boxes
from ...model.c4 import build_graph
from ...model.config import ModelConfig
from ...model.detector_config import Config, DetectorConfig, as_detector_config
from ...model.detector_config import build_graph as graph_of
from ...model.mask_head import MaskHead
from ...model.presets import preset
from ..tensor_source import MAX_PARAMETERS, Imported, Source, count_blocks, resolve_config
from .checks import check_norm, has
from .config_yaml import Detectron2Config, Detectron2Settings, check_weights, read_settings
from .names import (
    MASK,
    MASK_CONV,
    NO_PART,
    count_layers,
    for_all_classes,
    reverse_colours,
    take_tensors,
)

_STAGES = (
    r"backbone\.res2\.(\d+)\.",
    r"backbone\.res3\.(\d+)\.",
    r"backbone\.res4\.(\d+)\.",
    r"roi_heads\.res5\.(\d+)\.",
)
_CONV = "proposal_generator.rpn_head.conv.weight"
_OBJECTNESS = "proposal_generator.rpn_head.objectness_logits.weight"
_LOGITS = "roi_heads.box_predictor.cls_score.weight"
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


def load_c4(
    source: Source,
    base: ModelConfig | None,
    fields: Mapping[str, Any],
    rgb: bool,
    stated: Detectron2Config | None,
) -> Imported:
    """The model in a checkpoint.

    Args:
        source: the checkpoint's tensors.
        base, fields, rgb, stated: as `load_detectron2` takes them; `fields` may have `masks`.

    Raises:
        InputError: as of `load_detectron2`.
    """
    fields = dict(fields)
    wanted = fields.pop("masks", True)
    if not isinstance(wanted, bool):
        raise source.error(f"masks is {wanted!r}, expected true or false")
    masks = wanted and has(source, MASK)
    settings = None if stated is None else read_settings(stated, "c4", masks)
    shared = for_all_classes(source, "c4")
    if settings is not None:
        rgb = settings.rgb
        classes = source.length(_LOGITS, 0) - 1
        blocks = count_blocks(source.left, _STAGES)
        agnostic = "box.deltas" in shared
        head = has(source, MASK)
        check_weights(settings, Path(source.path), "c4", classes, blocks, agnostic, head)
        fields = {**_fields(settings, fields), **fields}
    if base is None and settings is not None:
        base = preset("r101-c4-detectron2")
    elif base is None:
        torchvision, base = preset("r101-c4"), preset("r101-c4-detectron2")
        if rgb:
            base = replace(
                base,
                stride_in="conv2",
                pixel_mean=torchvision.pixel_mean,
                pixel_std=torchvision.pixel_std,
            )
    boxes_alone, notes = _config(source, base, fields, rgb, settings)
    config: Config = _with_masks(source, boxes_alone) if masks else boxes_alone
    tensors = take_tensors(source, graph_of(config), "c4")
    if not wanted and source.ignore(rf"{re.escape(MASK)}.*"):
        notes.insert(0, "its masks are left out, as asked for")
    if masks:
        notes.append('its boxes alone, which can be trained here: --config with {"masks": false}')
    for layer, what in (("mask.logits", "mask"), ("box.deltas", "set of box deltas")):
        if layer in shared and f"{layer}.weight" in tensors and config.num_classes > 1:
            notes.insert(0, f"has one {what} for all classes: repeated for each of them")
    source.ignore(*NO_PART)
    ignored = source.finish(config.name)
    if rgb:
        reverse_colours(tensors)
    provenance = {"source": f"Detectron2 checkpoint {Path(source.path).name}"}
    notes = [*source.notes, *notes]
    return Imported(config, source.fold(tensors, config), provenance, ignored, tuple(notes))


def _with_masks(source: Source, config: ModelConfig) -> DetectorConfig:
    """The Mask R-CNN of which `config` describes the boxes."""
    check_norm(source, f"{MASK}mask_fcn1", "ROI_MASK_HEAD")
    name = f"{MASK}deconv.weight"
    shape = source.shape(name)
    if len(shape) != 4 or shape[1] < 1:
        raise source.error(f"tensor {name!r} has shape {shape}, expected (in, out, 2, 2)")
    head = MaskHead(
        channels=shape[1],
        convs=count_layers(source, MASK_CONV),
        norm=f"{MASK}mask_fcn1.norm.weight" in source,
        pasting="continuous",
    )
    try:
        graph = build_graph(config, masks=head)
    except InputError as error:
        raise source.error(str(error)) from None
    if graph.parameters > MAX_PARAMETERS:
        raise source.error(
            f"would have {graph.parameters:,} parameters, expected at most {MAX_PARAMETERS:,}"
        )
    name = config.name.replace("-c4", "-mask-rcnn-c4")
    return replace(as_detector_config(config), name=name, graph=graph)


def _fields(settings: Detectron2Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that settings become; colours in BGR order, and a network input of their size."""
    fields = dict(settings.fields)
    if settings.rgb:
        for field in ("pixel_mean", "pixel_std"):
            if field in fields:
                fields[field] = fields[field][::-1]
    short, longest = settings.sizes
    if settings.sizes != (800, 1333) and not {"input_height", "input_width"} <= set(given):
        if short == 0:
            raise InputError(
                f"{settings.path}: INPUT.MIN_SIZE_TEST is 0 (images keep their size), but a model "
                "has one size here: state input_height and input_width in a second --config"
            )
        fields["input_height"] = min(max(short, 16), 8192)
        fields["input_width"] = min(max(min(longest, round(short / 10) * 16), 16), 8192)
    return fields


def _config(
    source: Source,
    base: ModelConfig,
    fields: Mapping[str, Any],
    rgb: bool,
    settings: Detectron2Settings | None,
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
        "rpn_channels": source.length(_CONV, 0),
        "name": f"r{3 * sum(blocks) + 2}-c4-detectron2",
    }
    for key in ("pixel_mean", "pixel_std"):  # older checkpoints state them
        if key in source:
            read[key] = source.take(key, (3, 1, 1)).reshape(-1)[:: -1 if rgb else 1].tolist()
    classes = source.length(_LOGITS, 0) - 1
    anchors = source.length(_OBJECTNESS, 0)
    if _ANCHORS in source:  # a buffer of older checkpoints
        value, expected = source.take(_ANCHORS, (anchors, 4)), boxes.cell_anchors(base)
        if "cell_anchors" in fields:
            pass  # the settings have them
        elif value.shape != expected.shape or not np.allclose(value, expected, atol=1e-3):
            read["cell_anchors"] = value.tolist()
            notes.append("its anchors differ from those of the published models; they are kept")
    config = resolve_config(source, base, read, classes, fields)
    if config.anchors_per_cell != anchors:
        raise source.error(
            f"has {anchors} anchors a cell, {base.name} {config.anchors_per_cell}: state "
            "anchor_sizes and anchor_ratios in the configuration"
        )
    order = "RGB" if rgb else "BGR"
    pixels = f"mean {config.pixel_mean}, std {config.pixel_std} (in BGR order), strides in "
    short, longest = settings.sizes if settings else (800, 1333)
    if settings is not None:
        notes += settings.notes
        notes.append(
            f"settings of {settings.path.name}: {order} images of {pixels}{config.stride_in}"
        )
    else:
        notes.append(f"assumed: trained on {order} images of {pixels}{config.stride_in}")
        notes.append(f"assumed as well, since weights do not say it: {_assumed(config)}")
        beside = Path(source.path).with_name("config.yaml")
        where = f"{beside} lies beside it" if beside.exists() else "it is in the run's OUTPUT_DIR"
        notes.append(
            f"other settings give other detections: pass the model's own config.yaml as --config "
            f"({where})"
        )
    notes.append(
        f"network input {config.input_width}x{config.input_height} ({config.resize}, bilinear); "
        f"Detectron2 itself resizes to short side {short}, at most {longest}, by PIL"
    )
    return config, notes


def _assumed(config: ModelConfig) -> str:
    """The settings that leave no trace in weights, by Detectron2's names."""
    anchors = (
        "its own"
        if config.cell_anchors is not None
        else (
            f"SIZES {list(config.anchor_sizes)}, ASPECT_RATIOS {list(config.anchor_ratios)}, "
            f"OFFSET {config.anchor_offset}"
        )
    )
    return (
        f"POOLER_TYPE ROIAlignV2, POOLER_RESOLUTION {config.roi_size}, POOLER_SAMPLING_RATIO "
        f"{config.roi_sampling_ratio}, USE_SIGMOID_CE False, PROPOSAL_GENERATOR.MIN_SIZE 0, "
        f"anchors {anchors}, BBOX_REG_WEIGHTS {config.box_weights} (RPN {config.rpn_box_weights}), "
        f"PRE_NMS_TOPK_TEST {config.rpn_pre_nms}, POST_NMS_TOPK_TEST {config.proposals}, RPN "
        f"NMS_THRESH {config.rpn_nms_threshold}, SCORE_THRESH_TEST {config.score_threshold}, "
        f"NMS_THRESH_TEST {config.nms_threshold}, DETECTIONS_PER_IMAGE {config.max_detections}"
    )
