"""The proposals of an image that calibration and sensitivity run the RoI head on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError


def some_proposals(proposals: Tensor, count: int) -> Tensor:
    """Evenly spaced proposals of one image, [<= count, 4].

    Raises:
        InputError: there are none.
    """
    if not len(proposals):
        raise InputError("the RPN proposes nothing on a calibration image")
    return evenly_spaced(proposals, count)


def evenly_spaced(proposals: Tensor, count: int) -> Tensor:
    """At most `count` of the proposals [N, 4], from the first to the last."""
    last = len(proposals) - 1
    return proposals[torch.linspace(0, last, min(count, len(proposals))).long()]


def rows_of_regions(regions: Tensor, image: Tensor) -> Tensor:
    """Rows [1, N, 7] of label 1 whose boxes are the regions [N, 4] of an image [1, 3, H, W]."""
    height, width = image.shape[2:]
    scale = regions.new_tensor([width, height, width, height])
    fixed = regions.new_tensor([0.0, 1.0, 1.0]).expand(len(regions), 3)
    return torch.cat([fixed, regions / scale], dim=1)[None]
