"""What is known of a value before the network runs: its domain and shape.

A value belongs to a domain: the image (the network input), a map (a feature map of the image), RoIs
(a feature map of each box), boxes, rows (detections) or masks (one of each row).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ...errors import InputError
from ..record import Record

Domain = Literal["image", "map", "rois", "boxes", "rows", "masks"]
Padding = tuple[int, int, int, int]
"""Top, left, bottom, right; a negative one drops rows or columns."""

IMAGE: Final = "image"
"""The name of the network input."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Shape(Record):
    """What is known of a value.

    Attributes:
        channels, height, width: of the image, a map or each RoI; boxes have 4 channels, rows
            7, masks 1.
        count: RoIs, boxes, rows or masks, at most.
    """

    domain: Domain
    channels: int
    height: int = 1
    width: int = 1
    count: int = 1

    @property
    def per_roi(self) -> bool:
        """Whether there is one for each RoI."""
        return self.domain == "rois"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def output_length(
    length: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int = 1
) -> int:
    """Rows (or columns) of a window operation's output; 0 if the window does not fit.

    Args:
        length: rows of the input.
        padding: rows of zeros before and after; negative: rows that are dropped.
    """
    room = length + padding[0] + padding[1] - (kernel - 1) * dilation - 1
    return max(room // stride + 1, 0)


def window(
    shape: Shape, kernel: tuple[int, int], stride: int, padding: Padding, dilation: int = 1
) -> tuple[int, int]:
    top, left, bottom, right = padding
    return (
        output_length(shape.height, kernel[0], stride, (top, bottom), dilation),
        output_length(shape.width, kernel[1], stride, (left, right), dilation),
    )


def expect(ok: bool, what: str) -> None:
    if not ok:
        raise InputError(what)
