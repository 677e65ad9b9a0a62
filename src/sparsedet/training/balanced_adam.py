"""Adam for networks without separate batch norms: steps in proportion to a weight's row and column.

Folding a batch norm leaves channels whose weights differ by orders of magnitude, in their outputs
(rows) and in what reads them (columns). Steps of one size for a whole tensor would then change weak
channels beyond recognition while strong ones hardly move.

Source: Kingma & Ba, "Adam", arXiv 1412.6980; sizes by rows and columns: as Shazeer & Stern,
"Adafactor", arXiv 1804.04235, estimate them for squared gradients.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

LEAST_SIZE = 1e-8


def sizes(weight: Tensor) -> Tensor:
    """Size of each value by its row and its column, in the shape of `weight`.

    The mean square of the values that are not zero, of the row times that of the column over that
    of all. Of a vector (a bias) the value's own size, at least a tenth of the vector's.
    """
    live = (weight != 0).to(weight.dtype)
    squares = weight.square()
    whole = squares.sum() / live.sum().clamp(min=1)
    if weight.dim() < 2:
        return torch.maximum(squares.sqrt(), 0.1 * whole.sqrt()).clamp(min=LEAST_SIZE)
    rest = list(range(1, weight.dim()))
    others = [0, *rest[1:]]
    rows, columns = (
        squares.sum(dim=dims, keepdim=True) / live.sum(dim=dims, keepdim=True).clamp(min=1)
        for dims in (rest, others)
    )
    product = (rows * columns / whole.clamp(min=LEAST_SIZE**2)).sqrt()
    return product.expand_as(weight).clamp(min=LEAST_SIZE).clone()


class BalancedAdam(torch.optim.Optimizer):
    """Adam whose step of a value is `lr` times the value's size (`sizes`) at the start.

    Args:
        parameters: those that are trained.
        lr: largest step of a value, in proportion to its size.
        betas: decay of the means of gradients and of their squares.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})
        self.sizes = {p: sizes(p.detach()) for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.zeros_like(parameter)
                state["step"] += 1
                first, second = group["betas"]
                count = float(state["step"])
                mean = state["mean"].lerp_(gradient, 1 - first) / (1 - first**count)
                square = state["square"].lerp_(gradient.square(), 1 - second) / (1 - second**count)
                # A scale of the gradient leaves the step as it is, so a small epsilon does.
                step = mean / (square.sqrt() + 1e-12)
                parameter.sub_(group["lr"] * self.sizes[parameter] * step)
