"""The graph of a Faster R-CNN or Mask R-CNN with a C4 backbone: res5 runs once per RoI.

A Mask R-CNN runs res5 again, with the same layers, on the RoIs of its detections: those operations
are called "mask.res5" and so on. Source: Detectron2, `Res5ROIHeads`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError
from . import boxes
from .config import ModelConfig
from .graph import IMAGE, DetectionOutput, Graph, Mean, Normalise, Proposals, RoiAlign
from .resnet import GraphParts

if TYPE_CHECKING:
    from .mask_head import MaskHead


def build_graph(
    config: ModelConfig,
    input_size: tuple[int, int] | None = None,
    masks: MaskHead | None = None,
) -> Graph:
    """The graph of `config`.

    Args:
        config: the model's configuration.
        input_size: (height, width) in pixels; default: that of the configuration.
        masks: of a Mask R-CNN.

    Raises:
        InputError: the network input is too small for the network.
    """
    size = input_size or (config.input_height, config.input_width)
    if min(size) < 16:
        raise InputError(f"network input is {size[0]}x{size[1]} pixels, expected at least 16x16")
    parts = GraphParts(config.batch_norm_eps)
    add, conv = parts.add, parts.conv

    def stage(number: int, source: str, stride: int, prefix: str = "") -> str:
        """Residual stage res<number>, by a name of its own if it runs again; its output's name."""
        return parts.stage(
            f"{prefix}res{number}",
            source,
            config.blocks[number - 2],
            config.bottleneck_channels[number - 2],
            config.stage_channels[number - 2],
            stride,
            stride_in=config.stride_in,
            conv1_padding=config.stride_conv1_padding,
            conv2_padding=config.stride_conv2_padding,
            layers=f"res{number}",
        )

    x = add("normalise", (IMAGE,), Normalise(config.pixel_mean, config.pixel_std))
    x = parts.stem(x, config.stem_channels, config.stem_padding, config.pool_padding)
    for number, stride in ((2, 1), (3, 2), (4, 2)):
        x = stage(number, x, stride)
    features = x

    anchors = config.anchors_per_cell
    x = conv(
        "rpn.conv", features, config.rpn_channels, 3, 1, (1, 1), activation="relu", prunable=True
    )
    objectness = conv("rpn.objectness", x, anchors)
    deltas = conv("rpn.deltas", x, 4 * anchors)
    cell_anchors = tuple(tuple(box) for box in boxes.cell_anchors(config).tolist())
    proposals = add(
        "proposals",
        (objectness, deltas, IMAGE),
        Proposals(
            cell_anchors=(cell_anchors,),
            strides=(config.anchor_stride,),
            box_weights=config.rpn_box_weights,
            delta_clamp=config.delta_clamp,
            pre_nms=config.rpn_pre_nms,
            count=config.proposals,
            nms_threshold=config.rpn_nms_threshold,
            remove_empty=config.rpn_remove_empty,
            inclusive=config.rpn_inclusive,
        ),
    )

    align = RoiAlign(
        scales=(1.0 / config.anchor_stride,),
        size=config.roi_size,
        sampling_ratio=config.roi_sampling_ratio,
        sampling=config.roi_sampling,
    )
    x = add("rois", (features, proposals), align)
    x = stage(5, x, 2)
    x = add("pooled", (x,), Mean())
    classes = config.num_classes
    logits = conv("box.logits", x, classes + 1, linear=True)
    deltas = conv("box.deltas", x, 4 * (classes + config.background_deltas), linear=True)
    rows = add(
        "detections",
        (logits, deltas, proposals, IMAGE),
        DetectionOutput(
            num_classes=classes,
            background=config.background,
            background_deltas=config.background_deltas,
            box_weights=config.box_weights,
            delta_clamp=config.delta_clamp,
            score_threshold=config.score_threshold,
            nms_threshold=config.nms_threshold,
            max_detections=config.max_detections,
        ),
    )
    if masks is not None:
        x = stage(5, add("mask.rois", (features, rows), align), 2, "mask.")
        masks.build(parts, x, rows, classes, config.background)
    return parts.graph(size)
