"""Repeat-factor sampling: an epoch draws images with a rare class more often. No torch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from ..evaluation.coco import CocoImage


def repeat_factors(images: Sequence[CocoImage], threshold: float) -> list[float]:
    """How often an epoch draws each image, on average: the largest factor of its classes.

    A class that a fraction f of the images shows has the factor max(1, sqrt(threshold / f)).
    Crowds count for nothing.

    Source: LVIS (arXiv 1908.03195), section "repeat factor sampling"; Detectron2's
    `RepeatFactorTrainingSampler`.
    """
    shown = [set(image.labels[~image.crowd].tolist()) for image in images]
    counts = Counter(label for labels in shown for label in labels)
    factors = {
        label: max(1.0, math.sqrt(threshold * len(images) / count))
        for label, count in counts.items()
    }
    return [max((factors[label] for label in labels), default=1.0) for labels in shown]


def repeated(
    order: Sequence[int], images: Sequence[CocoImage], threshold: float, rng: random.Random
) -> list[int]:
    """The indices of an epoch, each as often as its image's factor says; the fraction of a factor
    is the chance of one more.

    Args:
        order: indices of the images to draw from.
        threshold: 0: each once.
    """
    if not threshold:
        return list(order)
    factors = repeat_factors([images[i] for i in order], threshold)
    counts = (int(factor) + (rng.random() < factor % 1) for factor in factors)
    return [i for i, count in zip(order, counts, strict=True) for _ in range(count)]
