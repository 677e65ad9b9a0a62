"""Which parameters are trained, and how: frozen stages, zeros, groups of the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..pruning.masks import FixedMasks, GradualPruner, Masks
from ..pruning.schedule import CubicSchedule, half_of, prunable_layers
from ..torch_model import FasterRCNN
from .recipe import Recipe


def freeze(model: FasterRCNN, freeze_at: int) -> None:
    """Stop gradients of the stem (1), res2 (2), ... up to stage `freeze_at`."""
    frozen = ["stem.", *(f"res{n}." for n in range(2, freeze_at + 1))][: freeze_at or None]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(freeze_at == 0 or not name.startswith(tuple(frozen)))


def build_optimizer(model: FasterRCNN, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW; no weight decay on batch norms and biases; a rate factor for the backbone.

    Each group keeps that factor as `factor`.
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


def make_masks(model: FasterRCNN, recipe: Recipe) -> Masks | None:
    """The recipe's zeros: growing, kept as they are, or none.

    Raises:
        InputError: the model cannot be pruned so, or has no zeros to keep.
    """
    if recipe.keep_zeros:
        return FixedMasks(model, recipe.exclude)
    if not recipe.prunes:
        return None
    final = recipe.sparsity
    if recipe.pattern == "2:4":
        final = half_of(model.network, prunable_layers(model.network, recipe.exclude))
    schedule = CubicSchedule(
        final=final, begin=recipe.prune_begin, end=recipe.prune_end, every=recipe.prune_every
    )
    return GradualPruner(model, schedule, recipe.allocation, recipe.exclude, recipe.pattern)
