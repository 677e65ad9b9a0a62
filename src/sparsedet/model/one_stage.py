"""The graphs of RetinaNet and FCOS: a pyramid, and the same towers of convolutions on each level.

Source of the structure: Lin et al., arXiv 1708.02002; Tian et al., arXiv 2006.09214; torchvision
and Detectron2, whose differences are fields of `OneStage`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .fpn import pyramid
from .graph import (
    IMAGE,
    Activation,
    CellAnchors,
    FcosOutput,
    Graph,
    GroupNorm,
    Normalise,
    RetinaNetOutput,
)
from .resnet import RESNET_50, GraphParts, ResNet


@dataclass(frozen=True, slots=True, kw_only=True)
class OneStage:
    """A RetinaNet or FCOS with five levels, P3 to P7.

    Attributes:
        mean, std: of pixels, BGR, 0..255.
        backbone: its last three outputs go into the pyramid.
        eps: of batch norms.
        top: what the sixth level is made of: the fifth ("output") or the backbone ("source").
        channels: of all levels and towers.
        tower: convolutions before the predictors.
        tower_groups: of the group norm after each of them; 0: none.
        cell_anchors: of RetinaNet; (): it is an FCOS.
        strides, box_weights, delta_clamp: of RetinaNet's anchors and deltas, or FCOS' points.
        sizes: of FCOS, pixels in one unit of distance.
        num_classes, pre_nms, score_threshold, nms_threshold, max_detections: of the output.
        clip_first: of RetinaNet's output.

    The class predictor is pruned by default: it has half the work of a tower.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    backbone: ResNet = RESNET_50
    eps: float = 1e-5
    top: Literal["output", "source"] = "output"
    channels: int = 256
    tower: int = 4
    tower_groups: int = 0
    cell_anchors: CellAnchors = ()
    strides: tuple[int, ...] = (0, 0, 0, 0, 0)
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    delta_clamp: float = math.log(1000 / 16)
    sizes: tuple[float, ...] = ()
    num_classes: int = 91
    pre_nms: int = 1000
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 300
    clip_first: bool = True


def build_one_stage(family: OneStage, input_size: tuple[int, int]) -> Graph:
    """The graph for a network input of (height, width) pixels.

    Raises:
        InputError: the network input is too small for the network.
    """
    parts = GraphParts(family.eps)
    x = parts.add("normalise", (IMAGE,), Normalise(family.mean, family.std))
    sources = family.backbone.build(parts, x)[-3:]
    levels = pyramid(parts, sources, family.channels, 3, top=family.top)
    anchors = [len(cell) for cell in family.cell_anchors] or [1] * len(levels)
    of_class, of_box = (_towers(parts, family, name, levels) for name in ("class", "box"))
    logits = [
        _predictor(parts, "class.logits", level, x, n * family.num_classes, prunable=True)
        for level, (x, n) in enumerate(zip(of_class, anchors, strict=True), start=3)
    ]
    last: Activation = "none" if family.cell_anchors else "relu"
    deltas = [
        _predictor(parts, "box.deltas", level, x, 4 * n, activation=last)
        for level, (x, n) in enumerate(zip(of_box, anchors, strict=True), start=3)
    ]
    output: RetinaNetOutput | FcosOutput
    if family.cell_anchors:
        inputs = (*logits, *deltas, IMAGE)
        output = RetinaNetOutput(
            num_classes=family.num_classes,
            cell_anchors=family.cell_anchors,
            strides=family.strides,
            box_weights=family.box_weights,
            delta_clamp=family.delta_clamp,
            pre_nms=family.pre_nms,
            score_threshold=family.score_threshold,
            nms_threshold=family.nms_threshold,
            max_detections=family.max_detections,
            clip_first=family.clip_first,
        )
    else:
        centerness = [
            _predictor(parts, "box.centerness", level, x, 1)
            for level, x in enumerate(of_box, start=3)
        ]
        inputs = (*logits, *deltas, *centerness, IMAGE)
        output = FcosOutput(
            num_classes=family.num_classes,
            sizes=family.sizes,
            strides=family.strides,
            pre_nms=family.pre_nms,
            score_threshold=family.score_threshold,
            nms_threshold=family.nms_threshold,
            max_detections=family.max_detections,
        )
    parts.add("detections", inputs, output)
    return parts.graph(input_size)


def _towers(parts: GraphParts, family: OneStage, name: str, levels: list[str]) -> list[str]:
    """The convolutions before the predictors, the same layers on each level."""
    found = []
    for level, x in enumerate(levels, start=3):
        for i in range(family.tower):
            layer, groups = f"{name}.conv{i}", family.tower_groups
            x = parts.conv(
                f"{layer}.p{level}",
                x,
                family.channels,
                3,
                1,
                (1, 1),
                activation="none" if groups else "relu",
                prunable=True,
                layer=layer,
            )
            if groups:
                norm = GroupNorm(f"{name}.norm{i}", groups, activation="relu")
                x = parts.add(f"{name}.norm{i}.p{level}", (x,), norm)
        found.append(x)
    return found


def _predictor(
    parts: GraphParts,
    layer: str,
    level: int,
    source: str,
    channels: int,
    *,
    activation: Activation = "none",
    prunable: bool = False,
) -> str:
    return parts.conv(
        f"{layer}.p{level}",
        source,
        channels,
        3,
        1,
        (1, 1),
        activation=activation,
        prunable=prunable,
        layer=layer,
    )
