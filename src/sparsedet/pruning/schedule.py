"""When zeros appear while training: the cubic schedule. No torch.

Source: Zhu & Gupta, "To prune, or not to prune", arXiv 1710.01878, equation 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class CubicSchedule:
    """Sparsity over training steps.

    s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin))^3 for begin <= t <= end.
    Masks are recomputed at begin, begin + every, ... and at end.

    Attributes:
        initial, final: sparsity before `begin` and from `end` on, 0 <= initial <= final < 1.
        begin, end: steps, 0 <= begin < end.
        every: steps between two updates of the masks, at least 1.
    """

    initial: float = 0.0
    final: float
    begin: int = 0
    end: int
    every: int = 100

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final < 1.0:
            raise InputError(
                f"sparsity from {self.initial} to {self.final}, expected 0 <= initial <= final < 1"
            )
        if not 0 <= self.begin < self.end:
            raise InputError(f"steps {self.begin}..{self.end}, expected 0 <= begin < end")
        if self.every < 1:
            raise InputError(f"every is {self.every}, expected at least 1")

    def sparsity(self, step: int) -> float:
        """The scheduled sparsity at `step`, 0..1."""
        if step <= self.begin:
            return self.initial
        if step >= self.end:
            return self.final
        progress = (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * (1.0 - progress) ** 3

    def updates_at(self, step: int) -> bool:
        """Whether masks are recomputed at `step`."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.every == 0
