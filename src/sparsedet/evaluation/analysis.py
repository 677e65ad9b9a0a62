"""What a detector gets wrong, and where: curves, confusions, score histogram, photographs.

Computes from ground truth and finished results; `report` draws it. Figures over all scores
(curves, AP by IoU) come from pycocotools' matches, those at one score threshold (confusions,
photographs) from matching here.

A class without an object in the ground truth has no curve and no AP, and is left out of every
mean over classes; its detections still count as false alarms in the confusion matrix.

Glossary: T IoU thresholds, K classes. *Hit*: a detection matched to an object of its class.
*Missed*: an object that no detection of its class was matched to. *False*: a detection that is
no hit; detections that lie in a crowd region of their class are neither.
"""

from __future__ import annotations

from collections import defaultdict
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
from .results import check, overlaps

IOU = 0.5
"""Overlap from which a detection is a hit in all figures at one threshold."""

SCORE = 0.25
"""Score from which detections count there; Ultralytics' choice for its confusion matrix."""

FEW = 10
"""Classes with fewer objects than this are said to rest on little."""

_BACKGROUND = "background"
_BINS = 20


@dataclass(frozen=True)
class Confusion:
    """Which class was taken for which.

    Attributes:
        names: the classes, and last "background".
        matrix: (K + 1, K + 1), detections of row's class on objects of column's class. The last
            row is objects missed, the last column false detections where no object is.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.int64]

    def mistaken(self) -> list[tuple[str, str, int]]:
        """(true class, detected class, how often), most frequent first, background left out."""
        inner = self.matrix[:-1, :-1].copy()
        np.fill_diagonal(inner, 0)
        pairs = [
            (self.names[true], self.names[taken], int(inner[taken, true]))
            for taken, true in np.argwhere(inner)
        ]
        return sorted(pairs, key=lambda pair: (-pair[2], pair))


@dataclass(frozen=True)
class Photograph:
    """One photograph's outcome at the thresholds; indices are into `Outcome`'s lists.

    Attributes:
        found: objects that were found, of `objects`.
        false: detections that are no hit, of `detections`.
        ignored: detections that count neither way.
    """

    image_id: int
    file_name: str
    objects: tuple[dict[str, Any], ...]
    detections: tuple[dict[str, Any], ...]
    found: frozenset[int]
    false: frozenset[int]
    ignored: frozenset[int]

    @property
    def missed(self) -> frozenset[int]:
        plain = {i for i, entry in enumerate(self.objects) if not entry["iscrowd"]}
        return frozenset(plain - self.found)

    @property
    def mistakes(self) -> int:
        return len(self.missed) + len(self.false)


@dataclass(frozen=True)
class Analysis:
    """Everything of one detector over one data set.

    Attributes:
        iou, score: the thresholds of `confusion`, `photographs` and the counts.
        names: category id -> class name.
        ap_by_iou: (10,) AP at IoU 0.50, 0.55, ... 0.95; NaN without ground truth.
        intervals: "AP", "AP50", "AP75" -> with 95 % interval; empty without ground truth.
        curves: class name -> IoU ("0.50", "0.75") -> (101,) precision at recalls 0, 0.01, ... 1.
            The mean over classes has the name "".
        by_score: (101, 3) precision, recall and F1 of all detections together from scores 0,
            0.01, ... 1 on, at `iou`; NaN precision where nothing is left.
        histogram: (20, 2) hits and false detections in score bins of 0.05, at `iou`.
        confusion: at `iou` and `score`.
        photographs: most mistakes first.
        few: classes with fewer than `FEW` objects -> how many.
        absent: classes without an object.
    """

    iou: float
    score: float
    names: dict[int, str]
    ap_by_iou: NDArray[np.float64]
    intervals: dict[str, Interval]
    curves: dict[str, dict[str, NDArray[np.float64]]]
    by_score: NDArray[np.float64]
    histogram: NDArray[np.int64]
    confusion: Confusion
    photographs: tuple[Photograph, ...]
    few: dict[str, int]
    absent: tuple[str, ...]

    def best_score(self) -> tuple[float, float, float, float] | None:
        """(score threshold, precision, recall, F1) where F1 is best; None if nothing is a hit."""
        f1 = self.by_score[:, 2]
        if not np.nanmax(f1, initial=0) > 0:
            return None
        best = int(np.nanargmax(f1))
        precision, recall, value = map(float, self.by_score[best])
        return best / 100, precision, recall, value

    def counts(self) -> tuple[int, int, int]:
        """Objects found, objects missed, false detections."""
        photographs = self.photographs
        return (
            sum(len(p.found) for p in photographs),
            sum(len(p.missed) for p in photographs),
            sum(len(p.false) for p in photographs),
        )

    def honest(self) -> list[str]:
        """What these figures do not settle, one sentence each."""
        lines = []
        if self.absent:
            lines.append(
                f"{len(self.absent)} of {len(self.names)} classes have no object in the ground "
                "truth: they have no AP and are left out of all means."
            )
        if self.few:
            lines.append(
                f"{len(self.few)} classes have fewer than {FEW} objects: their own figures rest on "
                "little, yet each counts in the mean as much as any other class, and the intervals "
                "are narrower than they should be."
            )
        return lines

    def text(self) -> str:
        """Some lines for a terminal."""
        lines = [f"{'AP by IoU':<12}" + "".join(f"{t:>7.2f}" for t in np.linspace(0.5, 0.95, 10))]
        lines.append(" " * 12 + "".join(f"{_round(v)!s:>7}" for v in self.ap_by_iou))
        for name, entry in self.intervals.items():
            lines.append(
                f"{name:<12}{entry.value:7.3f}, 95 % interval over photographs "
                f"{entry.low:.3f} to {entry.high:.3f}"
            )
        found, missed, false = self.counts()
        lines += [
            "",
            f"At IoU {self.iou} and scores from {self.score}: {found} objects found, "
            f"{missed} missed, {false} false detections",
        ]
        if best := self.best_score():
            lines.append(
                "Best F1 {3:.3f} at scores from {0:.2f}: precision {1:.3f}, recall {2:.3f}".format(
                    *best
                )
            )
        for true, taken, times in self.confusion.mistaken()[:5]:
            lines.append(f"  {true} taken for {taken}: {times}")
        lines.append("Most mistakes:")
        for photograph in self.photographs[:5]:
            lines.append(
                f"  {photograph.file_name}: {len(photograph.missed)} missed, "
                f"{len(photograph.false)} false"
            )
        return "\n".join([*lines, *self.honest()])

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
                    "image_id": p.image_id,
                    "file_name": p.file_name,
                    "found": len(p.found),
                    "missed": len(p.missed),
                    "false": len(p.false),
                }
                for p in self.photographs
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
        score: detections from this score on count in the confusion matrix and the photographs;
            curves, histogram and AP have all.

    Raises:
        InputError: as `score_results`; or score is outside 0..1.
    """
    if not 0 <= score <= 1:
        raise InputError(f"score is {score}, expected 0..1")
    scored = check(dataset, results)
    matches = coco_matches(dataset, results)
    objects = {entry.name: int(entry.objects.sum()) for entry in matches.classes}
    by_image: dict[int, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = defaultdict(
        lambda: ([], [])
    )
    for entry in scored.truth:
        by_image[entry["image_id"]][0].append(entry)
    for entry in scored.results:
        if entry["score"] >= score:
            by_image[entry["image_id"]][1].append(entry)
    place = {id_: k for k, id_ in enumerate(scored.names)}
    matrix = np.zeros((len(place) + 1, len(place) + 1), dtype=np.int64)
    files = {image.id: image.file_name for image in dataset.images}
    photographs = [
        _photograph(image_id, files[image_id], *by_image[image_id], place, matrix)
        for image_id in scored.image_ids
    ]
    photographs.sort(key=lambda p: (-p.mistakes, p.image_id))
    return Analysis(
        iou=IOU,
        score=score,
        names=scored.names,
        ap_by_iou=mean_over_classes(average_precision(matches))[0],
        intervals=intervals(matches) if any(objects.values()) else {},
        curves=_curves(matches),
        by_score=_by_score(matches),
        histogram=_histogram(matches),
        confusion=Confusion((*scored.names.values(), _BACKGROUND), matrix),
        photographs=tuple(photographs),
        few={name: n for name, n in objects.items() if 0 < n < FEW},
        absent=tuple(name for name, n in objects.items() if n == 0),
    )


def _photograph(
    image_id: int,
    file_name: str,
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    place: dict[int, int],
    matrix: NDArray[np.int64],
) -> Photograph:
    """Match one photograph and add it to the confusion matrix.

    First within each class as COCO does: by descending score, each detection takes the free
    object that it overlaps most. Then what is left over is matched across classes, best overlap
    first: so a class counts as mistaken only where the right one was not found.
    """
    detections = sorted(detections, key=lambda entry: -entry["score"])
    iou, inside = overlaps(detections, objects)
    of_object = np.array([entry["category_id"] for entry in objects], dtype=np.int64)
    of_detection = np.array([entry["category_id"] for entry in detections], dtype=np.int64)
    crowd = np.array([entry["iscrowd"] for entry in objects], dtype=bool)
    pairs: dict[int, int] = {}  # detection -> object
    free = ~crowd
    ignored = set()
    for d in range(len(detections)):
        own = of_object == of_detection[d]
        candidates = np.where(own & free & (iou[d] >= IOU), iou[d], -1)
        if candidates.size and candidates.max() >= 0:
            pairs[d] = int(candidates.argmax())
            free[pairs[d]] = False
        elif (own & crowd & (inside[d] >= IOU)).any():
            ignored.add(d)
    hits = dict(pairs)
    left = [d for d in range(len(detections)) if d not in pairs and d not in ignored]
    across = [(-iou[d, g], d, g) for d in left for g in np.flatnonzero(free & (iou[d] >= IOU))]
    for _, d, g in sorted(across):
        if d not in pairs and free[g]:
            pairs[d], free[g] = int(g), False
    for d, detection in enumerate(detections):
        if d not in ignored:
            true = place[objects[pairs[d]]["category_id"]] if d in pairs else len(place)
            matrix[place[detection["category_id"]], true] += 1
    for g in np.flatnonzero(free):
        matrix[len(place), place[objects[g]["category_id"]]] += 1
    return Photograph(
        image_id,
        file_name,
        tuple(objects),
        tuple(detections),
        frozenset(hits.values()),
        frozenset(d for d in range(len(detections)) if d not in hits and d not in ignored),
        frozenset(ignored),
    )


def _at(matches: Matches, iou: float) -> int:
    return int(np.argmin(np.abs(matches.thresholds - iou)))


def _curves(matches: Matches) -> dict[str, dict[str, NDArray[np.float64]]]:
    curves: dict[str, dict[str, NDArray[np.float64]]] = {}
    for iou in (0.5, 0.75):
        for entry in matches.classes:
            curve = precision_at_recalls(entry, _at(matches, iou))
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
    """Scores of all detections that count, and whether each is a hit, at `IOU`."""
    t = _at(matches, IOU)
    counted = [~entry.ignored[t] for entry in matches.classes]
    scores = [entry.scores[c] for entry, c in zip(matches.classes, counted, strict=True)]
    hits = [entry.hit[t][c] for entry, c in zip(matches.classes, counted, strict=True)]
    return np.concatenate(scores), np.concatenate(hits)


def _by_score(matches: Matches) -> NDArray[np.float64]:
    scores, hits = _pooled(matches)
    objects = sum(int(entry.objects.sum()) for entry in matches.classes)
    rows = np.full((101, 3), np.nan)
    for i in range(101):
        kept = scores >= i / 100
        hit = np.count_nonzero(hits & kept)
        precision = hit / kept.sum() if kept.any() else np.nan
        recall = hit / objects if objects else np.nan
        total = kept.sum() + objects
        rows[i] = precision, recall, 2 * hit / total if total else np.nan
    return rows


def _histogram(matches: Matches) -> NDArray[np.int64]:
    scores, hits = _pooled(matches)
    bins = np.clip((scores * _BINS).astype(np.int64), 0, _BINS - 1)
    sides = (np.bincount(bins[which], minlength=_BINS) for which in (hits, ~hits))
    return np.stack(list(sides), axis=1)


def _round(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """Numbers for JSON, rounded to what they mean; NaN is null."""
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    return None if np.isnan(value) else round(float(value), 6)
