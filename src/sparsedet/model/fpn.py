"""The graph of a Faster R-CNN with a Feature Pyramid Network.

Source of the structure: Lin et al., arXiv 1612.03144; torchvision and Detectron2, whose differences
are fields of `FasterRCNNFPN`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .graph import (
    IMAGE,
    CellAnchors,
    DetectionOutput,
    Graph,
    MaxPool,
    Normalise,
    Proposals,
    Resize,
    RoiAlign,
)
from .resnet import GraphParts


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterRCNNFPN:
    """A Faster R-CNN with a ResNet and a Feature Pyramid Network of five levels.

    Attributes:
        mean, std: of pixels, BGR, 0..255.
        blocks, bottleneck_channels, stage_channels, stem_channels: of the ResNet.
        stride_in: the convolution of a bottleneck that has the stride.
        eps: of batch norms.
        fpn_channels: of all levels.
        fpn_norm: the pyramid's convolutions have batch norms, and no bias before them.
        rpn_convs: 3x3 convolutions before the RPN's predictors.
        head_convs, head_layers: 3x3 convolutions with batch norm and fully connected layers of the
            box head.
        head_channels: of the fully connected layers.
        cell_anchors, strides, pre_nms, proposals, rpn_nms_threshold, rpn_min_size: of `Proposals`.
        roi_size, roi_sampling_ratio, roi_sampling: of `RoiAlign`.
        num_classes and the following: of `DetectionOutput`.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    stem_channels: int = 64
    bottleneck_channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    stage_channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    stride_in: Literal["conv1", "conv2"] = "conv2"
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
    rpn_nms_threshold: float = 0.7
    rpn_min_size: float = 0.0
    roi_size: int = 7
    roi_sampling_ratio: int = 2
    roi_sampling: Literal["aligned", "legacy"] = "legacy"
    num_classes: int = 90
    background: Literal["first", "last"] = "first"
    background_deltas: bool = True
    delta_clamp: float = math.log(1000 / 16)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 0.0


def rounded_cell_anchors(
    sizes: tuple[float, ...], ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
) -> CellAnchors:
    """torchvision's anchors of the first cell of each level: one size a level, rounded."""
    levels = []
    for size in sizes:
        heights = np.sqrt(np.asarray(ratios, dtype=np.float32))
        widths = 1 / heights
        w, h = widths * np.float32(size), heights * np.float32(size)
        boxes = np.stack([-w, -h, w, h], axis=1) / 2
        levels.append(tuple(tuple(box) for box in np.round(boxes).tolist()))
    return tuple(levels)


def build_faster_rcnn_fpn(family: FasterRCNNFPN, input_size: tuple[int, int]) -> Graph:
    """The graph for a network input of (height, width) pixels.

    Raises:
        InputError: the network input is too small for the network.
    """
    parts = GraphParts(family.eps)
    add = parts.add
    x = add("normalise", (IMAGE,), Normalise(family.mean, family.std))
    x = parts.stem(x, family.stem_channels, (3, 3), (1, 1))
    stages = []
    for i, stride in enumerate((1, 2, 2, 2)):
        x = parts.stage(
            f"res{i + 2}",
            x,
            family.blocks[i],
            family.bottleneck_channels[i],
            family.stage_channels[i],
            stride,
            stride_in=family.stride_in,
        )
        stages.append(x)
    levels = _pyramid(parts, family, stages)
    proposals = _proposals(parts, family, levels)
    logits, deltas = _box_head(parts, family, levels[:4], proposals)
    add(
        "detections",
        (logits, deltas, proposals, IMAGE),
        DetectionOutput(
            num_classes=family.num_classes,
            background=family.background,
            background_deltas=family.background_deltas,
            box_weights=(10.0, 10.0, 5.0, 5.0),
            delta_clamp=family.delta_clamp,
            score_threshold=family.score_threshold,
            nms_threshold=family.nms_threshold,
            max_detections=family.max_detections,
            min_size=family.min_size,
        ),
    )
    return parts.graph(input_size)


def _pyramid(parts: GraphParts, family: FasterRCNNFPN, stages: list[str]) -> list[str]:
    """P2 .. P6: names of the maps, from the largest."""
    channels, norm = family.fpn_channels, family.fpn_norm
    last = ""
    found: list[str] = []
    for level in (5, 4, 3, 2):
        source = stages[level - 2]
        above = ""
        if last:
            # The lateral map has the size of the stage's: it is what the map above is resized to.
            above = parts.add(f"fpn.resize{level}", (last, source), Resize())
        lateral = f"fpn.lateral{level}"
        last = parts.conv(
            lateral, source, channels, norm=norm, residual=above or None, prunable=True
        )
        output = f"fpn.output{level}"
        found.insert(0, parts.conv(output, last, channels, 3, 1, (1, 1), norm=norm, prunable=True))
    found.append(parts.add("fpn.output6", (found[-1],), MaxPool(1, 2, (0, 0, 0, 0))))
    return found


def _proposals(parts: GraphParts, family: FasterRCNNFPN, levels: list[str]) -> str:
    """The RPN: the same layers on every level."""
    objectness: list[str] = []
    deltas: list[str] = []
    for level, source in enumerate(levels, start=2):
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
                relu=True,
                prunable=True,
                layer=layer,
            )
        anchors = len(family.cell_anchors[level - 2])
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
            box_weights=(1.0, 1.0, 1.0, 1.0),
            delta_clamp=family.delta_clamp,
            pre_nms=family.pre_nms,
            count=family.proposals,
            nms_threshold=family.rpn_nms_threshold,
            remove_empty=False,
            inclusive=False,
            min_size=family.rpn_min_size,
        ),
    )


def _box_head(
    parts: GraphParts, family: FasterRCNNFPN, levels: list[str], proposals: str
) -> tuple[str, str]:
    """RoIAlign, convolutions, fully connected layers and predictors: class logits and deltas."""
    x = parts.add(
        "rois",
        (*levels, proposals),
        RoiAlign(
            scales=tuple(1 / (4 << i) for i in range(len(levels))),
            size=family.roi_size,
            sampling_ratio=family.roi_sampling_ratio,
            sampling=family.roi_sampling,
        ),
    )
    for i in range(family.head_convs):
        x = parts.conv(
            f"box.conv{i}",
            x,
            family.fpn_channels,
            3,
            1,
            (1, 1),
            relu=True,
            norm=True,
            prunable=True,
        )
    kernel = family.roi_size  # the first fully connected layer reads all cells of a RoI
    for i in range(family.head_layers):
        x = parts.conv(
            f"box.fc{i}", x, family.head_channels, kernel, relu=True, linear=True, prunable=True
        )
        kernel = 1
    classes = family.num_classes
    logits = parts.conv("box.logits", x, classes + 1, linear=True)
    deltas = parts.conv("box.deltas", x, 4 * (classes + family.background_deltas), linear=True)
    return logits, deltas
