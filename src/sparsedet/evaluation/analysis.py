"""What a detector gets wrong: curves, confusions, score histogram, images with most mistakes.

Computes from ground truth and finished results; `report` draws the figures. Figures over all
scores (curves, AP by IoU) come from pycocotools' matches, those at one score threshold (confusions,
images) from `confusion`.

A class without an object in the ground truth has no curve and no AP, and is left out of every
mean over classes; its detections still count as false positives in the confusion matrix.

Glossary: T IoU thresholds, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import coco_matches
from .average_precision import (
    Matches,
    average_precision,
    mean_over_classes,
    precision_at_recalls,
)
from .bootstrap import Interval, intervals
from .coco import CocoDataset
from .confusion import Confusion, ImageOutcome, match_images
from .results import validate_results

IOU = 0.5
"""Overlap from which a detection is a true positive in all figures at one threshold."""

SCORE = 0.25
"""Score from which detections count there; Ultralytics' choice for its confusion matrix."""

FEW = 10
"""Classes with fewer objects are reported as too small a sample."""

_BINS = 20


@dataclass(frozen=True)
class Analysis:
    """All figures of one detector over one data set.

    Attributes:
        iou, score: thresholds of `confusion`, `images` and `counts`.
        names: category id -> class name.
        ap_by_iou: (10,) AP at IoU 0.50, 0.55, ... 0.95; NaN without ground truth.
        intervals: "AP", "AP50", "AP75" -> figure with 95 % interval; empty without ground truth.
        curves: class name -> IoU ("0.50", "0.75") -> (101,) precision at recalls 0, 0.01, ... 1.
            The mean over classes has the name "".
        by_score: (101, 3) precision, recall and F1 of all detections together, from scores 0,
            0.01, ... 1 on, at `iou`; NaN precision where no detection is left.
        histogram: (20, 2) true and false positives in score bins of 0.05, at `iou`.
        confusion: at `iou` and `score`.
        images: most mistakes first.
        few: classes with fewer than `FEW` objects -> number of objects.
        absent: classes without an object.
    """

    iou: float
    score: float
    names: dict[int | str, str]
    ap_by_iou: NDArray[np.float64]
    intervals: dict[str, Interval]
    curves: dict[str, dict[str, NDArray[np.float64]]]
    by_score: NDArray[np.float64]
    histogram: NDArray[np.int64]
    confusion: Confusion
    images: tuple[ImageOutcome, ...]
    few: dict[str, int]
    absent: tuple[str, ...]

    def best_score(self) -> tuple[float, float, float, float] | None:
        """(score threshold, precision, recall, F1) of the best F1; None without true positives."""
        f1 = self.by_score[:, 2]
        if not np.nanmax(f1, initial=0) > 0:
            return None
        best = int(np.nanargmax(f1))
        precision, recall, value = map(float, self.by_score[best])
        return best / 100, precision, recall, value

    def counts(self) -> tuple[int, int, int]:
        """Numbers of true positives, false negatives and false positives."""
        return (
            sum(len(image.found) for image in self.images),
            sum(len(image.false_negatives) for image in self.images),
            sum(len(image.false_positives) for image in self.images),
        )

    def caveats(self) -> list[str]:
        """What these figures cannot settle, one sentence each."""
        lines = []
        if self.absent:
            lines.append(
                f"{len(self.absent)} of {len(self.names)} classes have no object in the ground "
                "truth: they have no AP and are left out of all means."
            )
        if self.few:
            lines.append(
                f"{len(self.few)} classes have fewer than {FEW} objects, too small a sample for "
                "their own figures. Each counts in the mean as much as any other class, and the "
                "intervals are narrower than they should be."
            )
        return lines

    def text(self) -> str:
        """A summary for a terminal."""
        lines = [f"{'AP by IoU':<12}" + "".join(f"{t:>7.2f}" for t in np.linspace(0.5, 0.95, 10))]
        lines.append(" " * 12 + "".join(f"{_round(v)!s:>7}" for v in self.ap_by_iou))
        for name, entry in self.intervals.items():
            lines.append(
                f"{name:<12}{entry.value:7.3f}, 95 % interval over images "
                f"{entry.low:.3f} to {entry.high:.3f}"
            )
        true_positives, false_negatives, false_positives = self.counts()
        lines += [
            "",
            f"At IoU {self.iou} and scores from {self.score}: {true_positives} objects found, "
            f"{false_negatives} missed, {false_positives} false detections",
        ]
        if best := self.best_score():
            score, precision, recall, f1 = best
            lines.append(
                f"Best F1 {f1:.3f} at scores from {score:.2f}: precision {precision:.3f}, "
                f"recall {recall:.3f}"
            )
        for true, detected, times in self.confusion.mistaken()[:5]:
            lines.append(f"  {true} taken for {detected}: {times}")
        lines.append("Most mistakes:")
        for image in self.images[:5]:
            lines.append(
                f"  {image.file_name}: {len(image.false_negatives)} missed, "
                f"{len(image.false_positives)} false"
            )
        return "\n".join([*lines, *self.caveats()])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON-ready values; what cannot be measured is null."""
        recalls, grid = np.linspace(0, 1, 101), np.linspace(0, 1, 101)
        return {
            "iou": self.iou,
            "score": self.score,
            "ap_by_iou": {f"{0.5 + i * 0.05:.2f}": _plain(v) for i, v in enumerate(self.ap_by_iou)},
            "intervals": {name: asdict(entry) for name, entry in self.intervals.items()},
            "recalls": _plain(recalls),
            "precision": {
                name or "mean over classes": {t: _plain(v) for t, v in curve.items()}
                for name, curve in self.curves.items()
            },
            "by_score": {
                "score": _plain(grid),
                **{
                    name: _plain(self.by_score[:, i])
                    for i, name in enumerate(("precision", "recall", "f1"))
                },
            },
            "histogram": {
                "hits": self.histogram[:, 0].tolist(),
                "false": self.histogram[:, 1].tolist(),
            },
            "confusion": {
                "names": list(self.confusion.names),
                "detected_by_true": self.confusion.matrix.tolist(),
            },
            "photographs": [
                {
                    "image_id": image.image_id,
                    "file_name": image.file_name,
                    "found": len(image.found),
                    "missed": len(image.false_negatives),
                    "false": len(image.false_positives),
                }
                for image in self.images
            ],
            "few_objects": self.few,
            "without_objects": list(self.absent),
        }


def analyse(
    dataset: CocoDataset, results: list[dict[str, Any]], *, score: float = SCORE
) -> Analysis:
    """Analyse finished results over a data set.

    Args:
        dataset: as for `evaluate`.
        results: as `evaluate` returns them.
        score: score from which detections count in the confusion matrix and the images, 0..1;
            curves, histogram and AP have all detections.

    Raises:
        InputError: as `score_results`; or score is outside 0..1.
    """
    if not 0 <= score <= 1:
        raise InputError(f"score is {score}, expected 0..1")
    validated = validate_results(dataset, results)
    matches = coco_matches(dataset, results)
    objects = {entry.name: int(entry.objects.sum()) for entry in matches.classes}
    confusion, images = match_images(dataset, validated, IOU, score)
    return Analysis(
        iou=IOU,
        score=score,
        names=validated.names,
        ap_by_iou=mean_over_classes(average_precision(matches))[0],
        intervals=intervals(matches) if any(objects.values()) else {},
        curves=_curves(matches),
        by_score=_by_score(matches),
        histogram=_histogram(matches),
        confusion=confusion,
        images=images,
        few={name: n for name, n in objects.items() if 0 < n < FEW},
        absent=tuple(name for name, n in objects.items() if n == 0),
    )


def _threshold_index(matches: Matches, iou: float) -> int:
    return int(np.argmin(np.abs(matches.thresholds - iou)))


def _curves(matches: Matches) -> dict[str, dict[str, NDArray[np.float64]]]:
    """See `Analysis.curves`."""
    curves: dict[str, dict[str, NDArray[np.float64]]] = {}
    for iou in (0.5, 0.75):
        for entry in matches.classes:
            curve = precision_at_recalls(entry, _threshold_index(matches, iou))
            if curve is not None:
                curves.setdefault(entry.name, {})[f"{iou:.2f}"] = curve
    if curves:
        mean = {
            t: np.mean([curve[t] for curve in curves.values()], axis=0)
            for t in next(iter(curves.values()))
        }
        curves = {"": mean, **curves}
    return curves


def _pooled(matches: Matches) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of all detections that count, and whether each is a true positive, at `IOU`."""
    t = _threshold_index(matches, IOU)
    counted = [~entry.ignored[t] for entry in matches.classes]
    scores = [entry.scores[c] for entry, c in zip(matches.classes, counted, strict=True)]
    true = [entry.true_positive[t][c] for entry, c in zip(matches.classes, counted, strict=True)]
    return np.concatenate(scores), np.concatenate(true)


def _by_score(matches: Matches) -> NDArray[np.float64]:
    """See `Analysis.by_score`."""
    scores, true = _pooled(matches)
    objects = sum(int(entry.objects.sum()) for entry in matches.classes)
    rows = np.full((101, 3), np.nan)
    for i in range(101):
        kept = scores >= i / 100
        true_positives = np.count_nonzero(true & kept)
        precision = true_positives / kept.sum() if kept.any() else np.nan
        recall = true_positives / objects if objects else np.nan
        total = kept.sum() + objects
        rows[i] = precision, recall, 2 * true_positives / total if total else np.nan
    return rows


def _histogram(matches: Matches) -> NDArray[np.int64]:
    """See `Analysis.histogram`."""
    scores, true = _pooled(matches)
    bins = np.clip((scores * _BINS).astype(np.int64), 0, _BINS - 1)
    columns = (np.bincount(bins[which], minlength=_BINS) for which in (true, ~true))
    return np.stack(list(columns), axis=1)


def _round(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """Numbers for JSON, rounded to six places; NaN is null."""
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    return None if np.isnan(value) else round(float(value), 6)
