"""Detectors of torchvision, from their state dicts.

A state dict does not say which sizes images are resized to, which thresholds hold and which epsilon
its batch norms have: these are torchvision's defaults, or what the caller says. torchvision's
published weights (COCO_V1) of Faster R-CNN and Mask R-CNN run with an epsilon of 0, models made new
with 1e-5.

Conventions, met here and nowhere else: RGB images of 0..1 become BGR of 0..255, by the order of the
stem's channels and the scale of the pixel statistics. Label k is COCO's category_id k; ten of the
90 are unused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..model.batch_norm import fold_batch_norm
from ..model.config import COCO_CATEGORY_IDS, COCO_NAMES
from ..model.detector_config import DetectorConfig
from ..model.fpn import FasterRCNNFPN, build_faster_rcnn_fpn, rounded_cell_anchors
from ..model.graph import Layer
from .containers import open_source
from .tensor_source import Imported, Source, count_blocks
from .torchvision import MEAN, STD

Arrays = dict[str, NDArray[np.float32]]

_NORM = ("weight", "bias", "running_mean", "running_var")
_STAGES = tuple(rf"backbone\.body\.layer{n}\.(\d+)\." for n in (1, 2, 3, 4))


@dataclass(frozen=True, slots=True)
class TorchvisionSettings:
    """What a state dict does not say; the defaults are torchvision's.

    Attributes:
        eps: of batch norms.
        min_size, max_size: of the resized image's shorter and longer side, pixels.
        score_threshold, nms_threshold, max_detections: of the detections.
    """

    eps: float = 1e-5
    min_size: int = 800
    max_size: int = 1333
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for field, low, high in (("eps", 0, 1), ("min_size", 32, 8192), ("max_size", 32, 8192)):
            value = getattr(self, field)
            if not low <= value <= high:
                raise UsageError(f"{field} is {value}, expected {low}..{high}")
        if self.min_size > self.max_size:
            raise UsageError(f"min_size is {self.min_size}, above max_size, {self.max_size}")


def load_torchvision_detector(
    path: str | os.PathLike[str],
    settings: TorchvisionSettings | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Imported:
    """A detector of torchvision as a graph with folded tensors.

    Args:
        path: the state dict.
        settings: what it does not say.
        class_names: of the labels 1, 2, ...; default: COCO's for 90 classes, else numbers.

    Raises:
        InputError: the file cannot be read, or is not such a detector.
    """
    settings = settings or TorchvisionSettings()
    _, source = open_source(Path(path))
    family = _family(source, settings)
    names, ids = _classes(source, family.num_classes, class_names)
    # The size only fixes the graph's own shapes: images are resized to their own.
    size = _divisible(settings.min_size), _divisible(settings.max_size)
    graph = build_faster_rcnn_fpn(family, size)
    config = DetectorConfig(
        name="torchvision-faster-rcnn-fpn",
        graph=graph,
        resize="shorter",
        min_size=settings.min_size,
        max_size=settings.max_size,
        class_names=names,
        category_ids=ids,
    )
    tensors = _take(source, graph.layers, family)
    source.ignore(r".*num_batches_tracked")
    source.finish(config.name)
    provenance = {"source": {"format": "torchvision", "name": Path(path).name}}
    notes = (
        f"assumed what a state dict does not say: batch norm eps {settings.eps:g}, "
        f"images of {settings.min_size} to {settings.max_size} pixels, score threshold "
        f"{settings.score_threshold:g}",
    )
    return Imported(config, fold_batch_norm(tensors, config), provenance, notes=notes)


def _divisible(length: int) -> int:
    return -(-length // 32) * 32


def _family(source: Source, settings: TorchvisionSettings) -> FasterRCNNFPN:
    left = source.left
    if not any(name.startswith("roi_heads.box_head.") for name in left):
        raise source.error("is a detector of torchvision of another kind than Faster R-CNN FPN")
    convs = {m[1] for name in left if (m := re.match(r"roi_heads\.box_head\.(\d+)\.0\.", name))}
    rpn = {m[1] for name in left if (m := re.match(r"rpn\.head\.conv\.(\d+)\.0\.weight", name))}
    fpn = source.length("backbone.fpn.inner_blocks.0.0.weight", 0)
    classes = source.length("roi_heads.box_predictor.cls_score.weight", 0) - 1
    return FasterRCNNFPN(
        mean=MEAN,
        std=STD,
        blocks=count_blocks(left, _STAGES),
        eps=settings.eps,
        fpn_channels=fpn,
        fpn_norm="backbone.fpn.inner_blocks.0.1.weight" in left,
        rpn_convs=len(rpn),
        head_convs=len(convs),
        head_layers=1 if convs else 2,
        cell_anchors=rounded_cell_anchors((32.0, 64.0, 128.0, 256.0, 512.0)),
        rpn_min_size=1e-3,
        num_classes=classes,
        score_threshold=settings.score_threshold,
        nms_threshold=settings.nms_threshold,
        max_detections=settings.max_detections,
        min_size=1e-2,
    )


def _classes(
    source: Source, count: int, names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if names is None and count == 90:  # labels are COCO's ids
        known = dict(zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True))
        ids = tuple(range(1, 91))
        return tuple(known.get(i, f"unused {i}") for i in ids), ids
    if names is None:
        names = tuple(f"class {i}" for i in range(1, count + 1))
    if len(names) != count:
        raise source.error(f"has {count} classes, but {len(names)} class names are given")
    return names, tuple(range(1, count + 1))


def _take(source: Source, layers: tuple[Layer, ...], family: FasterRCNNFPN) -> Arrays:
    tensors: Arrays = {}
    for layer in layers:
        convolution, norm = _names(layer.name, family)
        shape = layer.weight_shape
        tensors[f"{layer.name}.weight"] = source.take(f"{convolution}.weight", shape)
        channels = (layer.out_channels,)
        if layer.norm:
            for leaf in _NORM:
                tensors[f"{layer.name}.norm.{leaf}"] = source.take(f"{norm}.{leaf}", channels)
        else:
            tensors[f"{layer.name}.bias"] = source.take(f"{convolution}.bias", channels)
    stem = tensors["stem.conv.weight"]
    tensors["stem.conv.weight"] = np.ascontiguousarray(stem[:, ::-1])  # RGB -> BGR
    return tensors


_FIXED = {
    "stem.conv": ("backbone.body.conv1", "backbone.body.bn1"),
    "rpn.objectness": ("rpn.head.cls_logits", ""),
    "rpn.deltas": ("rpn.head.bbox_pred", ""),
    "box.logits": ("roi_heads.box_predictor.cls_score", ""),
    "box.deltas": ("roi_heads.box_predictor.bbox_pred", ""),
}


def _names(name: str, family: FasterRCNNFPN) -> tuple[str, str]:
    """torchvision's names of a layer's convolution and its batch norm."""
    if name in _FIXED:
        return _FIXED[name]
    if found := re.fullmatch(r"res(\d)\.(\d+)\.(conv(\d)|shortcut)", name):
        prefix = f"backbone.body.layer{int(found[1]) - 1}.{found[2]}"
        if found[3] == "shortcut":
            return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
        return f"{prefix}.{found[3]}", f"{prefix}.bn{found[4]}"
    if found := re.fullmatch(r"fpn\.(lateral|output)(\d)", name):
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[found[1]]
        prefix = f"backbone.fpn.{blocks}.{int(found[2]) - 2}"
        return f"{prefix}.0", f"{prefix}.1"
    if found := re.fullmatch(r"rpn\.conv(\d*)", name):
        return f"rpn.head.conv.{found[1] or 0}.0", ""
    if found := re.fullmatch(r"box\.conv(\d)", name):
        prefix = f"roi_heads.box_head.{found[1]}"
        return f"{prefix}.0", f"{prefix}.1"
    if found := re.fullmatch(r"box\.fc(\d)", name):
        if family.head_convs:  # then comes Flatten
            return f"roi_heads.box_head.{family.head_convs + 1}", ""
        return f"roi_heads.box_head.fc{int(found[1]) + 6}", ""
    raise InputError(f"layer {name!r} has no name in torchvision")
