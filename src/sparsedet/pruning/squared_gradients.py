"""Running means of squared gradients, kept as one value for each row and each column of a weight.

They estimate how much the loss changes when a weight is removed. One weight has too few gradients
for a mean of its own.

Source: LeCun, Denker & Solla, "Optimal brain damage", NeurIPS 1989; squared gradients by rows and
columns: Shazeer & Stern, Adafactor, arXiv 1804.04235.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NEW_GRADIENT_WEIGHT = 0.01
"""Weight of a step's squared gradients in their running means."""


class SquaredGradients:
    """The means of some weights.

    Args:
        weights: by name.

    Attributes:
        means: `rows/NAME` [out] and `columns/NAME`, in the shape of one row of the weight.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.names = tuple(weights)
        self.means: dict[str, Tensor] = {}
        for name, weight in weights.items():
            value = weight.detach()
            self.means[f"rows/{name}"] = value.new_zeros(len(value))
            self.means[f"columns/{name}"] = torch.zeros_like(value[0])

    @torch.no_grad()
    def observe(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Take in a step's gradients; those that are not finite do not count."""
        sums = {}
        for name in self.names:
            gradient = gradients.get(name)
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
        for name, row_and_column_sums in sums.items():
            for side, squares in zip(("rows", "columns"), row_and_column_sums, strict=True):
                mean = self.means[f"{side}/{name}"]
                updated = mean.lerp(squares / total, NEW_GRADIENT_WEIGHT)
                mean.copy_(torch.where(usable, updated, mean))

    def costs(self, name: str, weight: Tensor) -> Tensor:
        """Cost of removing each value of a weight, in its shape."""
        rows, columns = (self.means[f"{side}/{name}"] for side in ("rows", "columns"))
        columns = columns / rows.sum().clamp(min=1e-30)
        return weight.square() * rows.view(-1, *[1] * columns.dim()) * columns
