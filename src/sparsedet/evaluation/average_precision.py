"""Which detection hit which object, class by class, and the average precision that follows.

Matching looks at boxes and is slow; everything counted from it (average precision, curves,
intervals by resampling photographs) needs only the outcome that is kept here. Who matches is
`evaluate` (as pycocotools does) or `omz_precision` (as Open Model Zoo's accuracy checker does);
this module never sees a box.

Glossary: T IoU thresholds, I photographs, D detections of a class, K classes, B resamples.
A detection is a *hit* if it was matched to an object, *ignored* if it counts neither for nor
against (matched to a crowd region). *Counted* objects are those that are no crowd regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's ten, in pycocotools' own floating-point values."""

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""COCO's 101 recalls at which precision is read, likewise."""


@dataclass(frozen=True)
class ClassMatches:
    """The outcome of matching for one class.

    Attributes:
        name, category_id: of the class; the id is the data set's own.
        image: (D,) the detection's photograph as an index into `Matches.image_ids`.
        scores: (D,), descending; equal scores in the order of photographs, as pycocotools has it.
        hit: (T, D) bool.
        ignored: (T, D) bool.
        objects: (I,) counted objects in each photograph.
    """

    name: str
    category_id: int
    image: NDArray[np.int64]
    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """All classes over the same photographs and thresholds.

    Attributes:
        thresholds: (T,) IoU thresholds.
        image_ids: the I photographs, ascending.
        classes: K classes.
    """

    thresholds: NDArray[np.float64]
    image_ids: tuple[int, ...]
    classes: tuple[ClassMatches, ...]


def average_precision(
    matches: Matches, counts: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """COCO's interpolated average precision for each resample, threshold and class.

    A photograph that a resample holds n times counts n times. That is exact, not an estimate:
    copies of a hit only raise precision and copies of a miss never do, so the precision that
    COCO reads at a recall is the one behind the last copy.

    Args:
        matches: the outcome of matching.
        counts: (B, I) how often each photograph is in each resample; default: once, B = 1.

    Returns:
        (B, T, K), NaN where a resample holds no counted object of a class.

    Source: `COCOeval.accumulate` of pycocotools, whose figures it equals.
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
    """(B, T) average precision of one class; `objects` (B,) are all above 0."""
    weights = counts[:, entry.image]  # [B, D]
    seen = np.cumsum(weights, axis=1)
    result = np.zeros((len(counts), len(entry.hit)))
    for t, (hit, ignored) in enumerate(zip(entry.hit, entry.ignored, strict=True)):
        envelope, steps = _envelope(weights, seen, hit, ignored, objects)
        result[:, t] = (envelope * steps).sum(axis=1) / len(RECALL_POINTS)
    return result


def _envelope(
    weights: NDArray[np.int64],
    seen: NDArray[np.int64],
    hit: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    objects: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """COCO's precision at each hit, and how many recall points each is the first to reach.

    Precision falls between two hits, so the envelope (the best precision at this recall or any
    higher) and the first place where a recall is reached are both at hits.

    Args:
        weights, seen: (B, D) copies of each detection, and their running sum.
        hit, ignored: (D,).
        objects: (B,).

    Returns:
        Two arrays (B, hits).
    """
    at = np.flatnonzero(hit & ~ignored)
    hits = np.cumsum(weights[:, at], axis=1)
    out = np.cumsum(np.where(ignored, weights, 0), axis=1)[:, at] if ignored.any() else 0
    precision = hits / (seen[:, at] - out + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALL_POINTS, hits / objects[:, None], side="right")
    return envelope, np.diff(reached, axis=1, prepend=0)


def precision_at_recalls(entry: ClassMatches, threshold: int) -> NDArray[np.float64] | None:
    """The precision-recall curve of one class as COCO reads it, at `RECALL_POINTS`.

    Args:
        threshold: index into `Matches.thresholds`.

    Returns:
        (101,), 0 from the recall on that is never reached, with a mean that is the class's
        average precision; None where there is no counted object.
    """
    objects = entry.objects.sum(keepdims=True)
    if not objects[0]:
        return None
    weights = np.ones((1, len(entry.scores)), dtype=np.int64)
    envelope, steps = _envelope(
        weights, np.cumsum(weights, axis=1), entry.hit[threshold], entry.ignored[threshold], objects
    )
    curve = np.zeros(len(RECALL_POINTS))
    reached = np.repeat(envelope[0], steps[0])
    curve[: len(reached)] = reached
    return curve


def mean_over_classes(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, T, K) -> (B, T), classes without an object left out; NaN where that leaves none."""
    measured = ~np.isnan(precision)
    total = np.where(measured, precision, 0).sum(axis=2)
    number = measured.sum(axis=2)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def class_matches(
    name: str, category_id: int, images: int, cells: dict[int, tuple[Any, Any, Any, Any]]
) -> ClassMatches:
    """Put one class together from its photographs.

    Args:
        images: how many there are.
        cells: photograph index, ascending -> scores (d,), hits (T, d), ignored (T, d) of its
            detections, best first, and whether its objects do not count (g,).
    """
    objects = np.zeros(images, dtype=np.int64)
    scores = [np.empty(0)]
    hit, ignored = ([np.empty((len(IOU_THRESHOLDS), 0))] for _ in range(2))
    for index, (score, hits, out, not_counted) in cells.items():
        objects[index] = np.count_nonzero(np.asarray(not_counted) == 0)
        scores.append(np.asarray(score, dtype=np.float64))
        hit.append(np.asarray(hits))
        ignored.append(np.asarray(out))
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    owner = np.repeat(np.array(list(cells), dtype=np.int64), [len(s) for s in scores[1:]])
    return ClassMatches(
        name,
        category_id,
        owner[order],
        joined[order],
        np.concatenate(hit, axis=1)[:, order] > 0,
        np.concatenate(ignored, axis=1)[:, order] > 0,
        objects,
    )
