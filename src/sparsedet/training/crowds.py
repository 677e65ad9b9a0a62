"""Regions that are neither object nor background: crowds, and what is left of objects cut off.

Nothing is learnt there but the objects that are annotated one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def without_regions(
    matched_label: Tensor, boxes: Tensor, regions: Tensor, overlap: float
) -> Tensor:
    """Matched labels where negative boxes inside a region are ignored.

    Args:
        matched_label: [N], from `losses.match`.
        boxes: anchors or proposals [N, 4].
        regions: [C, 4].
        overlap: a box is inside a region from this share of its own area on; 0: never.

    Source: Detectron's TRAIN.CROWD_FILTER_THRESH, which is 0.7 there and is used for RoIs.
    """
    if not overlap or not len(regions):
        return matched_label
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)  # [N, C]
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    inside = (shared >= overlap * area[:, None]).any(dim=1)
    return torch.where(inside & (matched_label == 0), -1, matched_label)
