"""Detectors of torchvision, from their state dicts.

A state dict does not say which sizes images are resized to, which thresholds hold and which epsilon
its batch norms have: these are torchvision's defaults, or what the caller says. torchvision's
published weights (COCO_V1) of Faster R-CNN, Mask R-CNN and RetinaNet with ResNet-50 run with an
epsilon of 0, models made new with 1e-5.

Conventions, met here and nowhere else: RGB images of 0..1 become BGR of 0..255, by the order of the
stem's channels and the scale of the pixel statistics. Label k is COCO's category_id k; ten of the
90 are unused. RetinaNet and FCOS have a class 0, which is never an object: it is the first label
here, and has the category_id 0.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..model.batch_norm import fold_batch_norm
from ..model.config import COCO_CATEGORY_IDS, COCO_NAMES
from ..model.detector_config import DetectorConfig
from ..model.faster_rcnn import FasterRCNNFPN, build_faster_rcnn_fpn
from ..model.fpn import rounded_cell_anchors
from ..model.mobilenet import MobileNetV3
from ..model.one_stage import OneStage, build_one_stage
from ..model.resnet import ResNet
from .containers import open_source
from .tensor_source import Imported, Source, count_blocks
from .torchvision import MEAN, STD
from .torchvision_names import rename_first_releases, take_tensors

_STAGES = tuple(rf"backbone\.body\.layer{n}\.(\d+)\." for n in (1, 2, 3, 4))


@dataclass(frozen=True, slots=True)
class TorchvisionSettings:
    """What a state dict does not say; the defaults are torchvision's.

    Attributes:
        eps: of batch norms.
        min_size, max_size: of the resized image's shorter and longer side, pixels.
        proposals: before and after the RPN's non-maximum suppression; default: 1000.
            fasterrcnn_mobilenet_v3_large_320_fpn has 150 (and sizes of 320 and 640).
        score_threshold, nms_threshold, max_detections: of the detections; default: 0.05, 0.5 and
            100, of RetinaNet 0.05, 0.5 and 300, of FCOS 0.2, 0.6 and 100.
    """

    eps: float = 1e-5
    min_size: int = 800
    max_size: int = 1333
    proposals: int = 1000
    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_detections: int | None = None

    def __post_init__(self) -> None:
        for field, low, high in (
            ("eps", 0, 1),
            ("min_size", 32, 8192),
            ("max_size", 32, 8192),
            ("proposals", 1, 100_000),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise UsageError(f"{field} is {value}, expected {low}..{high}")
        if self.min_size > self.max_size:
            raise UsageError(f"min_size is {self.min_size}, above max_size, {self.max_size}")

    def thresholds(self, score: float, nms: float, detections: int) -> tuple[float, float, int]:
        """Score, IoU of non-maximum suppression and number of detections, with these defaults."""
        return (
            score if self.score_threshold is None else self.score_threshold,
            nms if self.nms_threshold is None else self.nms_threshold,
            detections if self.max_detections is None else self.max_detections,
        )


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
    rename_first_releases(source)
    # The size only fixes the graph's own shapes: images are resized to their own.
    size = _divisible(settings.min_size), _divisible(settings.max_size)
    family = _family(source, settings)
    if isinstance(family, OneStage):
        graph, first_label = build_one_stage(family, size), 0
        kind = "retinanet" if family.cell_anchors else "fcos"
    else:
        graph, first_label = build_faster_rcnn_fpn(family, size), 1
        kind = "mask-rcnn-fpn" if family.mask_convs else "faster-rcnn-fpn"
    names, ids = _classes(source, family.num_classes, first_label, class_names)
    config = DetectorConfig(
        name=f"torchvision-{kind}",
        graph=graph,
        resize="shorter",
        min_size=settings.min_size,
        max_size=settings.max_size,
        class_names=names,
        category_ids=ids,
    )
    tensors = take_tensors(source, graph)
    source.ignore(r".*num_batches_tracked")
    source.finish(config.name)
    provenance = {"source": {"format": "torchvision", "name": Path(path).name}}
    notes = (
        f"assumed what a state dict does not say: batch norm eps {settings.eps:g}, "
        f"images of {settings.min_size} to {settings.max_size} pixels, score threshold "
        f"{config.score_threshold:g}",
    )
    return Imported(config, fold_batch_norm(tensors, config), provenance, notes=notes)


def _divisible(length: int) -> int:
    return -(-length // 32) * 32


def _family(source: Source, settings: TorchvisionSettings) -> FasterRCNNFPN | OneStage:
    left = source.left
    for prefix, what in (
        ("roi_heads.keypoint_head.", "Keypoint R-CNN"),
        ("head.classification_head.module_list.", "SSD"),
    ):
        if any(name.startswith(prefix) for name in left):
            raise source.error(f"is a {what} of torchvision, which cannot be run here yet")
    if "head.classification_head.cls_logits.weight" in left:
        return _one_stage(source, settings)
    if any(name.startswith("roi_heads.box_head.") for name in left):
        return _two_stage(source, settings)
    raise source.error("is a model of torchvision, but none of its detectors that are run here")


def _numbers(source: Source, pattern: str) -> set[str]:
    """The first groups of all names that begin with the pattern."""
    return {m[1] for name in source.left if (m := re.match(pattern, name))}


def _resnet(source: Source) -> ResNet:
    return ResNet(blocks=count_blocks(source.left, _STAGES))


def _two_stage(source: Source, settings: TorchvisionSettings) -> FasterRCNNFPN:
    convs = _numbers(source, r"roi_heads\.box_head\.(\d+)\.0\.")
    masks = _numbers(source, r"roi_heads\.mask_head\.(\d+)\.0\.")
    score, nms, detections = settings.thresholds(0.05, 0.5, 100)
    mobile = "backbone.body.0.0.weight" in source
    sizes = (32, 64, 128, 256, 512)
    return FasterRCNNFPN(
        mean=MEAN,
        std=STD,
        backbone=MobileNetV3() if mobile else _resnet(source),
        first_level=5 if mobile else 2,
        roi_levels=1 if mobile else 4,
        eps=settings.eps,
        fpn_channels=source.length("backbone.fpn.inner_blocks.0.0.weight", 0),
        fpn_norm="backbone.fpn.inner_blocks.0.1.weight" in source,
        rpn_convs=len(_numbers(source, r"rpn\.head\.conv\.(\d+)\.0\.weight")),
        head_convs=len(convs),
        head_layers=1 if convs else 2,
        cell_anchors=rounded_cell_anchors([sizes] * 3 if mobile else [[size] for size in sizes]),
        strides=(0,) * (3 if mobile else 5),
        pre_nms=settings.proposals,
        proposals=settings.proposals,
        rpn_min_size=1e-3,
        rpn_score_threshold=0.05 if mobile else 0.0,
        num_classes=source.length("roi_heads.box_predictor.cls_score.weight", 0) - 1,
        score_threshold=score,
        nms_threshold=nms,
        max_detections=detections,
        min_size=1e-2,
        mask_convs=len(masks),
        mask_norm="roi_heads.mask_head.0.1.weight" in source,
    )


def _one_stage(source: Source, settings: TorchvisionSettings) -> OneStage:
    fcos = "head.regression_head.bbox_ctrness.weight" in source
    anchors = 1 if fcos else source.length("head.regression_head.bbox_reg.weight", 0) // 4
    classes = source.length("head.classification_head.cls_logits.weight", 0) // max(anchors, 1)
    top = "backbone.fpn.extra_blocks.p6.weight"
    norms = _numbers(source, r"head\.classification_head\.conv\.(\d+)\.1\.weight")
    score, nms, detections = settings.thresholds(*((0.2, 0.6, 100) if fcos else (0.05, 0.5, 300)))
    sides = [[size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))] for size in _SIZES]
    return OneStage(
        mean=MEAN,
        std=STD,
        backbone=_resnet(source),
        eps=settings.eps,
        top="output" if source.length(top, 0) == source.length(top, 1) else "source",
        channels=source.length(top, 0),
        tower=len(_numbers(source, r"head\.classification_head\.conv\.(\d+)\."))
        // (2 if fcos else 1),
        tower_groups=32 if fcos or norms else 0,
        cell_anchors=() if fcos else rounded_cell_anchors(sides),
        sizes=tuple(float(size // 4) for size in _SIZES) if fcos else (),
        num_classes=classes,
        score_threshold=score,
        nms_threshold=nms,
        max_detections=detections,
    )


_SIZES = (32, 64, 128, 256, 512)
"""Sides of the anchors of each level; FCOS' boxes are in quarters of them."""


def _classes(
    source: Source, count: int, first: int, names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category_ids of the labels.

    Args:
        first: what torchvision calls the first one.
    """
    ids = tuple(range(first, first + count))
    objects = count - 1 + first
    if names is None and objects == 90:  # labels are COCO's ids
        known = dict(zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True))
        return tuple(known.get(i, f"unused {i}") for i in ids), ids
    if names is None:
        names = tuple(f"class {i}" for i in range(1, objects + 1))
    if len(names) != objects:
        raise source.error(f"has {objects} classes, but {len(names)} class names are given")
    return (names if first else ("unused 0", *names)), ids
