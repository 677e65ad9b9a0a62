"""Two detectors side by side over the same images: accuracy, speed, size, sparsity.

Runs them interleaved, so that a disturbance of the machine affects both, and judges the difference
in AP by a paired bootstrap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.check import BadImages
from . import (
    AP_NAME,
    OMZ_NAME,
    STAT_NAMES,
    CocoScores,
    DetectionsLike,
    Results,
    coco_matches,
    score,
)
from .analysis import FEW
from .bootstrap import Difference, compare_matches
from .coco import CocoDataset
from .images import chosen, read_images

_RESAMPLES = 1000


class Detect(Protocol):
    """(H, W, 3) uint8 BGR image -> detections in image pixels."""

    def __call__(self, image: NDArray[np.uint8], /) -> DetectionsLike: ...


@dataclass(frozen=True)
class Side:
    """One of the two detectors.

    Attributes:
        name: its name in text.
        scores: its figures.
        milliseconds: median time of one image, from pixels in memory to detections.
        facts: further values for JSON; "size_mb" and "zeros_percent" are in the text, too.
    """

    name: str
    scores: CocoScores
    milliseconds: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Two detectors compared.

    Attributes:
        a, b: the detectors.
        differences: "AP", "AP50", "AP75" -> B minus A with 95 % interval; empty without an object
            in the ground truth.
        speed: A's time over B's, image by image: median, lower and upper quartile.
        warnings: one line each.
    """

    a: Side
    b: Side
    differences: dict[str, Difference]
    speed: tuple[float, float, float]
    warnings: tuple[str, ...]

    def classes(self) -> list[tuple[str, float, float, int]]:
        """(name, AP of A, AP of B, objects) of classes with objects, B's largest loss first."""
        other = self.b.scores.per_class
        rows = [
            (name, row["AP"], other[name]["AP"], int(row["boxes"]))
            for name, row in self.a.scores.per_class.items()
            if row["boxes"]
        ]
        return sorted(rows, key=lambda row: (row[2] - row[1], row[0]))

    def verdict(self) -> str:
        """One sentence on the difference in AP."""
        if not self.differences:
            return "No object in the ground truth: nothing to compare."
        change = self.differences["AP"]
        interval = (
            f"B - A in AP is {change.difference:+.3f}, 95 % interval {change.low:+.3f} to "
            f"{change.high:+.3f}"
        )
        if not change.clear:
            return f"{interval}: these {self.a.scores.images} images do not tell them apart."
        return f"{interval}: B is {'better' if change.difference > 0 else 'worse'}."

    def text(self) -> str:
        """A table for a terminal."""
        a, b = self.a, self.b
        lines = [f"A  {a.name}", f"B  {b.name}", f"{a.scores.images} images", ""]
        lines.append(f"{'':<37}{'A':>9}{'B':>9}{'B - A':>9}   95 % interval")
        rows = [
            (AP_NAME, a.scores.stats["AP"], b.scores.stats["AP"], "AP"),
            (OMZ_NAME, a.scores.coco_precision, b.scores.coco_precision, ""),
        ]
        rows += [(n, a.scores.stats[n], b.scores.stats[n], n) for n in STAT_NAMES[1:]]
        for label, first, second, name in rows:
            line = f"{label:<37}"
            if min(first, second) < 0:
                lines.append(f"{line}{'-':>9}{'-':>9}{'-':>9}")
                continue
            line += f"{first:>9.3f}{second:>9.3f}{second - first:>+9.3f}"
            if change := self.differences.get(name):
                line += f"   {change.low:+.3f} to {change.high:+.3f}"
            lines.append(line)
        lines.append("")
        for label, key in (
            ("size, MB", "size_mb"),
            ("zeros of all parameters, %", "zeros_percent"),
        ):
            if key in a.facts and key in b.facts:
                first, second = a.facts[key], b.facts[key]
                lines.append(f"{label:<37}{first:>9.1f}{second:>9.1f}{second - first:>+9.1f}")
        median, low, high = self.speed
        lines.append(
            f"{'an image, ms (median)':<37}{a.milliseconds:>9.1f}{b.milliseconds:>9.1f}"
            f"{median:>8.2f}x   as fast (median; interquartile range over images "
            f"{low:.2f}-{high:.2f})"
        )
        classes = [row for row in self.classes() if row[3] >= FEW]
        changed = [row for row in classes if row[1] != row[2]]
        shown = changed if len(changed) <= 10 else [*changed[:5], *changed[-5:]]
        if shown:
            width = max(len(name) for name, *_ in shown)
            lines += [
                "",
                f"Largest changes of classes with at least {FEW} objects",
                f"{'class':<{width}}{'A':>9}{'B':>9}{'B - A':>9}{'objects':>9}",
            ]
            lines += [
                f"{name:<{width}}{first:>9.3f}{second:>9.3f}{second - first:>+9.3f}{boxes:>9}"
                for name, first, second, boxes in shown
            ]
        lines += ["", self.verdict()]
        if few := sum(row[3] < FEW for row in self.classes()):
            lines.append(
                f"{few} classes have fewer than {FEW} objects: the intervals are narrower "
                "than they should be, that of AP the least."
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            **{
                key: {
                    "name": side.name,
                    "milliseconds": side.milliseconds,
                    **side.facts,
                    "scores": side.scores.to_json(),
                }
                for key, side in (("a", self.a), ("b", self.b))
            },
            "differences": {name: asdict(change) for name, change in self.differences.items()},
            "speed": dict(
                zip(("median", "lower_quartile", "upper_quartile"), self.speed, strict=True)
            ),
            "classes": {name: second - first for name, first, second, _ in self.classes()},
            "verdict": self.verdict(),
            "warnings": list(self.warnings),
        }


