"""The mask head of a Mask R-CNN: from the RoIs of detections to one mask for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .graph import DepthToSpace, MaskOutput, Pasting
from .record import Record
from .resnet import GraphParts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class MaskHead(Record):
    """Convolutions, twice the size, one mask for each class.

    Attributes:
        channels: of the convolutions, and of the RoIs at twice their size.
        convs: 3x3 convolutions before that.
        norm: they have batch norms, and no bias before them.
        pasting: of `MaskOutput`.
    """

    channels: int
    convs: int = 0
    norm: bool = False
    pasting: Pasting = "whole"

    def build(
        self,
        parts: GraphParts,
        source: str,
        rows: str,
        num_classes: int,
        background: Literal["first", "last"],
    ) -> str:
        """Add its operations; returns the name of the masks.

        Args:
            source: the RoIs of the rows.
            num_classes, background: of `DetectionOutput`. A last background has no mask.
        """
        x = source
        for i in range(self.convs):
            x = parts.conv(
                f"mask.conv{i}",
                x,
                self.channels,
                3,
                1,
                (1, 1),
                activation="relu",
                norm=self.norm,
                prunable=True,
            )
        # A transposed convolution of 2x2 and stride 2 is a 1x1 with four outputs for each cell.
        x = parts.conv("mask.upsample", x, 4 * self.channels, activation="relu", prunable=True)
        x = parts.add("mask.cells", (x,), DepthToSpace(2))
        first = background == "first"
        x = parts.conv("mask.logits", x, num_classes + first)
        return parts.add("masks", (x, rows), MaskOutput(first, self.pasting))
