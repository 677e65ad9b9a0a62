"""Detectron2's trained C4 models (.pkl of its model zoo, .pth of its checkpointer).

Conventions, all in the preset `r101-c4-detectron2`: MSRA's bottlenecks have their stride in the
first 1x1, pixels are BGR minus a mean, background is the last class and has no box deltas, RoIAlign
samples adaptively. Depth, widths, classes, pixel statistics and anchors are read from the file if
it has them. Of a Mask R-CNN the box head is read and the mask head ignored. One set of box deltas
for all classes (CLS_AGNOSTIC_BBOX_REG) is repeated for each class: the results are equal.

A file of weights states none of its model's settings; the `config.yaml` of its run does (see
`detectron2_config`). Without it those of the published models are assumed, and named in notes.
Whether a model reads BGR or RGB (INPUT.FORMAT) is one of them: Detectron2's recipe for RGB, with
torchvision's backbones (tools/convert-torchvision-to-d2.py), changes three things: the channel
order, the pixel statistics, and the stride, which is then in the 3x3.

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

from ...errors import InputError
from ...model import boxes
from ...model.c4 import build_graph
from ...model.config import ModelConfig
from ...model.graph import Layer
from ...model.presets import preset
from ..containers import open_source
from .config_yaml import Detectron2Settings
from ..tensor_source import Imported, Source, count_blocks, resolve_config

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
    settings: Detectron2Settings | None = None,
    weights: str | None = None,
) -> Imported:
    """Read a checkpoint.

    Args:
        path: the checkpoint.
        base: configuration of all that the file does not state; default: the preset
            `r101-c4-detectron2`, with `rgb` changed as in the recipe above.
        fields: fields of the configuration (BGR), which override all others.
        rgb: True if the model reads RGB: its first layer and stated pixel statistics are reversed.
        settings: what the model's own config.yaml says; it replaces `base` and `rgb`.
        weights: which of several models in the file, as `containers.open_source` takes it.

    Raises:
        InputError: the file is unreadable, hostile or not a Faster R-CNN C4, its tensors do not
            fit together, or `settings` are those of another model.
    """
    _, source = open_source(Path(path), weights)
    _check_model(source)
    if settings is not None:
        if rgb and not settings.rgb:
            raise InputError(f"{settings.path}: INPUT.FORMAT is BGR, but --rgb is given")
        rgb = settings.rgb
        _check_settings(source, settings)
        fields = {**_fields(settings, fields or {}), **(fields or {})}
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
    config, notes = _config(source, base, fields or {}, rgb, settings)
    tensors: dict[str, Any] = {}
    for layer in build_graph(config).layers:
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
        r"n_averaged",
        r"roi_heads\.mask_head\..*",
    )
    ignored = source.finish(config.name)
    if rgb:
        stem = tensors["stem.conv.weight"]
        tensors["stem.conv.weight"] = np.ascontiguousarray(stem[:, ::-1])
    provenance = {"source": f"Detectron2 checkpoint {Path(path).name}"}
    notes = [*source.notes, *notes]
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


_NEXT = "only Faster R-CNN C4 runs here, as COCO-Detection/faster_rcnn_R_50_C4_3x of the model zoo"


def _check_model(source: Source) -> None:
    """Raise InputError, naming the kind of model and what to do, unless it is a C4 detector."""
    names = source.left

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if has("backbone.bottom_up.", "backbone.fpn_"):
        raise source.error(f"is a model with a feature pyramid (FPN); {_NEXT}")
    if has("backbone.res5."):
        raise source.error(f"has res5 in its backbone (a dilated C5 model); {_NEXT}")
    if has("roi_heads.box_predictor.0."):
        raise source.error(f"is a cascade; {_NEXT}")
    if has("sem_seg_head."):
        raise source.error(f"has a head for semantic segmentation; {_NEXT}")
    if not has("roi_heads."):
        raise source.error(
            "has no box head ('roi_heads.'), expected a trained Faster R-CNN C4; a backbone or an "
            "RPN alone detects nothing"
        )
    if has("roi_heads.box_head.") and not has("roi_heads.res5."):
        raise source.error(
            "has StandardROIHeads (roi_heads.box_head), expected Res5ROIHeads: train it with "
            "MODEL.ROI_HEADS.NAME Res5ROIHeads"
        )
    if has("proposal_generator.rpn_head.conv.conv"):
        raise source.error(
            "has several convolutions in its RPN, expected one: train it with MODEL.RPN.CONV_DIMS "
            "[-1]"
        )
    if any(".conv2_offset." in name for name in names):
        raise source.error(
            "has deformable convolutions: train it with MODEL.RESNETS.DEFORM_ON_PER_STAGE False"
        )
    _check_layers(source)
    _check_boxes(source)


def _check_layers(source: Source) -> None:
    """Raise InputError for residual blocks that this network does not have."""
    first = "backbone.res2.0"
    if f"{first}.conv1.weight" not in source:
        return  # named later, with the tensor that is missing
    if f"{first}.conv3.weight" not in source and f"{first}.conv2.weight" in source:
        raise source.error(
            "has blocks of two convolutions (ResNet 18 or 34), expected MODEL.RESNETS.DEPTH 50, "
            "101 or 152"
        )
    if f"{first}.conv1.norm.weight" in source and f"{first}.conv1.norm.running_mean" not in source:
        raise source.error(
            "has norms without running statistics (GroupNorm or LayerNorm), which cannot be folded "
            "into weights: train it with MODEL.RESNETS.NORM FrozenBN, BN or SyncBN"
        )
    if f"{first}.conv1.norm.weight" not in source and f"{first}.conv2.weight" in source:
        raise source.error(
            "has no norms in its backbone: train it with MODEL.RESNETS.NORM FrozenBN, BN or SyncBN"
        )
    if f"{first}.conv2.weight" in source:
        width, inputs = source.length(f"{first}.conv2.weight", 0), 1
        if len(source.shape(f"{first}.conv2.weight")) == 4:
            inputs = source.length(f"{first}.conv2.weight", 1)
        narrow = source.length(f"{first}.conv1.weight", 0)
        if narrow == width > inputs > 0 and width % inputs == 0:
            raise source.error(
                f"is a ResNeXt (convolutions in {width // inputs} groups), expected a ResNet: "
                "train it with MODEL.RESNETS.NUM_GROUPS 1"
            )


def _check_boxes(source: Source) -> None:
    """Raise InputError if boxes have five numbers: the fifth is an angle."""
    objectness, deltas = _NAMES["rpn.objectness"], _NAMES["rpn.deltas"]
    logits, box = _NAMES["box.logits"], _NAMES["box.deltas"]
    if not all(f"{name}.weight" in source for name in (objectness, deltas, logits, box)):
        return
    anchors, classes = (source.length(f"{n}.weight", 0) for n in (objectness, logits))
    rotated_rpn = source.length(f"{deltas}.weight", 0) == 5 * anchors
    numbers = source.length(f"{box}.weight", 0)
    if rotated_rpn or (numbers in (5, 5 * (classes - 1)) and numbers != 4 * (classes - 1)):
        raise source.error(
            "has rotated boxes (five numbers a box), expected four: train it with "
            "MODEL.PROPOSAL_GENERATOR.NAME RPN and MODEL.ROI_HEADS.NAME Res5ROIHeads"
        )


def _check_settings(source: Source, settings: Detectron2Settings) -> None:
    """Raise InputError if the settings are those of another model."""
    classes = source.length(f"{_NAMES['box.logits']}.weight", 0) - 1
    blocks = count_blocks(source.left, _STAGES)
    what = ""
    if settings.classes not in (None, classes):
        what = f"MODEL.ROI_HEADS.NUM_CLASSES is {settings.classes}, the weights have {classes}"
    elif settings.blocks not in (None, blocks):
        what = f"MODEL.RESNETS.DEPTH is {sum(settings.blocks or ()) * 3 + 2}, the weights have "
        what += f"{blocks} blocks"
    elif settings.agnostic not in (None, _agnostic(source)) and classes > 1:
        what = f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is {settings.agnostic}, the weights have "
        what += "one set of box deltas" if _agnostic(source) else "a set for each class"
    if what:
        raise InputError(f"{settings.path}: {what}: it is of another model than {source.path}")


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