def compare(
    detect_a: Detect,
    detect_b: Detect,
    dataset: CocoDataset,
    *,
    names: tuple[str, str] = ("A", "B"),
    facts: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
    bad_images: BadImages = "stop",
    progress: Callable[[int, int], None] | None = None,
    skip_bad: bool | None = None,
) -> Comparison:
    """Run both detectors over every image and compare.

    Args:
        detect_a, detect_b: as for `evaluate`. Each runs once before it is timed; the order of the
            two alternates from image to image.
        dataset, bad_images, progress, skip_bad: as for `evaluate`.
        names, facts: see `Side`.

    Raises:
        InputError: as `evaluate`; or no image can be read.
    """
    both = detect_a, detect_b
    collected = Results(dataset), Results(dataset)
    seconds: tuple[list[float], list[float]] = ([], [])
    warnings = []
    images = read_images(dataset, chosen(bad_images, skip_bad))
    for done, (image_id, image, problem) in enumerate(images, start=1):
        if image is None:
            warnings.append(problem)
        else:
            if not seconds[0]:
                for detect in both:
                    detect(image)
            for which in (0, 1) if done % 2 else (1, 0):
                start = time.perf_counter()
                detections = both[which](image)
                seconds[which].append(time.perf_counter() - start)
                collected[which].add(image_id, detections)
        if progress is not None:
            progress(done, len(dataset.images))
    if not seconds[0]:
        raise InputError(f"{dataset.root}: none of the images can be read")
    scores = [score(dataset, side.entries, unclipped=side.unclipped) for side in collected]
    matches = [coco_matches(dataset, side.entries) for side in collected]
    measurable = any(entry.objects.any() for entry in matches[0].classes)
    ratio = np.array(seconds[0]) / np.array(seconds[1])
    a, b = (
        Side(name, side_scores, float(np.median(times)) * 1000, side_facts)
        for name, side_scores, times, side_facts in zip(names, scores, seconds, facts, strict=True)
    )
    # Both repeat the warnings on the ground truth.
    for lines in (*(side.warnings() for side in collected), *(s.warnings for s in scores)):
        warnings += [line for line in lines if line not in warnings]
    low, median, high = map(float, np.quantile(ratio, [0.25, 0.5, 0.75]))
    return Comparison(
        a,
        b,
        compare_matches(*matches, resamples=_RESAMPLES) if measurable else {},
        (median, low, high),
        tuple(warnings),
    )
