"""Presets: named model configurations."""

from __future__ import annotations

import math
from dataclasses import replace

from ..errors import UsageError
from .config import ModelConfig

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
"""Named configurations. `r101-c4` is the published network."""


def preset(name: str) -> ModelConfig:
    """The preset of that name.

    Raises:
        InputError: there is none; the message lists the names.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown model {name!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]
