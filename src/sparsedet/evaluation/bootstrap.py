"""Confidence intervals of AP by resampling images (bootstrap).

Draws data sets of the same size from the images, with replacement, and scores each anew: average
precision is accumulated again over the whole resample, not averaged over images. Two detectors
are compared *paired*, both on the same resample, because most of the spread comes from hard
images, which both share. Boxes are matched once, see `average_precision`.

The interval covers other images of the same kind. It does not cover training the model again, and
resampling does not make up for a class with few images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import coco_matches
from .average_precision import Matches, average_precision, mean_over_classes
from .coco import CocoDataset

FIGURES = ("AP", "AP50", "AP75")
_BATCH = 200  # resamples at a time; keeps memory at some tens of MB


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Attributes:
        value: on the images as they are.
        low, high: normal-approximation interval: value -/+ z * standard deviation of the resamples
            (z = 1.96 for 95 %), within 0..1.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Figure of detector B minus that of detector A, on the same images.

    Attributes:
        a, b: the two figures, 0..1.
        difference, low, high: b - a and its percentile interval over paired resamples.
        above: fraction of the resamples where B is above A, 0..1.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    above: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    dataset: CocoDataset,
    detections_a: Sequence[dict[str, Any]],
    detections_b: Sequence[dict[str, Any]],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two detectors' finished results over the same images.

    Args:
        dataset: ground truth, as for `evaluate`; its `images` are resampled.
        detections_a, detections_b: COCO results, as `evaluate` returns them.
        resamples: number of resamples, at least 10; with 1,000 the bounds vary by a few hundredths
            of the interval.
        confidence: level of the interval, between 0 and 1.
        seed: seed of the resampling; the same seed gives the same interval.

    Returns:
        "AP", "AP50" and "AP75" -> Difference (B minus A).

    Raises:
        InputError: as `score_results`; there is no object; or an argument is out of range.
    """
    matches = [coco_matches(dataset, list(results)) for results in (detections_a, detections_b)]
    return compare_matches(*matches, resamples=resamples, confidence=confidence, seed=seed)


def compare_matches(
    a: Matches, b: Matches, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """`paired_bootstrap` of detections that are matched already, over the same images."""
    if a.image_ids != b.image_ids:
        raise InputError("the two sets of matches are not over the same images")
    (value_a, resampled_a), (value_b, resampled_b) = (
        _resampled(matches, resamples, confidence, seed) for matches in (a, b)
    )
    result = {}
    for figure in FIGURES:
        first, second = value_a[figure], value_b[figure]
        change = resampled_b[figure] - resampled_a[figure]
        low, high = _bounds(change, confidence)
        above = float(np.mean(change > 0))
        result[figure] = Difference(first, second, second - first, low, high, above)
    return result


def intervals(
    matches: Matches, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """The figures of one detector with their intervals; arguments as `paired_bootstrap`.

    Not by percentiles: resamples of a class with few objects score higher than the class itself,
    which makes percentiles too high (docs/evaluation.md has the measured coverage). In a
    difference of two detectors this largely cancels.
    """
    value, resampled = _resampled(matches, resamples, confidence, seed)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    result = {}
    for figure in FIGURES:
        half = z * float(resampled[figure].std())
        low, high = max(0.0, value[figure] - half), min(1.0, value[figure] + half)
        result[figure] = Interval(value[figure], low, high)
    return result


def _resampled(
    matches: Matches, resamples: int, confidence: float, seed: int
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Each figure on the images as they are, and (b,) over the resamples that have any object."""
    if resamples < 10:
        raise InputError(f"resamples is {resamples}, expected at least 10")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected between 0 and 1")
    if not any(entry.objects.any() for entry in matches.classes):
        raise InputError("no object to score: the ground truth of these images is empty")
    images = len(matches.image_ids)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(images, np.full(images, 1 / images), size=resamples)  # [B, I]
    whole = mean_over_classes(average_precision(matches))
    batches = [counts[start : start + _BATCH] for start in range(0, resamples, _BATCH)]
    resampled = np.concatenate([mean_over_classes(average_precision(matches, b)) for b in batches])
    # A resample without any object has no figure; it is the same resample for both detectors.
    resampled = resampled[~np.isnan(resampled[:, 0])]
    return (
        {name: float(values[0]) for name, values in _figures(matches, whole).items()},
        _figures(matches, resampled),
    )


def _figures(matches: Matches, precision: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """(B, T) mean precision -> the figures, (B,) each."""
    at = {round(float(t), 2): index for index, t in enumerate(matches.thresholds)}
    columns = precision.mean(axis=1), precision[:, at[0.5]], precision[:, at[0.75]]
    return dict(zip(FIGURES, columns, strict=True))


def _bounds(resampled: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)
