"""The exponential moving average of the weights (EMA), which often detects better than they do.

Source: Polyak averaging as TensorFlow's ExponentialMovingAverage does it: while there are few
updates the decay is min(decay, (1 + updates) / (10 + updates)), so that the random start fades.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of a model's trained parameters, by name."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Take in the weights after optimizer step 0, 1, ...; masked weights stay zero.

        Args:
            masks: of pruned layers, by the layer's name; the weights' type is fastest.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            average.lerp_(self.parameters[name], 1.0 - decay)
            mask = masks.get(name.removesuffix(".weight"))
            if mask is not None:
                average.mul_(mask)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model holds the averages; the weights come back after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
