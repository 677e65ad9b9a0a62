"""The graph of a Faster R-CNN with a C4 backbone: res5 runs once per RoI."""

from __future__ import annotations

from typing import Literal

from ..errors import InputError
from . import boxes
from .config import ModelConfig
from .graph import (
    IMAGE,
    Attributes,
    Conv,
    DetectionOutput,
    Graph,
    MaxPool,
    Mean,
    Normalise,
    Operation,
    Padding,
    Proposals,
    RoiAlign,
    Shape,
)


def build_graph(config: ModelConfig, input_size: tuple[int, int] | None = None) -> Graph:
    """The graph of `config`.

    Args:
        config: the model's configuration.
        input_size: (height, width) in pixels; default: that of the configuration.

    Raises:
        InputError: the network input is too small for the network.
    """
    size = input_size or (config.input_height, config.input_width)
    if min(size) < 16:
        raise InputError(f"network input is {size[0]}x{size[1]} pixels, expected at least 16x16")
    operations: list[Operation] = []

    def add(name: str, inputs: tuple[str, ...], attributes: Attributes) -> str:
        operations.append(Operation(name, inputs, attributes))
        return name

    def conv(
        name: str,
        source: str,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        *,
        relu: bool = False,
        residual: str | None = None,
        linear: bool = False,
        norm: bool = False,
        prunable: bool = False,
    ) -> str:
        inputs = (source,) if residual is None else (source, residual)
        activation: Literal["none", "relu"] = "relu" if relu else "none"
        sides: Padding = (padding[0], padding[0], padding[1], padding[1])
        attributes = Conv(
            out,
            (kernel, kernel),
            (name,),
            stride,
            sides,
            activation=activation,
            linear=linear,
            norm=norm,
            eps=config.batch_norm_eps,
            prunable=prunable,
        )
        return add(name, inputs, attributes)

    def stage(number: int, source: str, stride: int) -> str:
        """Residual stage res<number> of bottlenecks; returns the name of its output."""
        width = config.bottleneck_channels[number - 2]
        out = config.stage_channels[number - 2]
        for block in range(config.blocks[number - 2]):
            name = f"res{number}.{block}"
            step = stride if block == 0 else 1
            first, second = (step, 1) if config.stride_in == "conv1" else (1, step)
            pad1 = config.stride_conv1_padding if first > 1 else (0, 0)
            pad2 = config.stride_conv2_padding if second > 1 else (1, 1)
            x = conv(
                f"{name}.conv1", source, width, 1, first, pad1, relu=True, norm=True, prunable=True
            )
            x = conv(
                f"{name}.conv2", x, width, 3, second, pad2, relu=True, norm=True, prunable=True
            )
            residual = source
            if block == 0:
                pad = config.stride_conv1_padding if step > 1 else (0, 0)
                residual = conv(
                    f"{name}.shortcut", source, out, 1, step, pad, norm=True, prunable=True
                )
            source = conv(
                f"{name}.conv3", x, out, relu=True, residual=residual, norm=True, prunable=True
            )
        return source

    x = add("normalise", (IMAGE,), Normalise(config.pixel_mean, config.pixel_std))
    x = conv("stem.conv", x, config.stem_channels, 7, 2, config.stem_padding, relu=True, norm=True)
    before, after = config.pool_padding
    x = add("stem.pool", (x,), MaxPool(3, 2, (before, before, after, after)))
    for number, stride in ((2, 1), (3, 2), (4, 2)):
        x = stage(number, x, stride)
    features = x

    anchors = config.anchors_per_cell
    x = conv("rpn.conv", features, config.rpn_channels, 3, 1, (1, 1), relu=True, prunable=True)
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
    add(
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
    return Graph(Shape("image", 3, *size), tuple(operations))
