"""Gradual magnitude pruning of the torch model, on the model's device.

Magnitudes are taken after folding batch norm: the size that a weight has in the network that
runs. A pruned weight is exactly zero, and stays so through momentum and weight decay, because
the mask is applied to weights, gradients and the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import FasterRCNN
from .patterns import smallest
from .schedule import Allocation, CubicSchedule, erk_zeros, prunable_layers, uniform_zeros


class MagnitudePruner:
    """Holds the masks of a model and grows their zeros along a schedule.

    Args:
        model: pruned in place.
        schedule: sparsity of ALL parameters, folded, against steps.
        allocation: "uniform" gives each pruned layer the same sparsity, "global" ranks all
            weights together, "erk" leaves small layers denser.
        exclude: layers left dense beside stem and predictors.

    Raises:
        InputError: a name in `exclude` is no layer, or too few weights are left for the target.
    """

    def __init__(
        self, model: FasterRCNN, schedule: CubicSchedule, allocation: Allocation = "uniform",
        exclude: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.model, self.schedule, self.allocation = model, schedule, allocation
        self.layers = prunable_layers(model.network, exclude)
        uniform_zeros(model.network, self.layers, schedule.final)  # refuses the impossible now
        self.masks: dict[str, Tensor] = {
            name: torch.ones_like(model.layers[name].weight, dtype=torch.bool)
            for name in self.layers
        }

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Recompute the masks if the schedule says so; returns whether it did."""
        if not self.schedule.updates_at(step):
            return False
        target = self.schedule.sparsity(step)
        allocate = erk_zeros if self.allocation == "erk" else uniform_zeros
        zeros = allocate(self.model.network, self.layers, target)
        scores = {}
        for name in self.layers:
            weight, _ = self.model.layers[name].folded()
            # A masked weight ranks below every live one, so that masks only grow.
            scores[name] = torch.where(self.masks[name], weight.abs(), -1.0)
        if self.allocation == "global":
            flat = torch.cat([s.flatten() for s in scores.values()])
            self._mask_smallest(flat, sum(zeros.values()), list(self.masks.values()))
        else:
            for name, score in scores.items():
                self._mask_smallest(score.flatten(), zeros[name], [self.masks[name]])
        self.apply()
        return True

    @staticmethod
    def _mask_smallest(scores: Tensor, count: int, masks: list[Tensor]) -> None:
        """Clear the `count` places with the smallest scores, exactly that many."""
        parts = torch.split(~smallest(scores, count), [mask.numel() for mask in masks])
        for mask, part in zip(masks, parts, strict=True):
            mask.copy_(part.view_as(mask))

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Zero the masked weights, their gradients and their optimizer state."""
        for name, mask in self.masks.items():
            weight = self.model.layers[name].weight
            weight.mul_(mask)
            if weight.grad is not None:
                weight.grad.mul_(mask)
            if optimizer is not None:
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.mul_(mask)

    def sparsity(self) -> float:
        """Zeros among all folded parameters of the network."""
        zeros = sum(int((~mask).sum()) for mask in self.masks.values())
        return zeros / self.model.network.parameters
