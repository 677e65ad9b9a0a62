"""The layer table of a Faster R-CNN with a C4 backbone: res5 runs once per RoI."""

from __future__ import annotations

from typing import Literal

from ..errors import InputError
from .config import ModelConfig
from .graph import Component, Layer, Network, output_length


def build_network(config: ModelConfig, input_size: tuple[int, int] | None = None) -> Network:
    """The layer table of `config`.

    Args:
        config: the model's configuration.
        input_size: (height, width) in pixels; default: that of the configuration.

    Raises:
        InputError: the network input is too small for the network.
    """
    layers: list[Layer] = []
    size = input_size or (config.input_height, config.input_width)
    if min(size) < 16:
        raise InputError(f"network input is {size[0]}x{size[1]} pixels, expected at least 16x16")
    channels = {"input": 3}
    sizes = {"input": size}

    def add(
        name: str,
        component: Component,
        source: str,
        out: int,
        kernel: int,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        *,
        relu: bool = False,
        residual: str | None = None,
        kind: Literal["conv", "linear", "maxpool"] = "conv",
        norm: bool = False,
        prunable: bool = False,
    ) -> str:
        in_h, in_w = sizes[source]
        out_size = (
            output_length(in_h, kernel, stride, padding),
            output_length(in_w, kernel, stride, padding),
        )
        if min(out_size) < 1:
            raise InputError(
                f"network input {size[0]}x{size[1]} is too small: {name} would be empty"
            )
        layers.append(
            Layer(
                name,
                component,
                source,
                kind,
                channels[source],
                out,
                kernel,
                stride,
                padding,
                relu,
                (in_h, in_w),
                out_size,
                residual,
                norm,
                prunable,
            )
        )
        channels[name], sizes[name] = out, out_size
        return name

    def stage(number: int, component: Component, source: str, stride: int) -> str:
        """Residual stage res<number> of bottlenecks; returns the name of its output."""
        width = config.bottleneck_channels[number - 2]
        out = config.stage_channels[number - 2]
        conv1_padding: tuple[int, int]
        for block in range(config.blocks[number - 2]):
            name = f"res{number}.{block}"
            step = stride if block == 0 else 1
            first, second = (step, 1) if config.stride_in == "conv1" else (1, step)
            conv1_padding = config.stride_conv1_padding if first > 1 else (0, 0)
            conv2_padding = config.stride_conv2_padding if second > 1 else (1, 1)
            conv1 = add(
                f"{name}.conv1",
                component,
                source,
                width,
                1,
                first,
                conv1_padding,
                relu=True,
                norm=True,
                prunable=True,
            )
            conv2 = add(
                f"{name}.conv2",
                component,
                conv1,
                width,
                3,
                second,
                conv2_padding,
                relu=True,
                norm=True,
                prunable=True,
            )
            residual = source
            if block == 0:
                shortcut_padding = config.stride_conv1_padding if step > 1 else (0, 0)
                residual = add(
                    f"{name}.shortcut",
                    component,
                    source,
                    out,
                    1,
                    step,
                    shortcut_padding,
                    norm=True,
                    prunable=True,
                )
            source = add(
                f"{name}.conv3",
                component,
                conv2,
                out,
                1,
                relu=True,
                residual=residual,
                norm=True,
                prunable=True,
            )
        return source

    stem = add(
        "stem.conv",
        "backbone",
        "input",
        config.stem_channels,
        7,
        2,
        config.stem_padding,
        relu=True,
        norm=True,
    )
    x = add(
        "stem.pool",
        "backbone",
        stem,
        config.stem_channels,
        3,
        2,
        config.pool_padding,
        kind="maxpool",
    )
    for number, stride in ((2, 1), (3, 2), (4, 2)):
        x = stage(number, "backbone", x, stride)
    feature_size = sizes[x]

    anchors = config.anchors_per_cell
    rpn = add("rpn.conv", "rpn", x, config.rpn_channels, 3, 1, (1, 1), relu=True, prunable=True)
    add("rpn.objectness", "rpn", rpn, anchors, 1)
    add("rpn.deltas", "rpn", rpn, 4 * anchors, 1)

    channels["rois"], sizes["rois"] = channels[x], (config.roi_size, config.roi_size)
    stage(5, "roi", "rois", 2)
    channels["pooled"], sizes["pooled"] = config.stage_channels[3], (1, 1)
    classes = config.num_classes
    add("box.logits", "roi", "pooled", classes + 1, 1, kind="linear")
    box_outputs = 4 * (classes + config.background_deltas)
    add("box.deltas", "roi", "pooled", box_outputs, 1, kind="linear")
    return Network(config, tuple(layers), feature_size)
