"""A tiny Faster R-CNN with a Feature Pyramid Network, of the tiny model's data and backbone."""

from __future__ import annotations

from typing import Any

from helpers.tiny_training import NAMES, TINY
from sparsedet.model.detector_config import DetectorConfig
from sparsedet.model.faster_rcnn import FasterRCNNFPN, build_faster_rcnn_fpn
from sparsedet.model.fpn import rounded_cell_anchors
from sparsedet.model.resnet import ResNet

BACKBONE = ResNet(
    blocks=TINY.blocks,
    stem_channels=TINY.stem_channels,
    bottleneck_channels=TINY.bottleneck_channels,
    stage_channels=TINY.stage_channels,
    stride_in=TINY.stride_in,
    pool_padding=TINY.pool_padding,
)


def tiny_fpn(resize: Any = "letterbox", **changes: Any) -> DetectorConfig:
    """Args: changes: fields of `FasterRCNNFPN`."""
    fields: dict[str, Any] = {
        "mean": TINY.pixel_mean,
        "std": (57.0, 57.0, 57.0),
        "backbone": BACKBONE,
        "fpn_channels": 16,
        "head_channels": 32,
        "cell_anchors": rounded_cell_anchors([[8], [16], [32], [64], [128]]),
        "proposals": 40,
        "rpn_min_size": 1e-3,
        "roi_canonical_size": 56.0,
        "num_classes": 3,
        "max_detections": 20,
        **changes,
    }
    return DetectorConfig(
        name="tiny-fpn",
        graph=build_faster_rcnn_fpn(FasterRCNNFPN(**fields), (64, 96)),
        resize=resize,
        min_size=64,
        max_size=128,
        class_names=NAMES,
        category_ids=(3, 5, 8),
    )
