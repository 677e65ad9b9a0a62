"""MobileNetV3-Large without its classifier, as a backbone.

Source of the structure: Howard et al., arXiv 1905.02244, table 1; torchvision's channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from .graph import Activation, Mean, Multiply
from .resnet import GraphParts


@dataclass(frozen=True, slots=True)
class InvertedResidual:
    """One block: a 1x1 convolution to more channels, a depthwise one, a 1x1 to fewer.

    Attributes:
        kernel: of the depthwise convolution.
        expanded, out: channels inside and at the end.
        excite: channels are weighted by squeeze and excitation.
        activation: inside.
        stride: of the depthwise convolution.
    """

    kernel: int
    expanded: int
    out: int
    excite: bool
    activation: Activation
    stride: int = 1

    @property
    def squeezed(self) -> int:
        """Channels of squeeze and excitation: a quarter, rounded to a multiple of 8 that is at
        least 90 % of it."""
        quarter = self.expanded // 4
        rounded = max(8, (quarter + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * quarter else rounded


_LARGE = (
    InvertedResidual(3, 16, 16, False, "relu"),
    InvertedResidual(3, 64, 24, False, "relu", 2),
    InvertedResidual(3, 72, 24, False, "relu"),
    InvertedResidual(5, 72, 40, True, "relu", 2),
    InvertedResidual(5, 120, 40, True, "relu"),
    InvertedResidual(5, 120, 40, True, "relu"),
    InvertedResidual(3, 240, 80, False, "hardswish", 2),
    InvertedResidual(3, 200, 80, False, "hardswish"),
    InvertedResidual(3, 184, 80, False, "hardswish"),
    InvertedResidual(3, 184, 80, False, "hardswish"),
    InvertedResidual(3, 480, 112, True, "hardswish"),
    InvertedResidual(3, 672, 112, True, "hardswish"),
    InvertedResidual(5, 672, 160, True, "hardswish", 2),
    InvertedResidual(5, 960, 160, True, "hardswish"),
    InvertedResidual(5, 960, 160, True, "hardswish"),
)


@dataclass(frozen=True, slots=True)
class MobileNetV3:
    """MobileNetV3-Large.

    Attributes:
        stem_channels: of the first convolution.
        blocks: the blocks after it.
        last_channels: of the last convolution.

    Pruned by default are the 1x1 convolutions but those of squeeze and excitation, which take no
    time.
    """

    stem_channels: int = 16
    blocks: tuple[InvertedResidual, ...] = _LARGE
    last_channels: int = 960

    def build(self, parts: GraphParts, source: str) -> list[str]:
        """Adds its operations; returns the names of two outputs, both of stride 32: of the last
        block that has a stride, and of the last convolution."""
        x = parts.conv(
            "stem.conv",
            source,
            self.stem_channels,
            3,
            2,
            (1, 1),
            activation="hardswish",
            norm=True,
        )
        channels, strided = self.stem_channels, x
        for i, block in enumerate(self.blocks):
            x = _inverted_residual(parts, f"block{i}", x, channels, block)
            channels = block.out
            strided = x if block.stride > 1 else strided
        last = parts.conv(
            "last.conv", x, self.last_channels, activation="hardswish", norm=True, prunable=True
        )
        return [strided, last]


def _inverted_residual(
    parts: GraphParts, name: str, source: str, channels: int, block: InvertedResidual
) -> str:
    x = source
    if block.expanded != channels:
        x = parts.conv(
            f"{name}.expand",
            x,
            block.expanded,
            activation=block.activation,
            norm=True,
            prunable=True,
        )
    side = block.kernel // 2
    x = parts.conv(
        f"{name}.depthwise",
        x,
        block.expanded,
        block.kernel,
        block.stride,
        (side, side),
        groups=block.expanded,
        activation=block.activation,
        norm=True,
    )
    if block.excite:
        factors = parts.add(f"{name}.mean", (x,), Mean())
        factors = parts.conv(f"{name}.squeeze", factors, block.squeezed, activation="relu")
        factors = parts.conv(f"{name}.excite", factors, block.expanded, activation="hardsigmoid")
        x = parts.add(f"{name}.multiply", (x, factors), Multiply())
    residual = source if block.stride == 1 and channels == block.out else None
    return parts.conv(f"{name}.project", x, block.out, residual=residual, norm=True, prunable=True)
