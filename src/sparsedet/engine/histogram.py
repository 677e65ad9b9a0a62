"""The range that bytes should hold of a value: the one with the least squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..model.int8_ranges import ClippingThreshold, Range

_SHIFT = 18
"""Bits of a float32 that a histogram drops: 5 bits of the mantissa stay, 32 bins an octave."""
_BINS = 1 << (31 - _SHIFT)
_OCTAVES = 6  # below the largest value; the threshold is searched in this range


class Histogram:
    """How many values of a tensor have which magnitude, by sign and the upper bits of a float32."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * _BINS, np.int64)

    def add(self, value: NDArray[np.float32]) -> None:
        bits = np.ascontiguousarray(value).reshape(-1).view(np.uint32) >> _SHIFT
        self.counts += np.bincount(bits, minlength=2 * _BINS)

    def threshold(self, symmetric: bool) -> ClippingThreshold:
        """What bytes should hold: a range, or one number as older programs read it."""
        positive, negative = self.counts[:_BINS], self.counts[_BINS:]
        if not negative[1:].any():
            top = _clipping_threshold(positive, 255)
            return top if symmetric else (0.0, top)
        if symmetric:
            return _clipping_threshold(positive + negative, 127)
        return _range(negative, positive)


class _Side:
    """The values of one sign: how much is lost by clipping and by rounding them."""

    def __init__(self, histogram: NDArray[np.int64]) -> None:
        filled = np.flatnonzero(histogram)
        last = int(filled[-1]) if filled.size else 0
        edges = (np.arange(last + 2) << _SHIFT).astype(np.int32).view(np.float32)
        edges = edges.astype(np.float64)
        self.middle, self.count = (edges[filled] + edges[filled + 1]) / 2, histogram[filled]
        self.tops = edges[-_OCTAVES * 32 :]
        """Thresholds to try: all edges of the upper octaves."""

    def error(self, top: float, step: float) -> float:
        """The squared error of rounding to multiples of `step` up to `top`."""
        rounded = np.where(self.middle < step / 2, self.middle**2, step**2 / 12)
        clipped = np.where(self.middle < top, rounded, (self.middle - top) ** 2)
        return float(np.sum(self.count * clipped))


def _clipping_threshold(histogram: NDArray[np.int64], steps: int) -> float:
    """The clipping threshold with the least squared error, to one bin; 0 if all values are 0.

    Args:
        histogram: number of values by the upper bits of their magnitude as a float32, (_BINS,).
        steps: number of steps between 0 and the threshold.
    """
    if not np.flatnonzero(histogram).any():  # bin 0 holds zeros, and values too small to matter
        return 0.0
    side = _Side(histogram)
    errors = [side.error(top, top / steps) for top in side.tops]
    return float(f"{side.tops[int(np.argmin(errors))]:.6g}")


def _range(negative: NDArray[np.int64], positive: NDArray[np.int64]) -> Range:
    """The range with the least squared error, to one bin on either side; 255 steps.

    Each side is searched while the other one stays, twice: the error has one valley.
    """
    below, above = _Side(negative), _Side(positive)
    low, high = float(below.tops[-1]), float(above.tops[-1])

    def error(low: float, high: float) -> float:
        step = (low + high) / 255
        return below.error(low, step) + above.error(high, step)

    for _ in range(2):
        low = min(map(float, below.tops), key=lambda top: error(top, high))
        high = min(map(float, above.tops), key=lambda top: error(low, top))
    return float(f"{-low:.6g}"), float(f"{high:.6g}")
