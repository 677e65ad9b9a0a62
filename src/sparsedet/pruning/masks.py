"""Zeros that stay zero while the torch model is trained, on the model's device.

A pruned weight is exactly zero, and stays so through momentum and weight decay, because the mask
is applied to weights, gradients and the optimizer's state. `FixedMasks` keeps those that the model
comes with, `GradualPruner` lets them grow. Magnitudes are taken after folding batch norm: the
size that a weight has in the network that runs.

What the loss feels when weight w becomes zero is about w^2 times the mean of its squared gradient.
The means are kept as one figure for each row and each column of a layer's matrix, whose products
they are taken for: a weight alone sees too few gradients for a mean.

Glossary: a *unit* is what a pattern makes zero at once: a weight ("unstructured"), a group of
four ("1x4"), or the two smaller of each half of a group ("2:4"); groups, rows and columns as in
`patterns`.

Source: LeCun, Denker & Solla, "Optimal brain damage", NeurIPS 1989; squared gradients by rows and
columns: Shazeer & Stern, Adafactor, arXiv 1804.04235.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..torch_model import FasterRCNN
from .patterns import (
    GROUP,
    ZEROS_A_UNIT,
    cheapest,
    check_pattern,
    from_matrix,
    spread,
    to_matrix,
    two_of_four,
)
from .schedule import (
    LEAST_DENSITY,
    Allocation,
    CubicSchedule,
    Pattern,
    erk_zeros,
    half_of,
    prunable_layers,
    uniform_zeros,
)

FORGET = 0.01
"""Weight of a step's squared gradients in their running means."""


class Masks:
    """The masks of a model's prunable layers: True where a weight may be other than zero.

    Args:
        model: masked in place.
        exclude: layers left dense beside stem and predictors.

    Raises:
        InputError: a name in `exclude` is no layer.
    """

    def __init__(self, model: FasterRCNN, exclude: Sequence[str] = ()) -> None:
        self.model = model
        self.layers = prunable_layers(model.network, exclude)
        self.masks: dict[str, Tensor] = {
            name: torch.ones_like(model.layers[name].weight, dtype=torch.bool)
            for name in self.layers
        }
        # The same in the weights' own type: multiplying by them takes a sixth of the time.
        self.factors: dict[str, Tensor] = {
            name: torch.ones_like(model.layers[name].weight) for name in self.layers
        }
        # What the choice of later zeros follows from, beside weights and masks.
        self.statistics: dict[str, Tensor] = {}

    def observe(self) -> None:
        """Take note of a step's gradients, before they are masked."""

    def update(self, step: int) -> bool:
        """Recompute the masks if it is time; returns whether it was."""
        return False

    def restore(self, masks: Mapping[str, Tensor]) -> None:
        """Take over saved masks.

        Raises:
            KeyError: one is of a layer that has no mask.
        """
        for name, mask in masks.items():
            self.masks[name].copy_(mask)
            self.factors[name].copy_(mask)

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Zero the masked weights, their gradients and their optimizer state."""
        for name, mask in self.factors.items():
            weight = self.model.layers[name].weight
            weight.mul_(mask)
            if weight.grad is not None:
                weight.grad.mul_(mask)
            if optimizer is not None:
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.mul_(mask)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights: zero weights without momentum stay zero."""
        for name, mask in self.factors.items():
            gradient = self.model.layers[name].weight.grad
            if gradient is not None:
                gradient.mul_(mask)

    def sparsity(self) -> float:
        """Zeros among all folded parameters of the network."""
        zeros = sum(int((~mask).sum()) for mask in self.masks.values())
        return zeros / self.model.network.parameters


class FixedMasks(Masks):
    """The zeros that the model's prunable layers have now, for good.

    Raises:
        InputError: as `Masks`, or there is no zero.
    """

    def __init__(self, model: FasterRCNN, exclude: Sequence[str] = ()) -> None:
        super().__init__(model, exclude)
        self.restore({name: model.layers[name].weight != 0 for name in self.layers})
        if not self.sparsity():
            raise InputError("keep_zeros is True, but the initial weights have no zero to keep")


