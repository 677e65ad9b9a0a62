"""The layer table: every operation with weights, in order of execution, with shapes and cost.

Engine, torch model, importers, exporters, `info` and benchmarks read it. It is not the whole
network: RoIAlign, the mean over a RoI, proposals and detections are in no table.

Glossary: H, W are rows and columns; a MAC is one multiply-accumulate (2 FLOPs). Layers of the
component "roi" run once per RoI, all others once per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from .config import ModelConfig

Component = Literal["backbone", "rpn", "roi"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution, fully connected layer (kernel 1 on a 1x1 feature map) or max pooling.

    Attributes:
        name: name of the layer, of its output, and prefix of its tensors (`NAME.weight`).
        source: name of the layer whose output it reads; "input" is the network input, "rois"
            are the pooled RoIs.
        residual: name of the layer whose output is added before the ReLU, or None.
        padding: (before, after) on both axes; a negative `after` drops rows and columns.
        in_size, out_size: (H, W).
        norm: batch norm follows in training; for inference it is folded.
        prunable: pruned by default; stem and predictors are not.
    """

    name: str
    component: Component
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
        """Last rows and columns to cut off before the layer, where its padding is negative.

        For runtimes whose convolutions have no negative padding. Mostly 0, because a window of
        stride 2 on an even size never reads the last row.
        """
        before, after = self.padding
        whole = tuple(output_length(n, self.kernel, self.stride, (before, 0)) for n in self.in_size)
        return -after if after < 0 and whole != self.out_size else 0

    @property
    def macs(self) -> int:
        """Dense MACs per image (per RoI for the component "roi"), taps in the padding included."""
        return self.weights * self.out_size[0] * self.out_size[1]


@dataclass(frozen=True)
class Network:
    """The layer table of a configuration for one network input size."""

    config: ModelConfig
    layers: tuple[Layer, ...]
    feature_size: tuple[int, int]  # (Hf, Wf) of the stride-16 feature map

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @property
    def weighted(self) -> tuple[Layer, ...]:
        """The layers that have weights."""
        return tuple(layer for layer in self.layers if layer.weights)

    def of_component(self, component: Component) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.component == component)

    @property
    def features(self) -> str:
        """Name of the stride-16 feature map, which the RPN and RoIAlign read."""
        return f"res4.{self.config.blocks[2] - 1}.conv3"

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole network, batch norm folded."""
        return sum(layer.parameters for layer in self.layers)

    def macs(self, rois: int) -> int:
        """Dense MACs of one image with that number of RoIs."""
        return sum(layer.macs * (rois if layer.component == "roi" else 1) for layer in self.layers)

    def flops(self, rois: int) -> int:
        """FLOPs of convolutions and fully connected layers, 2 per MAC."""
        return 2 * self.macs(rois)


def output_length(length: int, kernel: int, stride: int, padding: tuple[int, int]) -> int:
    """Rows (or columns) of a window operation's output for `length` rows of input."""
    return (length + padding[0] + padding[1] - kernel) // stride + 1
