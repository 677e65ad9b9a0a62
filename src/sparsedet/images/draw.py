"""Masks, boxes and labels drawn on an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .masks import Patch

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

# Okabe and Ito's palette without black (BGR), made for colour-blind readers: orange, sky blue,
# bluish green, yellow, blue, vermilion, reddish purple. Each has a lighter and a darker shade.
_PALETTE = (
    (0, 159, 230),
    (233, 180, 86),
    (115, 158, 0),
    (66, 228, 240),
    (178, 114, 0),
    (0, 94, 213),
    (167, 121, 204),
)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_MASK_SHARE = 0.45
"""Share of a mask's colour in its pixels; the rest is the image."""


def load_font() -> None:
    """Let OpenCV unpack its font: 30 ms at the first use in each thread."""
    cv2.getTextSize("a", _FONT, 1.0, 1)


def draw_boxes(
    image: U8,
    boxes: F32,
    class_labels: NDArray[Any],
    texts: Sequence[str],
    masks: Iterable[Patch] = (),
) -> U8:
    """An annotated copy of an image.

    Boxes and masks are coloured by class; line width and text size follow the size of the image.
    Where detections overlap, the better one is on top; boxes are on top of masks. Labels avoid each
    other as far as there is room.

    Args:
        image: (H, W, 3) uint8 BGR.
        boxes: (N, 4) xyxy pixels, best first.
        class_labels: (N,) contiguous labels 1..K; they choose the colours.
        texts: N labels, one beside each box.
        masks: of the N detections, or none.
    """
    out = np.array(image, order="C")
    colours = [_colour(label) for label in class_labels]
    _draw_masks(out, colours, masks)
    height, width = image.shape[:2]
    extent = float(np.sqrt(height * width))
    line = max(1, round(extent / 260))
    taken = np.zeros((0, 4), dtype=np.int64)
    labels = []
    for text, box in zip(texts, boxes, strict=True):
        label = _Label.fitting(text, extent, width)
        at = label.place(box, taken, height, width, line)
        taken = np.vstack([taken, at])
        labels.append((label, at))
    for colour, box in reversed(list(zip(colours, boxes, strict=True))):
        x0, y0 = np.floor(box[:2]).astype(int).tolist()
        x1, y1 = np.ceil(box[2:]).astype(int).tolist()
        corners = ((x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)))  # the last pixel inside
        if line > 1:  # a rim keeps the box visible on a background of its colour
            cv2.rectangle(out, *corners, _BLACK, line + 2)
        cv2.rectangle(out, *corners, colour, line)
    for colour, (label, at) in reversed(list(zip(colours, labels, strict=True))):
        label.draw(out, at, colour)
    return out


def _draw_masks(out: U8, colours: Sequence[tuple[int, int, int]], masks: Iterable[Patch]) -> None:
    """Blend each pixel with the colour of the best mask around it, and line the masks' edges."""
    free = np.ones(out.shape[:2], bool)
    line = max(1, round(float(np.sqrt(free.size)) / 520))
    for colour, patch in zip(colours, masks, strict=False):
        at = patch.place
        inside = patch.inside & free[at]
        if not inside.any():
            continue
        part = out[at]
        tint = np.full_like(part, colour)
        part[inside] = cv2.addWeighted(part, 1 - _MASK_SHARE, tint, _MASK_SHARE, 0)[inside]
        edge = inside.astype(np.uint8)
        inner = cv2.erode(edge, np.ones((3, 3), np.uint8), iterations=line)
        part[edge > inner] = colour
        free[at] &= ~inside


@dataclass(frozen=True, slots=True)
class _Label:
    """A line of text on a filled background; lengths in pixels."""

    text: str
    scale: float
    thickness: int
    width: int
    height: int
    padding: int
    baseline: int

    @classmethod
    def fitting(cls, text: str, extent: float, limit: int) -> _Label:
        """A label for an image of `extent` (root of its area), at most `limit` pixels wide."""
        (full_width, full_height), _ = cv2.getTextSize(text, _FONT, 1.0, 1)
        pixels = max(9.0, extent / 44)
        padding = max(1, round(pixels / 4))
        room = max(1, limit - 2 * padding)
        scale = max(0.2, min(pixels / full_height, room / full_width))
        thickness = max(1, round(0.6 * scale))
        (width, height), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
        return cls(
            text,
            scale,
            thickness,
            width + 2 * padding,
            height + baseline + padding,
            padding,
            baseline,
        )

    def place(
        self, box: F32, taken: NDArray[np.int64], height: int, width: int, line: int
    ) -> NDArray[np.int64]:
        """The position (4,) xyxy inside the image that hides least of the labels in `taken`."""
        edge = line // 2 + 1
        x0, y0, x1, y1 = (int(v) for v in box)
        left, right = x0 - edge, x1 + edge - self.width
        best, least = np.zeros(4, dtype=np.int64), np.inf
        # In order of preference: on top of the box, inside at the top, inside at the bottom,
        # below; each at the left end and then at the right end.
        for y in (y0 - self.height, y0, y1 - self.height, y1):
            for x in (left, right):
                corner = (max(0, min(x, width - self.width)), max(0, min(y, height - self.height)))
                at = np.array([*corner, corner[0] + self.width, corner[1] + self.height])
                common = np.minimum(at[2:], taken[:, 2:]) - np.maximum(at[:2], taken[:, :2])
                hidden = np.maximum(common, 0).prod(axis=1).sum()
                if hidden < least:
                    best, least = at, hidden
        return best

    def draw(self, out: U8, at: NDArray[np.int64], colour: tuple[int, int, int]) -> None:
        x0, y0, x1, y1 = at.tolist()
        cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), colour, cv2.FILLED)
        blue, green, red = colour
        ink = _BLACK if 0.114 * blue + 0.587 * green + 0.299 * red > 110 else _WHITE
        origin = (x0 + self.padding, y1 - self.baseline - self.padding // 2)
        cv2.putText(out, self.text, origin, _FONT, self.scale, ink, self.thickness, cv2.LINE_AA)


def _colour(label: int) -> tuple[int, int, int]:
    """The colour (BGR) of a label, always the same.

    The 7 hues in 3 shades make 21 colours. Label 1, COCO's person and by far the most frequent
    class, shares its colour with no other; 20 neighbouring labels never share one.
    """
    index = 0 if label == 1 else 1 + (int(label) - 2) % (3 * len(_PALETTE) - 1)
    shade, hue = divmod(index, len(_PALETTE))
    towards, share = ((0, 0.0), (255, 0.5), (0, 0.4))[shade]
    blue, green, red = (round(c + (towards - c) * share) for c in _PALETTE[hue])
    return blue, green, red
