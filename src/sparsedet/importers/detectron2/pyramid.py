"""Detectron2's Faster R-CNN, Mask R-CNN and RetinaNet with a feature pyramid.

Conventions: pixels are BGR minus a mean; bottlenecks have their stride in the first 1x1, as MSRA's
weights; anchors are not rounded and lie around the corner of their cell; strides are 4 to 128,
whatever the size of the image; RoIAlign ("ROIAlignV2") has its half-pixel shift and as many samples
as cells; background is the last class, without box deltas and without a mask. RetinaNet's sixth
level is made of the backbone's output, and its boxes end at the image's edge only after
non-maximum suppression.

Two differences remain. Detectron2 resizes an image by PIL's filter, to sizes that are rounded, not
truncated. And the level of a RoI changes at log2(size) - 1e-6, not + 1e-8 inside the logarithm.

Source: detectron2/modeling at commit 02b5c4e; configs/Base-RCNN-FPN.yaml, Base-RetinaNet.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...model.boxes import anchors_around
from ...model.config import COCO_CATEGORY_IDS, COCO_NAMES
from ...model.detector_config import DetectorConfig
from ...model.faster_rcnn import FasterRCNNFPN, build_faster_rcnn_fpn
from ...model.graph import CellAnchors, Graph
from ...model.one_stage import OneStage, build_one_stage
from ...model.resnet import ResNet
from ..tensor_source import MAX_PARAMETERS, Imported, Source, count_blocks
from ..torchvision import MEAN, STD
from .checks import has
from .config_yaml import Detectron2Config, check_weights, read_settings
from .keys import FamilyName
from .names import (
    MASK,
    MASK_CONV,
    NO_PART,
    count_layers,
    for_all_classes,
    reverse_colours,
    take_tensors,
)
from .pyramid_settings import RETINANET, PyramidSettings

_BODY = "backbone.bottom_up"
_STAGES = tuple(rf"backbone\.bottom_up\.res{n}\.(\d+)\." for n in (2, 3, 4, 5))


def load_pyramid(
    source: Source,
    family: FamilyName,
    fields: Mapping[str, Any],
    rgb: bool,
    stated: Detectron2Config | None,
) -> Imported:
    """The model in a checkpoint.

    Args:
        source: the checkpoint's tensors.
        family: "fpn" or "retinanet".
        fields: of `PyramidSettings`; they override all others.
        rgb, stated: as `load_detectron2` takes them.

    Raises:
        InputError: as of `load_detectron2`.
    """
    masks = has(source, MASK)
    if stated is not None:
        rgb = stated.values.get("INPUT.FORMAT") == "RGB"
    settings, notes = _settings(source, family, masks, fields, rgb, stated)
    anchors = _cell_anchors(source, family, settings, stated is not None, notes)
    size = _divisible(settings.min_size), _divisible(settings.max_size)
    try:
        if family == "fpn":
            graph = build_faster_rcnn_fpn(_two_stage(source, settings, anchors), size)
        else:
            graph = build_one_stage(_retinanet(source, settings, anchors), size)
    except InputError as error:
        raise source.error(str(error)) from None
    if graph.parameters > MAX_PARAMETERS:
        raise source.error(
            f"would have {graph.parameters:,} parameters, expected at most {MAX_PARAMETERS:,}"
        )
    config = _config(source, family, settings, graph, masks)
    shared = for_all_classes(source, family)
    tensors = take_tensors(source, graph, family)
    source.ignore(*NO_PART)
    ignored = source.finish(config.name)
    if rgb:
        reverse_colours(tensors)
    for layer, what in (("box.deltas", "set of box deltas"), ("mask.logits", "mask")):
        if layer in shared and config.num_classes > 1:
            notes.append(f"has one {what} for all classes: repeated for each of them")
    provenance = {"source": f"Detectron2 checkpoint {Path(source.path).name}"}
    notes = [*source.notes, *notes, *_said(source, settings, rgb, stated)]
    return Imported(config, source.fold(tensors, config), provenance, ignored, tuple(notes))


def _divisible(length: int) -> int:
    return -(-length // 32) * 32


def _classes(source: Source, family: FamilyName) -> int:
    """Number of classes, without the background."""
    name = f"{'roi_heads.box_predictor' if family == 'fpn' else 'head'}.cls_score.weight"
    outputs = source.length(name, 0)
    if family == "fpn":
        classes = outputs - 1
    else:
        classes = outputs // max(_anchors_per_cell(source, family), 1)
    if classes < 1:
        raise source.error(f"tensor {name!r} has shape {source.shape(name)}: no classes")
    return classes


def _anchors_per_cell(source: Source, family: FamilyName) -> int:
    if family == "fpn":
        return source.length("proposal_generator.rpn_head.objectness_logits.weight", 0)
    return source.length("head.bbox_pred.weight", 0) // 4


def _settings(
    source: Source,
    family: FamilyName,
    masks: bool,
    fields: Mapping[str, Any],
    rgb: bool,
    stated: Detectron2Config | None,
) -> tuple[PyramidSettings, list[str]]:
    """The settings, and notes for the user."""
    base = PyramidSettings() if family == "fpn" else RETINANET
    values: dict[str, Any] = asdict(base)
    notes: list[str] = []
    if stated is None and rgb:
        values |= {"stride_in": "conv2", "pixel_mean": MEAN, "pixel_std": STD}
    for key in ("pixel_mean", "pixel_std"):  # older checkpoints state them
        if key in source:
            values[key] = source.take(key, (3, 1, 1)).reshape(-1)[:: -1 if rgb else 1].tolist()
    if stated is not None:
        told = read_settings(stated, family, masks)
        agnostic = "box.deltas" in for_all_classes(source, family)
        blocks = count_blocks(source.left, _STAGES)
        classes = _classes(source, family)
        check_weights(told, Path(source.path), family, classes, blocks, agnostic, masks)
        of_file = dict(told.fields)
        if told.rgb:
            of_file |= {k: of_file[k][::-1] for k in ("pixel_mean", "pixel_std") if k in of_file}
        if told.sizes[0] == 0 and "min_size" not in fields:
            raise InputError(
                f"{stated.path}: INPUT.MIN_SIZE_TEST is 0 (images keep their size), but a model "
                "has one size here: state min_size and max_size in a second --config"
            )
        of_file |= {"min_size": min(told.sizes), "max_size": told.sizes[1]}
        values |= of_file
        notes += told.notes
    try:
        return PyramidSettings.from_dict({**values, **fields}), notes
    except InputError as error:
        raise source.error(str(error)) from None


def _per_level(name: str, lists: tuple[tuple[float, ...], ...]) -> list[tuple[float, ...]]:
    if len(lists) not in (1, 5):
        raise InputError(f"{name} has {len(lists)} lists, expected 1 or 5, one for each level")
    return list(lists) * (5 // len(lists))


def _strides(family: FamilyName) -> tuple[int, ...]:
    first = 2 if family == "fpn" else 3
    return tuple(1 << level for level in range(first, first + 5))


def _cell_anchors(
    source: Source, family: FamilyName, settings: PyramidSettings, stated: bool, notes: list[str]
) -> CellAnchors:
    """The anchors of each level: by the settings, or what an old checkpoint states.

    Raises:
        InputError: their number is not that of the weights.
    """
    count = _anchors_per_cell(source, family)
    prefix = "proposal_generator." if family == "fpn" else ""
    levels = []
    try:
        sizes = _per_level("anchor_sizes", settings.anchor_sizes)
        ratios = _per_level("anchor_ratios", settings.anchor_ratios)
    except InputError as error:
        raise source.error(str(error)) from None
    differ = False
    for i, stride in enumerate(_strides(family)):
        anchors = anchors_around(settings.anchor_offset * stride, sizes[i], ratios[i])
        name = f"{prefix}anchor_generator.cell_anchors.{i}"
        if name in source:  # a buffer of older checkpoints; Detectron2 does not load it any more
            kept = source.take(name, (count, 4))
            same = kept.shape == anchors.shape and np.allclose(kept, anchors, atol=1e-3)
            if not stated and not same:
                anchors, differ = kept, True
        if len(anchors) != count:
            raise source.error(
                f"has {count} anchors a cell, anchor_sizes and anchor_ratios give {len(anchors)}: "
                "give the model's own config.yaml as --config, or state them"
            )
        levels.append(tuple(tuple(box) for box in anchors.tolist()))
    if differ:
        notes.append("its anchors differ from those of the published models; they are kept")
    return tuple(levels)


def _resnet(source: Source, settings: PyramidSettings) -> ResNet:
    def lengths(layer: str) -> tuple[int, int, int, int]:
        one, two, three, four = (
            source.length(f"{_BODY}.res{n}.0.{layer}.weight", 0) for n in (2, 3, 4, 5)
        )
        return one, two, three, four

    blocks = count_blocks(source.left, _STAGES)
    if sum(blocks) > 1000:  # each block is a few operations of the graph
        raise source.error(f"has {sum(blocks)} residual blocks, expected at most 1000")
    return ResNet(
        blocks=blocks,
        stem_channels=source.length(f"{_BODY}.stem.conv1.weight", 0),
        bottleneck_channels=lengths("conv1"),
        stage_channels=lengths("conv3"),
        stride_in=settings.stride_in,
    )


def _two_stage(source: Source, settings: PyramidSettings, anchors: CellAnchors) -> FasterRCNNFPN:
    channels = source.length("backbone.fpn_lateral5.weight", 0)
    head = r"roi_heads\.box_head\."
    layers = count_layers(source, head + r"fc(\d+)\.weight")
    if not layers:
        raise source.error("has no fully connected layers ('roi_heads.box_head.fc1') in its head")
    return FasterRCNNFPN(
        mean=settings.pixel_mean,
        std=settings.pixel_std,
        backbone=_resnet(source, settings),
        fpn_channels=channels,
        fpn_norm="backbone.fpn_lateral5.norm.weight" in source,
        head_convs=count_layers(source, head + r"conv(\d+)\.weight"),
        head_layers=layers,
        head_channels=source.length("roi_heads.box_head.fc1.weight", 0),
        cell_anchors=anchors,
        strides=_strides("fpn"),
        pre_nms=settings.rpn_pre_nms,
        proposals=settings.proposals,
        rpn_box_weights=settings.rpn_box_weights,
        rpn_nms_threshold=settings.rpn_nms_threshold,
        rpn_remove_empty=True,
        roi_size=_roi_size(source, settings, channels),
        roi_sampling_ratio=settings.roi_sampling_ratio,
        roi_sampling="aligned",
        num_classes=_classes(source, "fpn"),
        background="last",
        background_deltas=False,
        box_weights=settings.box_weights,
        score_threshold=settings.score_threshold,
        nms_threshold=settings.nms_threshold,
        max_detections=settings.max_detections,
        mask_convs=_mask_convs(source),
        mask_norm=f"{MASK}mask_fcn1.norm.weight" in source,
        mask_roi_size=settings.mask_roi_size,
        mask_roi_sampling_ratio=settings.mask_roi_sampling_ratio,
        mask_pasting="continuous",
    )


def _mask_convs(source: Source) -> int:
    """3x3 convolutions of the mask head; 0: there is none."""
    count = count_layers(source, MASK_CONV)
    if not count and has(source, MASK):
        raise source.error(
            f"tensor '{MASK}mask_fcn1.weight' is missing: a mask head has convolutions here "
            "(MODEL.ROI_MASK_HEAD.NUM_CONV 1 or more)"
        )
    return count


def _roi_size(source: Source, settings: PyramidSettings, channels: int) -> int:
    """Bins of a RoI along each axis: the first fully connected layer reads all of them."""
    name = "roi_heads.box_head.fc1.weight"
    shape = source.shape(name)
    cells = shape[1] // max(channels, 1) if len(shape) == 2 else 0
    size = math.isqrt(cells)
    if size == 0 or channels * size * size != shape[1]:
        raise source.error(
            f"tensor {name!r} has shape {shape}, expected (..., {channels} times a square number)"
        )
    if settings.roi_size not in (None, size):
        raise source.error(
            f"has RoIs of {size}x{size} bins, POOLER_RESOLUTION (roi_size) is {settings.roi_size}"
        )
    return size


def _retinanet(source: Source, settings: PyramidSettings, anchors: CellAnchors) -> OneStage:
    backbone = _resnet(source, settings)
    inputs = source.shape("backbone.top_block.p6.weight")[1:2]
    return OneStage(
        mean=settings.pixel_mean,
        std=settings.pixel_std,
        backbone=backbone,
        top="source" if inputs == backbone.stage_channels[3:] else "output",
        channels=source.length("backbone.fpn_lateral5.weight", 0),
        tower=count_layers(source, r"head\.cls_subnet\.(\d+)\.weight"),
        cell_anchors=anchors,
        strides=_strides("retinanet"),
        box_weights=settings.box_weights,
        num_classes=_classes(source, "retinanet"),
        pre_nms=settings.pre_nms,
        score_threshold=settings.score_threshold,
        nms_threshold=settings.nms_threshold,
        max_detections=settings.max_detections,
        clip_first=False,
    )


def _config(
    source: Source, family: FamilyName, settings: PyramidSettings, graph: Graph, masks: bool
) -> DetectorConfig:
    classes = _classes(source, family)
    names, ids = settings.class_names, tuple(range(1, classes + 1))
    if names is None and classes == len(COCO_NAMES):
        names, ids = COCO_NAMES, COCO_CATEGORY_IDS
    if names is None:
        names = tuple(f"class {i}" for i in ids)
    if len(names) != classes:
        raise source.error(f"has {classes} classes, class_names gives {len(names)}")
    depth = 3 * sum(count_blocks(source.left, _STAGES)) + 2
    kind = "retinanet" if family == "retinanet" else f"{'mask' if masks else 'faster'}-rcnn-fpn"
    return DetectorConfig(
        name=f"r{depth}-{kind}-detectron2",
        graph=graph,
        resize="shorter",
        min_size=settings.min_size,
        max_size=settings.max_size,
        class_names=names,
        category_ids=ids,
    )


def _said(
    source: Source, settings: PyramidSettings, rgb: bool, stated: Detectron2Config | None
) -> list[str]:
    """Notes: the settings, and where they come from."""
    order = "RGB" if rgb else "BGR"
    pixels = (
        f"{order} images of mean {settings.pixel_mean}, std {settings.pixel_std} (in BGR order)"
    )
    pixels += f", strides in {settings.stride_in}"
    if stated is not None:
        notes = [f"settings of {stated.path.name}: {pixels}"]
    else:
        beside = Path(source.path).with_name("config.yaml")
        where = f"{beside} lies beside it" if beside.exists() else "it is in the run's OUTPUT_DIR"
        notes = [
            f"assumed: trained on {pixels}",
            "assumed as well, since weights do not say it, what the model zoo's models have: SIZES "
            f"{[[round(s, 2) for s in sizes] for sizes in settings.anchor_sizes]}, POOLER_TYPE "
            f"ROIAlignV2, BBOX_REG_WEIGHTS {settings.box_weights}, SCORE_THRESH_TEST "
            f"{settings.score_threshold}, NMS_THRESH_TEST {settings.nms_threshold}, "
            f"DETECTIONS_PER_IMAGE {settings.max_detections}",
            "other settings give other detections: pass the model's own config.yaml as --config "
            f"({where})",
        ]
    notes.append(
        f"images are resized to short side {settings.min_size}, at most {settings.max_size}, by "
        "bilinear interpolation; Detectron2 itself does this by PIL's filter"
    )
    return notes
