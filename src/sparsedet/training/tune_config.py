"""The settings of tuning a pruned network. No torch: the command line reads them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError
from .recipe import HELP as RECIPE_HELP

HELP = {
    "steps": RECIPE_HELP["steps"],
    "batch": RECIPE_HELP["batch"],
    "step_size": "largest step of a weight, in proportion to its row and column",
    "features": "weight of the error of the layers' outputs",
    "seed": RECIPE_HELP["seed"],
    "checkpoint_every": "steps between two checkpoints",
}
"""What the settings are, for the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """Settings of tuning.

    Attributes:
        steps: of the optimizer (Adam).
        batch: photographs of a step.
        step_size: how far a step of Adam may move a weight, in proportion to its row and column
            (`BalancedAdam`); at its highest. It rises over the first tenth of the steps and falls
            to 0 along a cosine.
        features: weight of the error of the layers' outputs beside that of the predictions.
        seed: of photographs, flips and crops.
        checkpoint_every: steps between two checkpoints.

    Raises:
        UsageError: a value is out of range.
    """

    steps: int = 500
    batch: int = 8
    step_size: float = 0.0003
    features: float = 1.0
    seed: int = 0
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 10**7),
            ("batch", 1, 1024),
            ("step_size", 1e-9, 1.0),
            ("features", 0.0, 1e6),
            ("seed", 0, 2**31),
            ("checkpoint_every", 1, 10**7),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}, expected {low}..{high}")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        warmup = max(1, self.steps // 10)
        if step < warmup:
            return self.step_size * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.step_size * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def described(self, photographs: int) -> dict[str, Any]:
        """The settings, for provenance and checkpoints."""
        return {**asdict(self), "photographs": photographs}
