"""The optimizer, its parameter groups, and the frozen stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..torch_model import TwoStageDetector
from .recipe import Recipe


def freeze(model: TwoStageDetector, freeze_at: int) -> None:
    """Freeze the stem (1), res2 (2), ... up to stage `freeze_at`; 0: train everything."""
    frozen = ["stem.", *(f"res{n}." for n in range(2, freeze_at + 1))][: freeze_at or None]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(freeze_at == 0 or not name.startswith(tuple(frozen)))


def build_optimizer(model: TwoStageDetector, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW, without weight decay on batch norms and biases.

    Each parameter group has its factor of the learning rate as `factor`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = recipe.backbone_rate if name.startswith(("stem.", "res")) else 1.0
        decay = 0.0 if name.endswith("bias") or ".norm." in name else recipe.weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    lists: list[dict[str, Any]] = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(lists, lr=recipe.learning_rate)
    return torch.optim.SGD(lists, lr=recipe.learning_rate, momentum=recipe.momentum)
