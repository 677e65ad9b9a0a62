"""Average precision from matches of detections to objects, class by class.

Matching looks at boxes and is slow; everything counted from it (average precision, curves,
intervals by resampling images) needs only the matches kept here. `coco_matches` matches as
pycocotools does, `omz_metric` as Open Model Zoo's accuracy checker does; this module never sees
a box.

Glossary: T IoU thresholds, I images, D detections of a class, K classes, B resamples.
A detection is a *true positive* if it is matched to an object, *ignored* if it counts neither
way (matched to a crowd region). *Counted* objects are all but crowd regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's ten, in pycocotools' own floating-point values."""

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""COCO's 101 recalls at which precision is read, in the same way."""


@dataclass(frozen=True)
class ClassMatches:
    """Matches of one class.

    Attributes:
        name, category_id: the class; the id is the data set's own.
        image: (D,) the detection's image as an index into `Matches.image_ids`.
        scores: (D,), descending; equal scores in the order of images, as in pycocotools.
        true_positive, ignored: (T, D) bool.
        objects: (I,) counted objects in each image.
    """

    name: str
    category_id: int | str
    image: NDArray[np.int64]
    scores: NDArray[np.float64]
    true_positive: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Matches of all classes over the same images and thresholds.

    Attributes:
        thresholds: (T,) IoU thresholds.
        image_ids: the I images, ascending.
        classes: the K classes.
    """

    thresholds: NDArray[np.float64]
    image_ids: tuple[int | str, ...]
    classes: tuple[ClassMatches, ...]


def average_precision(
    matches: Matches, counts: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """COCO's interpolated average precision for each resample, threshold and class.

    An image that is in a resample n times counts n times. This is exact, not an estimate: copies
    of a true positive only raise precision and copies of a false positive never do, so the
    precision that COCO reads at a recall is the one behind the last copy.

    Args:
        matches: matched detections.
        counts: (B, I) how often each image is in each resample; default: once, B = 1.

    Returns:
        (B, T, K), NaN where a resample has no counted object of a class.

    Source: `COCOeval.accumulate` of pycocotools; the figures are equal.
    """
    if counts is None:
        counts = np.ones((1, len(matches.image_ids)), dtype=np.int64)
    result = np.full((len(counts), len(matches.thresholds), len(matches.classes)), np.nan)
    for k, entry in enumerate(matches.classes):
        present = counts @ entry.objects  # [B]
        rows = np.flatnonzero(present)
        if rows.size:
            result[rows, :, k] = _class_precision(entry, counts[rows], present[rows])
    return result


def _class_precision(
    entry: ClassMatches, counts: NDArray[np.int64], objects: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(B, T) average precision of one class; `objects` (B,), all above 0."""
    weights = counts[:, entry.image]  # [B, D]
    seen = np.cumsum(weights, axis=1)
    result = np.zeros((len(counts), len(entry.true_positive)))
    for t, (true_positive, ignored) in enumerate(
        zip(entry.true_positive, entry.ignored, strict=True)
    ):
        envelope, steps = _envelope(weights, seen, true_positive, ignored, objects)
        result[:, t] = (envelope * steps).sum(axis=1) / len(RECALL_POINTS)
    return result


def _envelope(
    weights: NDArray[np.int64],
    seen: NDArray[np.int64],
    true_positive: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    objects: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """COCO's precision at each true positive, and the number of recall points it reaches first.

    Precision falls between two true positives, so the envelope (the best precision at this recall
    or any higher) and the first detection that reaches a recall are both at true positives.

    Args:
        weights, seen: (B, D) copies of each detection, and their running sum.
        true_positive, ignored: (D,).
        objects: (B,) counted objects.

    Returns:
        Two arrays (B, true positives).
    """
    at = np.flatnonzero(true_positive & ~ignored)
    true_positives = np.cumsum(weights[:, at], axis=1)
    not_counted = np.cumsum(np.where(ignored, weights, 0), axis=1)[:, at] if ignored.any() else 0
    precision = true_positives / (seen[:, at] - not_counted + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALL_POINTS, true_positives / objects[:, None], side="right")
    return envelope, np.diff(reached, axis=1, prepend=0)


def precision_at_recalls(entry: ClassMatches, threshold: int) -> NDArray[np.float64] | None:
    """The precision-recall curve of one class as COCO reads it, at `RECALL_POINTS`.

    Args:
        threshold: index into `Matches.thresholds`.

    Returns:
        (101,), 0 from the first recall that is not reached on; its mean is the class's average
        precision. None without a counted object.
    """
    objects = entry.objects.sum(keepdims=True)
    if not objects[0]:
        return None
    weights = np.ones((1, len(entry.scores)), dtype=np.int64)
    envelope, steps = _envelope(
        weights,
        np.cumsum(weights, axis=1),
        entry.true_positive[threshold],
        entry.ignored[threshold],
        objects,
    )
    curve = np.zeros(len(RECALL_POINTS))
    reached = np.repeat(envelope[0], steps[0])
    curve[: len(reached)] = reached
    return curve


def mean_over_classes(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, T, K) -> (B, T), without the classes that have no object; NaN where no class has one."""
    measured = ~np.isnan(precision)
    total = np.where(measured, precision, 0).sum(axis=2)
    number = measured.sum(axis=2)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def class_matches(
    name: str, category_id: int | str, images: int, cells: dict[int, tuple[Any, Any, Any, Any]]
) -> ClassMatches:
    """Collect one class from its images.

    Args:
        name, category_id: the class.
        images: number of images.
        cells: image index, ascending -> scores (d,), true positives (T, d) and ignored (T, d) of
            the detections, best first, and whether the objects do not count (g,).
    """
    objects = np.zeros(images, dtype=np.int64)
    scores = [np.empty(0)]
    true_positive, ignored = ([np.empty((len(IOU_THRESHOLDS), 0))] for _ in range(2))
    for index, (score, matched, crowd, not_counted) in cells.items():
        objects[index] = np.count_nonzero(np.asarray(not_counted) == 0)
        scores.append(np.asarray(score, dtype=np.float64))
        true_positive.append(np.asarray(matched))
        ignored.append(np.asarray(crowd))
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    owner = np.repeat(np.array(list(cells), dtype=np.int64), [len(s) for s in scores[1:]])
    return ClassMatches(
        name,
        category_id,
        owner[order],
        joined[order],
        np.concatenate(true_positive, axis=1)[:, order] > 0,
        np.concatenate(ignored, axis=1)[:, order] > 0,
        objects,
    )
