"""Anchors of feature maps, and the outputs of predictors in their order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import boxes as np_boxes
from ..model.graph import Proposals, RetinaNetOutput


def cells(maps: Tensor, values: int) -> Tensor:
    """Maps [B, A * values, H, W] -> [B, H*W*A, values]."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values).float()


def flat_outputs(objectness: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, A, H, W] and [B, 4 A, H, W] -> logits [B, H*W*A] and deltas [B, H*W*A, 4]."""
    return cells(objectness, 1)[..., 0], cells(deltas, 4)


def level_anchors(
    attributes: Proposals | RetinaNetOutput,
    level: int,
    logits: Tensor,
    image: tuple[int, int] = (0, 0),
) -> Tensor:
    """All anchors of one level, [H*W*A, 4].

    Args:
        logits: the level's map of logits, [B, ..., H, W].
        image: height and width of the network input; read where a stride is 0.
    """
    cells = torch.tensor(attributes.cell_anchors[level], dtype=torch.float32).numpy()
    size = (logits.shape[2], logits.shape[3])
    stride = attributes.strides[level]
    steps = (stride, stride) if stride else (image[0] // size[0], image[1] // size[1])
    grid = np_boxes.grid_anchors(cells, size, steps)
    return torch.from_numpy(grid).to(logits.device)
