"""Keep masks that hold zeros at zero while the torch model is trained, on the model's device.

A pruned weight is exactly zero. It stays zero through momentum and weight decay because its mask is
applied to weights, gradients and the optimizer's state. `FixedMasks` keeps the zeros that the model
has at the start; `GradualPruner` adds zeros along a schedule. Magnitudes are those of the folded
weights, which are the weights of the network that runs.

Removing weight w changes the loss by about w^2 times the mean of its squared gradient (optimal
brain damage, with the Fisher information as the curvature): its sensitivity. The means are kept as
one value for each row and each column of a layer's weight and multiplied to estimate the mean of a
single weight, because one weight has too few gradients for a mean of its own.

Source: LeCun, Denker & Solla, "Optimal brain damage", NeurIPS 1989; squared gradients by rows and
columns: Shazeer & Stern, Adafactor, arXiv 1804.04235.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..torch_model import GraphModule
from .allocation import (
    LEAST_DENSITY,
    Allocation,
    erk_zeros,
    pattern_sparsity,
    prunable_layers,
    uniform_zeros,
)
from .patterns import UNSTRUCTURED, Pattern
from .schedule import CubicSchedule
from .selection import from_matrix, keep_largest_of_layers, to_matrix
from .squared_gradients import SquaredGradients


class Masks:
    """The keep masks of a model's prunable layers.

    Args:
        model: masked in place.
        exclude: layers left dense beside stem and predictors.

    Attributes:
        keep_masks: bool, in the shape of each layer's weight, by the layer's name.
        factors: the same as 0 and 1 in the weights' own type, in which a product takes a sixth of
            the time.
        sensitivity: running means that the choice of later zeros depends on, by name; empty if
            it depends on weights and masks alone.

    Raises:
        InputError: a name in `exclude` is not a layer.
    """

    def __init__(self, model: GraphModule, exclude: Sequence[str] = ()) -> None:
        self.model = model
        self.layers = prunable_layers(model.graph, exclude)
        self.keep_masks: dict[str, Tensor] = {
            name: torch.ones_like(model.layers[name].weight, dtype=torch.bool)
            for name in self.layers
        }
        self.factors: dict[str, Tensor] = {
            name: torch.ones_like(model.layers[name].weight) for name in self.layers
        }
        self.sensitivity: dict[str, Tensor] = {}

    def observe(self) -> None:
        """Record a step's gradients, before they are masked."""

    def update(self, step: int) -> bool:
        """Recompute the masks if the schedule says so.

        Returns:
            whether they were recomputed.
        """
        return False

    def restore(self, keep_masks: Mapping[str, Tensor]) -> None:
        """Take over saved keep masks.

        Raises:
            KeyError: a layer in `keep_masks` has no mask here.
        """
        for name, keep_mask in keep_masks.items():
            self.keep_masks[name].copy_(keep_mask)
            self.factors[name].copy_(keep_mask)

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Zero the pruned weights, their gradients and their optimizer state."""
        for name, factor in self.factors.items():
            weight = self.model.layers[name].weight
            weight.mul_(factor)
            if weight.grad is not None:
                weight.grad.mul_(factor)
            if optimizer is not None:
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.mul_(factor)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights: zero weights without momentum stay zero."""
        for name, factor in self.factors.items():
            gradient = self.model.layers[name].weight.grad
            if gradient is not None:
                gradient.mul_(factor)

    def sparsity(self) -> float:
        """Zeros among ALL folded parameters of the network, 0..1."""
        zeros = sum(int((~keep_mask).sum()) for keep_mask in self.keep_masks.values())
        return zeros / self.model.graph.parameters


class FixedMasks(Masks):
    """Masks of the zeros that the model's prunable layers have now; they never change.

    Raises:
        InputError: as `Masks`, or the model has no zero.
    """

    def __init__(self, model: GraphModule, exclude: Sequence[str] = ()) -> None:
        super().__init__(model, exclude)
        self.restore({name: model.layers[name].weight != 0 for name in self.layers})
        if not self.sparsity():
            raise InputError("keep_zeros is True, but the initial weights have no zero to keep")


