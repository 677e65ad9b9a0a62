"""The Feature Pyramid Network: maps of equal channels, from the stages of a backbone.

Source of the structure: Lin et al., arXiv 1612.03144; RetinaNet's two levels above it, Lin et al.,
arXiv 1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .graph import Activate, CellAnchors, MaxPool, Resize
from .resnet import GraphParts


def pyramid(
    parts: GraphParts,
    sources: Sequence[str],
    channels: int,
    first_level: int,
    *,
    norm: bool = False,
    top: Literal["pool", "output", "source"] = "pool",
) -> list[str]:
    """Adds a pyramid; returns the names of its maps, from the largest.

    Args:
        sources: outputs of the backbone, from the largest.
        channels: of all maps.
        first_level: number of the largest map, for names.
        norm: its convolutions have batch norms, and no bias before them.
        top: what comes above the last map: "pool": every second cell of it; else two convolutions
            of stride 2, which begin with the last map ("output") or the last source ("source").
    """
    last = ""
    found: list[str] = []
    for index in range(len(sources) - 1, -1, -1):
        level, source = first_level + index, sources[index]
        above = ""
        if last:
            # The lateral map has the size of the stage's: it is what the map above is resized to.
            above = parts.add(f"fpn.resize{level}", (last, source), Resize())
        lateral = f"fpn.lateral{level}"
        last = parts.conv(
            lateral, source, channels, norm=norm, residual=above or None, prunable=True
        )
        output = f"fpn.output{level}"
        found.insert(0, parts.conv(output, last, channels, 3, 1, (1, 1), norm=norm, prunable=True))
    level = first_level + len(sources)
    if top == "pool":
        pool = MaxPool(1, 2, (0, 0, 0, 0))
        return [*found, parts.add(f"fpn.output{level}", (found[-1],), pool)]
    x = found[-1] if top == "output" else sources[-1]
    x = parts.conv(f"fpn.output{level}", x, channels, 3, 2, (1, 1), prunable=True)
    found.append(x)
    x = parts.add(f"fpn.activated{level}", (x,), Activate("relu"))
    x = parts.conv(f"fpn.output{level + 1}", x, channels, 3, 2, (1, 1), prunable=True)
    return [*found, x]


def rounded_cell_anchors(
    sizes: Sequence[Sequence[float]], ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
) -> CellAnchors:
    """torchvision's anchors of the first cell of each level, rounded; sizes are the fastest index.

    Args:
        sizes: of each level, side lengths of squares with the anchors' areas, pixels.
        ratios: heights over widths.
    """
    levels = []
    for of_level in sizes:
        heights = np.sqrt(np.asarray(ratios, dtype=np.float32))
        scales = np.asarray(of_level, dtype=np.float32)
        w, h = (np.outer(side, scales).reshape(-1) for side in (1 / heights, heights))
        boxes = np.stack([-w, -h, w, h], axis=1) / 2
        levels.append(tuple(tuple(box) for box in np.round(boxes).tolist()))
    return tuple(levels)
