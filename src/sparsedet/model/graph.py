"""Configuration -> the layer table: the one description of the architecture.

Read by the engine, the torch reference, importers, exporters, `info` and the benchmarks.
It names every operation with weights, in order of execution, with its input, shapes and
cost. It holds no weights and runs nothing.

Glossary: H, W are rows and columns; a MAC is one multiply-accumulate (2 FLOPs); layers of
`part` "roi" run once for each region of interest, all others once for each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..errors import InputError
from .config import ModelConfig

Part = Literal["backbone", "rpn", "roi"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution, fully connected layer (kernel 1 on a 1x1 map) or max pooling.

    Attributes:
        name: also the name of its output and the prefix of its tensors (`NAME.weight`).
        source: name of the layer whose output it reads; "canvas" and "rois" are the inputs.
        residual: name of the layer whose output is added before the ReLU, or None.
        padding: (before, after) on both axes; a negative `after` drops rows and columns.
        in_size, out_size: (H, W).
        norm: batch norm follows in training (folded into weight and bias for inference).
        prunable: may be made sparse by default (stem and predictors stay dense).
    """

    name: str
    part: Part
    source: str
    kind: Literal["conv", "linear", "maxpool"]
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: tuple[int, int]
    relu: bool
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    residual: str | None = None
    norm: bool = False
    prunable: bool = False

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in, k, k), (out, in) for a fully connected layer, () for pooling."""
        if self.kind == "maxpool":
            return ()
        if self.kind == "linear":
            return (self.out_channels, self.in_channels)
        return (self.out_channels, self.in_channels, self.kernel, self.kernel)

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        if self.kind == "maxpool":
            return 0
        return self.out_channels * self.in_channels * self.kernel**2

    @property
    def parameters(self) -> int:
        """Weights and biases, batch norm folded."""
        return self.weights + self.out_channels if self.weights else 0

    @property
    def crop(self) -> int:
        """Last rows and columns that a negative padding hides from a window that would read them.

        For runtimes whose convolutions take no negative padding: cut these off first. (Mostly 0:
        a stride-2 window on an even size never reads the last row.)
        """
        before, after = self.padding
        whole = tuple(output_length(n, self.kernel, self.stride, (before, 0)) for n in self.in_size)
        return -after if after < 0 and whole != self.out_size else 0

    @property
    def macs(self) -> int:
        """Dense MACs of one image (or of one region for part "roi"), padding taps counted."""
        return self.weights * self.out_size[0] * self.out_size[1]


@dataclass(frozen=True)
class Network:
    """The layer table of a configuration for one canvas size."""

    config: ModelConfig
    layers: tuple[Layer, ...]
    feature_size: tuple[int, int]  # (Hf, Wf) of the stride-16 map

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @property
    def weighted(self) -> tuple[Layer, ...]:
        """The layers that have weights."""
        return tuple(layer for layer in self.layers if layer.weights)

    def part(self, part: Part) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.part == part)

    @property
    def features(self) -> str:
        """Name of the stride-16 map that both the RPN and the regions read."""
        return f"res4.{self.config.blocks[2] - 1}.conv3"

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole network, batch norm folded."""
        return sum(layer.parameters for layer in self.layers)

    def macs(self, rois: int) -> int:
        """Dense MACs of one image with that many regions."""
        return sum(layer.macs * (rois if layer.part == "roi" else 1) for layer in self.layers)

    def flops(self, rois: int) -> int:
        """FLOPs by convolutions and fully connected layers, 2 a MAC."""
        return 2 * self.macs(rois)


def output_length(length: int, kernel: int, stride: int, padding: tuple[int, int]) -> int:
    """Rows (or columns) that a window operation leaves of `length`."""
    return (length + padding[0] + padding[1] - kernel) // stride + 1


def build_network(config: ModelConfig, canvas: tuple[int, int] | None = None) -> Network:
    """The layer table of `config`.

    Args:
        config: the model.
        canvas: (height, width) in pixels; default: the configuration's own canvas.

    Raises:
        InputError: the canvas is too small for the network.
    """
    layers: list[Layer] = []
    size = canvas or (config.canvas_height, config.canvas_width)
    if min(size) < 16:
        raise InputError(f"canvas is {size[0]}x{size[1]} pixels, expected at least 16x16")
    channels = {"canvas": 3}
    sizes = {"canvas": size}

    def add(
        name: str, part: Part, source: str, out: int, kernel: int, stride: int = 1,
        padding: tuple[int, int] = (0, 0), *, relu: bool = False, residual: str | None = None,
        kind: Literal["conv", "linear", "maxpool"] = "conv", norm: bool = False,
        prunable: bool = False,
    ) -> str:  # fmt: skip
        in_h, in_w = sizes[source]
        out_size = (
            output_length(in_h, kernel, stride, padding),
            output_length(in_w, kernel, stride, padding),
        )
        if min(out_size) < 1:
            raise InputError(f"canvas {size[0]}x{size[1]} is too small: {name} would be empty")
        layers.append(
            Layer(name, part, source, kind, channels[source], out, kernel, stride, padding, relu,
                  (in_h, in_w), out_size, residual, norm, prunable)
        )  # fmt: skip
        channels[name], sizes[name] = out, out_size
        return name

    def stage(number: int, part: Part, source: str, stride: int) -> str:
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
            conv1 = add(f"{name}.conv1", part, source, width, 1, first, conv1_padding,
                        relu=True, norm=True, prunable=True)  # fmt: skip
            conv2 = add(f"{name}.conv2", part, conv1, width, 3, second, conv2_padding,
                        relu=True, norm=True, prunable=True)  # fmt: skip
            residual = source
            if block == 0:
                shortcut_padding = config.stride_conv1_padding if step > 1 else (0, 0)
                residual = add(f"{name}.shortcut", part, source, out, 1, step, shortcut_padding,
                               norm=True, prunable=True)  # fmt: skip
            source = add(f"{name}.conv3", part, conv2, out, 1, relu=True, residual=residual,
                         norm=True, prunable=True)  # fmt: skip
        return source

    stem = add("stem.conv", "backbone", "canvas", config.stem_channels, 7, 2, config.stem_padding,
               relu=True, norm=True)  # fmt: skip
    x = add("stem.pool", "backbone", stem, config.stem_channels, 3, 2, config.pool_padding,
            kind="maxpool")  # fmt: skip
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