class GradualPruner(Masks):
    """Masks whose zeros grow along a schedule.

    Args:
        model: pruned in place.
        schedule: sparsity of ALL parameters, folded, over the training steps.
        allocation: "uniform" gives each pruned layer the same sparsity, "global" ranks the blocks
            of all layers together, "erk" leaves small layers denser; all three by magnitude.
            "sensitivity" ranks the blocks of all trained layers together by the change of the
            loss, and treats frozen layers as "uniform" does.
        exclude: layers left dense beside stem and predictors.
        pattern: of the zeros. One with a fixed sparsity ends with all blocks pruned; until then
            the number of pruned blocks grows.

    Raises:
        InputError: a name in `exclude` is not a layer, a layer does not fit the pattern, or the
            layers have too few weights for the target.
    """

    def __init__(
        self,
        model: GraphModule,
        schedule: CubicSchedule,
        allocation: Allocation = "uniform",
        exclude: Sequence[str] = (),
        pattern: Pattern = UNSTRUCTURED,
    ) -> None:
        super().__init__(model, exclude)
        self.schedule, self.allocation, self.pattern = schedule, allocation, pattern
        for name in self.layers:
            pattern.check_layer(model.graph.layer[name])
        uniform_zeros(model.graph, self.layers, schedule.final)  # refuses the impossible now
        most = pattern_sparsity(model.graph, self.layers, pattern)
        if pattern.fixed_sparsity is not None and schedule.final > most:
            raise InputError(
                f"sparsity is {schedule.final:.3f}, but pattern {pattern.name} in all pruned "
                f"layers makes {most:.3f}"
            )
        self.by_sensitivity: tuple[str, ...] = ()
        if allocation == "sensitivity":
            weights = {name: model.layers[name].weight for name in self.layers}
            weights = {n: weight for n, weight in weights.items() if weight.requires_grad}
            self.by_sensitivity = tuple(weights)
            self.gradients = SquaredGradients(weights)
            self.sensitivity = self.gradients.means

    def observe(self) -> None:
        if self.by_sensitivity:
            weights = {name: self.model.layers[name].weight for name in self.by_sensitivity}
            self.gradients.observe({name: weight.grad for name, weight in weights.items()})

    @torch.no_grad()
    def update(self, step: int) -> bool:
        if not self.schedule.updates_at(step):
            return False
        allocate = erk_zeros if self.allocation == "erk" else uniform_zeros
        zeros = allocate(self.model.graph, self.layers, self.schedule.sparsity(step))
        ranked = self.layers if self.allocation == "global" else self.by_sensitivity
        alone = [(name,) for name in self.layers if name not in ranked]
        for names in [ranked, *alone] if ranked else alone:
            costs = [self._matrix(self._costs(name)) for name in names]
            block_costs = [self.pattern.block_costs(matrix) for matrix in costs]
            # Rounded up to whole blocks; the layers may have one block too few for that.
            pruned = -(-sum(zeros[name] for name in names) // self.pattern.zeros)
            keep_blocks = keep_largest_of_layers(
                block_costs,
                min(pruned, sum(map(len, block_costs))),
                LEAST_DENSITY if names is self.by_sensitivity else 0.0,
            )
            self.restore(
                {
                    name: self._keep_mask(name, blocks, matrix)
                    for name, blocks, matrix in zip(names, keep_blocks, costs, strict=True)
                }
            )
        self.apply()
        return True

    def _costs(self, name: str) -> Tensor:
        """Cost of pruning each weight of a layer, in the shape of the weight.

        A pruned weight costs less than every live one, so that it stays pruned.
        """
        conv = self.model.layers[name]
        if name in self.by_sensitivity:
            # The row means are of unfolded weights' gradients: batch norm's scale cancels.
            costs = self.gradients.costs(name, conv.weight)
        else:
            costs = conv.folded()[0].square()
        return torch.where(self.keep_masks[name], costs, -1.0)

    def _matrix(self, costs: Tensor) -> Tensor:
        # Single weights need no neighbours and stay in the weight's own order, which decides
        # between equal costs.
        return costs.flatten(1) if self.pattern.size == 1 else to_matrix(costs)

    def _keep_mask(self, name: str, keep_blocks: Tensor, costs: Tensor) -> Tensor:
        shape = self.keep_masks[name].shape
        matrix = self.pattern.keep_mask(keep_blocks, costs)
        return matrix.view(shape) if self.pattern.size == 1 else from_matrix(matrix, shape)
