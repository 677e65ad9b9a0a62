"""Box arithmetic in torch, as `model.boxes` has it in numpy. Boxes are xyxy float pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def decode(
    deltas: Tensor, boxes: Tensor, weights: tuple[float, float, float, float], clamp: float
) -> Tensor:
    """`model.boxes.decode` in torch, always float32 (bf16 resolves 2 pixels near 300)."""
    deltas, boxes = deltas.float(), boxes.float()
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    deltas = deltas / deltas.new_tensor(weights)
    new_centre = deltas[..., :2] * size + centre
    half = 0.5 * (deltas[..., 2:].clamp(max=clamp).exp() * size)
    return torch.cat([new_centre - half, new_centre + half], dim=-1)


def encode(boxes: Tensor, targets: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """`model.boxes.encode` in torch."""
    size = boxes[:, 2:] - boxes[:, :2]
    target_size = targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + 0.5 * target_size) - (boxes[:, :2] + 0.5 * size)
    deltas = torch.cat([shift / size, (target_size / size).log()], dim=1)
    return deltas * deltas.new_tensor(weights)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """`model.boxes.clip` in torch."""
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), limit)
