"""The graph of a Faster R-CNN or Mask R-CNN with a Feature Pyramid Network.

Source of the structure: Ren et al., arXiv 1506.01497; He et al., arXiv 1703.06870; torchvision and
Detectron2, whose differences are fields of `FasterRCNNFPN`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .fpn import pyramid
from .graph import (
    IMAGE,
    CellAnchors,
    DetectionOutput,
    Graph,
    Normalise,
    Pasting,
    Proposals,
    RoiAlign,
)
from .mask_head import MaskHead
from .mobilenet import MobileNetV3
from .resnet import RESNET_50, GraphParts, ResNet


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterRCNNFPN:
    """A Faster R-CNN with a Feature Pyramid Network, with or without masks (Mask R-CNN).

    Attributes:
        mean, std: of pixels, BGR, 0..255.
        backbone: its outputs go into the pyramid.
        eps: of batch norms.
        first_level: of the pyramid; the stride of its largest map is 2 to the power of it.
        roi_levels: levels, from the first one, that RoIAlign reads.
        fpn_channels: of all levels.
        fpn_norm: the pyramid's convolutions have batch norms, and no bias before them.
        rpn_convs: 3x3 convolutions before the RPN's predictors.
        head_convs, head_layers: 3x3 convolutions with batch norm and fully connected layers of the
            box head.
        head_channels: of the fully connected layers.
        cell_anchors, strides, pre_nms, proposals: of `Proposals`; so are those that begin with
            `rpn_`.
        roi_size, roi_sampling_ratio, roi_sampling, roi_canonical_size: of `RoiAlign`.
        num_classes and the following: of `DetectionOutput`.
        mask_convs: 3x3 convolutions of the mask head; 0: no masks.
        mask_norm: they have batch norms, and no bias before them.
        mask_roi_size, mask_roi_sampling_ratio: of the mask head's `RoiAlign`.
        mask_pasting: of `MaskOutput`.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    backbone: ResNet | MobileNetV3 = RESNET_50
    first_level: int = 2
    roi_levels: int = 4
    eps: float = 1e-5
    fpn_channels: int = 256
    fpn_norm: bool = False
    rpn_convs: int = 1
    head_convs: int = 0
    head_layers: int = 2
    head_channels: int = 1024
    cell_anchors: CellAnchors
    strides: tuple[int, ...] = (0, 0, 0, 0, 0)
    pre_nms: int = 1000
    proposals: int = 1000
    rpn_box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    rpn_nms_threshold: float = 0.7
    rpn_remove_empty: bool = False
    rpn_min_size: float = 0.0
    rpn_score_threshold: float = 0.0
    roi_size: int = 7
    roi_sampling_ratio: int = 2
    roi_sampling: Literal["aligned", "legacy"] = "legacy"
    roi_canonical_size: float = 224.0
    num_classes: int = 90
    background: Literal["first", "last"] = "first"
    background_deltas: bool = True
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    delta_clamp: float = math.log(1000 / 16)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 0.0
    mask_convs: int = 0
    mask_norm: bool = False
    mask_roi_size: int = 14
    mask_roi_sampling_ratio: int = 2
    mask_pasting: Pasting = "whole"


def build_faster_rcnn_fpn(family: FasterRCNNFPN, input_size: tuple[int, int]) -> Graph:
    """The graph for a network input of (height, width) pixels.

    Raises:
        InputError: the network input is too small for the network.
    """
    parts = GraphParts(family.eps)
    x = parts.add("normalise", (IMAGE,), Normalise(family.mean, family.std))
    sources = family.backbone.build(parts, x)
    levels = pyramid(parts, sources, family.fpn_channels, family.first_level, norm=family.fpn_norm)
    proposals = _proposals(parts, family, levels)
    of_rois = levels[: family.roi_levels]
    logits, deltas = _box_head(parts, family, of_rois, proposals)
    rows = parts.add(
        "detections",
        (logits, deltas, proposals, IMAGE),
        DetectionOutput(
            num_classes=family.num_classes,
            background=family.background,
            background_deltas=family.background_deltas,
            box_weights=family.box_weights,
            delta_clamp=family.delta_clamp,
            score_threshold=family.score_threshold,
            nms_threshold=family.nms_threshold,
            max_detections=family.max_detections,
            min_size=family.min_size,
        ),
    )
    if family.mask_convs:
        _mask_head(parts, family, of_rois, rows)
    return parts.graph(input_size)


