"""The exponential moving average (EMA) of the weights; it often detects better than the weights.

Source: TensorFlow's ExponentialMovingAverage. After few updates the decay is
(1 + updates) / (10 + updates), so that the random start fades quickly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of a model's trained parameters.

    Args:
        decay: 0..1; see the module for the first updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int, factors: Mapping[str, Tensor]) -> None:
        """Average in the present weights; pruned weights stay zero.

        Args:
            step: optimizer steps before this one.
            factors: keep masks of pruned layers as 0 and 1, by the layer's name.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            average.lerp_(self.parameters[name], 1.0 - decay)
            factor = factors.get(name.removesuffix(".weight"))
            if factor is not None:
                average.mul_(factor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model holds the averages; afterwards its weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
