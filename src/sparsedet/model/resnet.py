"""Parts of graphs that several families share: convolutions, residual stages, a whole ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .graph import Activation, Attributes, Conv, Graph, MaxPool, Operation, Padding, Shape
from .record import Record


def both(before: int, after: int) -> Padding:
    """The same padding on both axes."""
    return before, before, after, after


@dataclass
class GraphParts:
    """Operations, added one by one.

    Attributes:
        eps: of batch norms.
    """

    eps: float = 1e-5
    operations: list[Operation] = field(default_factory=list)

    def add(self, name: str, inputs: Sequence[str], attributes: Attributes) -> str:
        """Add an operation; returns its name."""
        self.operations.append(Operation(name, tuple(inputs), attributes))
        return name

    def conv(
        self,
        name: str,
        source: str,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        *,
        activation: Activation = "none",
        groups: int = 1,
        residual: str | None = None,
        linear: bool = False,
        norm: bool = False,
        prunable: bool = False,
        layer: str = "",
    ) -> str:
        """Add a convolution; returns its name.

        Args:
            padding: (before, after) on both axes.
            layer: the layer whose tensors it has; default: `name`.
        """
        inputs = (source,) if residual is None else (source, residual)
        attributes = Conv(
            out,
            (kernel, kernel),
            (layer or name,),
            stride,
            both(*padding),
            groups=groups,
            activation=activation,
            linear=linear,
            norm=norm,
            eps=self.eps,
            prunable=prunable,
        )
        return self.add(name, inputs, attributes)

    def stem(
        self, source: str, channels: int, padding: tuple[int, int], pool_padding: tuple[int, int]
    ) -> str:
        """A ResNet's 7x7 convolution of stride 2 and max pooling; returns its output's name."""
        x = self.conv("stem.conv", source, channels, 7, 2, padding, activation="relu", norm=True)
        return self.add("stem.pool", (x,), MaxPool(3, 2, both(*pool_padding)))

    def stage(
        self,
        name: str,
        source: str,
        blocks: int,
        width: int,
        out: int,
        stride: int,
        *,
        stride_in: Literal["conv1", "conv2"] = "conv2",
        conv1_padding: tuple[int, int] = (0, 0),
        conv2_padding: tuple[int, int] = (1, 1),
        layers: str = "",
    ) -> str:
        """A residual stage of bottlenecks; returns the name of its output.

        Args:
            width, out: channels inside and at the end of a block.
            stride: of the first block.
            stride_in: the convolution that has this stride.
            conv1_padding, conv2_padding: of a 1x1 and of a 3x3 with stride.
            layers: the stage whose tensors it has; default: `name`.
        """
        for number in range(blocks):
            block, layer = f"{name}.{number}", f"{layers or name}.{number}"
            step = stride if number == 0 else 1
            first, second = (step, 1) if stride_in == "conv1" else (1, step)
            pad1 = conv1_padding if first > 1 else (0, 0)
            pad2 = conv2_padding if second > 1 else (1, 1)
            x = self.conv(
                f"{block}.conv1",
                source,
                width,
                1,
                first,
                pad1,
                activation="relu",
                norm=True,
                prunable=True,
                layer=f"{layer}.conv1",
            )
            x = self.conv(
                f"{block}.conv2",
                x,
                width,
                3,
                second,
                pad2,
                activation="relu",
                norm=True,
                prunable=True,
                layer=f"{layer}.conv2",
            )
            residual = source
            if number == 0:
                pad = conv1_padding if step > 1 else (0, 0)
                residual = self.conv(
                    f"{block}.shortcut",
                    source,
                    out,
                    1,
                    step,
                    pad,
                    norm=True,
                    prunable=True,
                    layer=f"{layer}.shortcut",
                )
            source = self.conv(
                f"{block}.conv3",
                x,
                out,
                activation="relu",
                residual=residual,
                norm=True,
                prunable=True,
                layer=f"{layer}.conv3",
            )
        return source

    def graph(self, input_size: tuple[int, int]) -> Graph:
        """The graph of the operations."""
        return Graph(Shape("image", 3, *input_size), tuple(self.operations))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ResNet(Record):
    """A ResNet of bottlenecks without its classifier, as a backbone.

    Attributes:
        blocks, bottleneck_channels, stage_channels, stem_channels: of its stages and stem.
        stride_in: the convolution of a bottleneck that has the stride.
        pool_padding: (before, after) of the max pooling after the stem, on both axes.
    """

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    stem_channels: int = 64
    bottleneck_channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    stage_channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    stride_in: Literal["conv1", "conv2"] = "conv2"
    pool_padding: tuple[int, int] = (1, 1)

    def build(self, parts: GraphParts, source: str) -> list[str]:
        """Adds its operations; returns the names of the outputs of res2 .. res5."""
        x = parts.stem(source, self.stem_channels, (3, 3), self.pool_padding)
        stages = []
        for i, stride in enumerate((1, 2, 2, 2)):
            sizes = self.blocks[i], self.bottleneck_channels[i], self.stage_channels[i]
            x = parts.stage(f"res{i + 2}", x, *sizes, stride, stride_in=self.stride_in)
            stages.append(x)
        return stages


RESNET_50 = ResNet()