def _roi_align(family: FasterRCNNFPN, size: int, ratio: int) -> RoiAlign:
    first = family.first_level
    return RoiAlign(
        scales=tuple(1 / (1 << (first + i)) for i in range(family.roi_levels)),
        size=size,
        sampling_ratio=ratio,
        sampling=family.roi_sampling,
        canonical_size=family.roi_canonical_size,
        first_level=first,
    )


def _proposals(parts: GraphParts, family: FasterRCNNFPN, levels: list[str]) -> str:
    """The RPN: the same layers on every level."""
    objectness: list[str] = []
    deltas: list[str] = []
    for level, source in enumerate(levels, start=family.first_level):
        x, suffix = source, f".p{level}"
        for i in range(family.rpn_convs):
            layer = f"rpn.conv{i}" if family.rpn_convs > 1 else "rpn.conv"
            x = parts.conv(
                layer + suffix,
                x,
                family.fpn_channels,
                3,
                1,
                (1, 1),
                activation="relu",
                prunable=True,
                layer=layer,
            )
        anchors = len(family.cell_anchors[level - family.first_level])
        for layer, out, names in (
            ("rpn.objectness", anchors, objectness),
            ("rpn.deltas", 4 * anchors, deltas),
        ):
            names.append(parts.conv(layer + suffix, x, out, layer=layer))
    return parts.add(
        "proposals",
        (*objectness, *deltas, IMAGE),
        Proposals(
            cell_anchors=family.cell_anchors,
            strides=family.strides,
            box_weights=family.rpn_box_weights,
            delta_clamp=family.delta_clamp,
            pre_nms=family.pre_nms,
            count=family.proposals,
            nms_threshold=family.rpn_nms_threshold,
            remove_empty=family.rpn_remove_empty,
            inclusive=False,
            min_size=family.rpn_min_size,
            score_threshold=family.rpn_score_threshold,
        ),
    )


def _box_head(
    parts: GraphParts, family: FasterRCNNFPN, levels: list[str], proposals: str
) -> tuple[str, str]:
    """RoIAlign, convolutions, fully connected layers and predictors: class logits and deltas."""
    align = _roi_align(family, family.roi_size, family.roi_sampling_ratio)
    x = parts.add("rois", (*levels, proposals), align)
    for i in range(family.head_convs):
        x = parts.conv(
            f"box.conv{i}",
            x,
            family.fpn_channels,
            3,
            1,
            (1, 1),
            activation="relu",
            norm=True,
            prunable=True,
        )
    kernel = family.roi_size  # the first fully connected layer reads all cells of a RoI
    for i in range(family.head_layers):
        x = parts.conv(
            f"box.fc{i}",
            x,
            family.head_channels,
            kernel,
            activation="relu",
            linear=True,
            prunable=True,
        )
        kernel = 1
    classes = family.num_classes
    logits = parts.conv("box.logits", x, classes + 1, linear=True)
    deltas = parts.conv("box.deltas", x, 4 * (classes + family.background_deltas), linear=True)
    return logits, deltas


def _mask_head(parts: GraphParts, family: FasterRCNNFPN, levels: list[str], rows: str) -> None:
    """RoIAlign of the detections, and the mask head."""
    align = _roi_align(family, family.mask_roi_size, family.mask_roi_sampling_ratio)
    x = parts.add("mask.rois", (*levels, rows), align)
    head = MaskHead(
        channels=family.fpn_channels,
        convs=family.mask_convs,
        norm=family.mask_norm,
        pasting=family.mask_pasting,
    )
    head.build(parts, x, rows, family.num_classes, family.background)
