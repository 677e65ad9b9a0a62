"""Presets: named model configurations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ..errors import UsageError
from .config import COCO_CATEGORY_IDS, COCO_NAMES, ModelConfig
from .detector_config import Config, DetectorConfig
from .faster_rcnn import FasterRCNNFPN, build_faster_rcnn_fpn
from .fpn import rounded_cell_anchors
from .resnet import ResNet

# The published network's form: TensorPack's arithmetic, 300 proposals at test.
_R101 = ModelConfig(name="r101-c4")


PRESETS: dict[str, ModelConfig] = {
    "r101-c4": _R101,
    "r50-c4": replace(_R101, name="r50-c4", blocks=(3, 4, 6, 3)),
    # Detectron2's COCO-Detection/faster_rcnn_R_101_C4_3x: MSRA weights (stride in the first 1x1,
    # BGR mean and no std), symmetric padding, background last and without box deltas.
    "r101-c4-detectron2": replace(
        _R101,
        name="r101-c4-detectron2",
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(1.0, 1.0, 1.0),
        stride_in="conv1",
        stem_padding=(3, 3),
        pool_padding=(1, 1),
        stride_conv1_padding=(0, 0),
        stride_conv2_padding=(1, 1),
        proposals=1000,
        rpn_remove_empty=True,
        delta_clamp=math.log(1000 / 16),
        roi_sampling_ratio=0,
        background="last",
        background_deltas=False,
    ),
    # The small default: a ResNet-50 at half bottleneck width. Its backbone's shape, pixel
    # statistics (BGR mean 104, 117, 123 and no std) and pooling window (Caffe's ceil mode, which
    # pads one row after and none before) are those of Yahoo's open_nsfw classifier.
    "r50half-c4": ModelConfig(
        name="r50half-c4",
        input_height=320,
        input_width=480,
        pixel_mean=(104.0, 117.0, 123.0),
        pixel_std=(1.0, 1.0, 1.0),
        blocks=(3, 4, 6, 3),
        bottleneck_channels=(32, 64, 128, 256),
        stage_channels=(128, 256, 512, 1024),
        stride_in="conv1",
        stem_padding=(3, 3),
        pool_padding=(0, 1),
        stride_conv1_padding=(0, 0),
        stride_conv2_padding=(1, 1),
        rpn_channels=512,
        anchor_sizes=(20.0, 40.0, 80.0, 160.0, 320.0),
        rpn_pre_nms=1000,
        proposals=100,
        rpn_remove_empty=True,
    ),
}
"""Named configurations of the C4 family. `r101-c4` is the published network."""


def preset(name: str) -> ModelConfig:
    """The C4 preset of that name.

    Raises:
        InputError: there is none; the message lists the names.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown model {name!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]


def _r50_fpn() -> DetectorConfig:
    """torchvision's fasterrcnn_resnet50_fpn, for COCO's 80 classes."""
    family = FasterRCNNFPN(
        mean=_R101.pixel_mean,
        std=_R101.pixel_std,
        cell_anchors=rounded_cell_anchors([[32], [64], [128], [256], [512]]),
        rpn_min_size=1e-3,
        num_classes=len(COCO_NAMES),
        min_size=1e-2,
    )
    return DetectorConfig(
        name="r50-fpn",
        graph=build_faster_rcnn_fpn(family, (800, 1344)),
        resize="shorter",
        class_names=COCO_NAMES,
        category_ids=COCO_CATEGORY_IDS,
    )


def _r50half_fpn() -> DetectorConfig:
    """The backbone of `r50half-c4`, its lengths half of torchvision's: anchors, canonical size of
    RoIs, channels of the pyramid and of the box head. Strides are fixed, for any network input."""
    c4 = PRESETS["r50half-c4"]
    family = FasterRCNNFPN(
        mean=c4.pixel_mean,
        std=c4.pixel_std,
        backbone=ResNet(
            blocks=c4.blocks,
            bottleneck_channels=c4.bottleneck_channels,
            stage_channels=c4.stage_channels,
            stride_in=c4.stride_in,
            pool_padding=c4.pool_padding,
        ),
        fpn_channels=128,
        head_channels=512,
        cell_anchors=rounded_cell_anchors([[16], [32], [64], [128], [256]]),
        strides=(4, 8, 16, 32, 64),
        proposals=200,
        rpn_min_size=1e-3,
        roi_sampling="aligned",
        roi_canonical_size=112.0,
        num_classes=len(COCO_NAMES),
    )
    return DetectorConfig(
        name="r50half-fpn",
        graph=build_faster_rcnn_fpn(family, (c4.input_height, c4.input_width)),
        class_names=COCO_NAMES,
        category_ids=COCO_CATEGORY_IDS,
    )


FPN_PRESETS: dict[str, Callable[[], DetectorConfig]] = {
    "r50-fpn": _r50_fpn,
    "r50half-fpn": _r50half_fpn,
}
"""Faster R-CNN with a Feature Pyramid Network, built when asked for."""


def detector_preset(name: str) -> Config:
    """The preset of that name, of either family.

    Raises:
        InputError: there is none; the message lists the names.
    """
    if name in FPN_PRESETS:
        return FPN_PRESETS[name]()
    if name not in PRESETS:
        names = ", ".join((*PRESETS, *FPN_PRESETS))
        raise UsageError(f"unknown model {name!r}; presets: {names}")
    return PRESETS[name]