class GradualPruner(Masks):
    """Masks whose zeros grow along a schedule.

    Args:
        model: pruned in place.
        schedule: sparsity of ALL parameters, folded, against steps.
        allocation: "uniform" gives each pruned layer the same sparsity, "global" ranks all
            units together, "erk" leaves small layers denser; all three by magnitude.
            "sensitivity" ranks the units of all trained layers together by what the loss feels,
            frozen ones as "uniform" does.
        exclude: layers left dense beside stem and predictors.
        pattern: of the zeros. "2:4" ends where every group has two; before, the share of groups
            that have any grows.

    Raises:
        InputError: a name in `exclude` is no layer, a layer does not fit the pattern, or too
            few weights are left for the target.
    """

    def __init__(
        self,
        model: FasterRCNN,
        schedule: CubicSchedule,
        allocation: Allocation = "uniform",
        exclude: Sequence[str] = (),
        pattern: Pattern = "unstructured",
    ) -> None:
        super().__init__(model, exclude)
        self.schedule, self.allocation, self.pattern = schedule, allocation, pattern
        for name in self.layers:
            check_pattern(model.network.by_name[name], pattern)
        uniform_zeros(model.network, self.layers, schedule.final)  # refuses the impossible now
        most = half_of(model.network, self.layers)
        if pattern == "2:4" and schedule.final > most:
            raise InputError(
                f"sparsity is {schedule.final:.3f}, but pattern 2:4 in all pruned "
                f"layers makes {most:.3f}"
            )
        self.felt: tuple[str, ...] = ()  # ranked by what the loss feels
        if allocation == "sensitivity":
            weights = {name: model.layers[name].weight for name in self.layers}
            self.felt = tuple(name for name in self.layers if weights[name].requires_grad)
            for name in self.felt:
                weight = weights[name].detach()
                self.statistics[f"rows/{name}"] = weight.new_zeros(len(weight))
                self.statistics[f"columns/{name}"] = torch.zeros_like(weight[0])

    @torch.no_grad()
    def observe(self) -> None:
        sums = {}
        for name in self.felt:
            gradient = self.model.layers[name].weight.grad
            if gradient is not None:
                flat = gradient.flatten(1)
                sums[name] = (
                    torch.linalg.vecdot(flat, flat),
                    torch.linalg.vecdot(flat, flat, dim=0).view(gradient.shape[1:]),
                )
        if not sums:
            return
        # Every step counts alike, however large its gradients (or fp16's scale) are.
        total = torch.stack([rows.sum() for rows, _ in sums.values()]).sum()
        usable = torch.isfinite(total) & (total > 0)
        for name, both in sums.items():
            for side, found in zip(("rows", "columns"), both, strict=True):
                mean = self.statistics[f"{side}/{name}"]
                mean.copy_(torch.where(usable, mean.lerp(found / total, FORGET), mean))

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Recompute the masks if the schedule says so; returns whether it did."""
        if not self.schedule.updates_at(step):
            return False
        allocate = erk_zeros if self.allocation == "erk" else uniform_zeros
        zeros = allocate(self.model.network, self.layers, self.schedule.sparsity(step))
        unit = ZEROS_A_UNIT[self.pattern]
        ranked = self.layers if self.allocation == "global" else self.felt
        alone = [(name,) for name in self.layers if name not in ranked]
        for names in [ranked, *alone] if ranked else alone:
            sizes = [self._unit_costs(name) for name in names]
            # Rounded up to whole units, of which a layer may have too few by one.
            wanted = min(-(-sum(zeros[name] for name in names) // unit), sum(map(len, sizes)))
            parts = cheapest(sizes, wanted, LEAST_DENSITY if names is self.felt else 0.0)
            self.restore({n: ~self._zeros(n, part) for n, part in zip(names, parts, strict=True)})
        self.apply()
        return True

    def _costs(self, name: str) -> Tensor:
        """What each weight of a layer costs when it becomes zero. A masked one ranks below every
        live one, so that masks only grow."""
        conv = self.model.layers[name]
        if name in self.felt:
            # Rows of gradients are of the unfolded weight: batch norm's scale cancels.
            rows, columns = (self.statistics[f"{side}/{name}"] for side in ("rows", "columns"))
            columns = columns / rows.sum().clamp(min=1e-30)
            costs = conv.weight.square() * rows.view(-1, *[1] * columns.dim()) * columns
        else:
            costs = conv.folded()[0].square()
        return torch.where(self.masks[name], costs, -1.0)

    def _unit_costs(self, name: str) -> Tensor:
        """What each unit of a layer costs when it becomes zero, [units]."""
        costs = self._costs(name)
        if self.pattern == "unstructured":
            return costs.flatten()
        groups = to_matrix(costs).reshape(-1, GROUP)
        if self.pattern == "2:4":
            groups = groups.topk(GROUP // 2, dim=1, largest=False).values
        return groups.sum(dim=1)

    def _zeros(self, name: str, units: Tensor) -> Tensor:
        """True at the weights that those units [units] of a layer make zero."""
        mask = self.masks[name]
        if self.pattern == "unstructured":
            return units.view_as(mask)
        zeros = spread(units.view(len(mask), -1))
        if self.pattern == "2:4":
            zeros &= two_of_four(to_matrix(self._costs(name)))
        return from_matrix(zeros, mask.shape)
