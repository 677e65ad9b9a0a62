"""Detections matched to objects at one score and one IoU threshold: confusions, image by image.

Figures over all scores come from pycocotools' matches instead, see `average_precision`.

Glossary: *true positive*: a detection matched to an object of its class. *False negative*: an
object without a matched detection of its class. *False positive*: any other detection, except
those in a crowd region of their class, which are *ignored*.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coco import CocoDataset
from .coco_fields import Id, id_order
from .results import ValidatedResults, overlaps

BACKGROUND = "background"


@dataclass(frozen=True)
class Confusion:
    """Which classes the detector confuses.

    Attributes:
        names: the classes, and last "background".
        matrix: (K + 1, K + 1) counts; the row is the detected class, the column the object's class.
            The last row counts missed objects, the last column false positives where no object is.
    """

    names: tuple[str, ...]
    matrix: NDArray[np.int64]

    def mistaken(self) -> list[tuple[str, str, int]]:
        """(true class, detected class, count), most frequent first, without background."""
        inner = self.matrix[:-1, :-1].copy()
        np.fill_diagonal(inner, 0)
        pairs = [
            (self.names[true], self.names[detected], int(inner[detected, true]))
            for detected, true in np.argwhere(inner)
        ]
        return sorted(pairs, key=lambda pair: (-pair[2], pair))


@dataclass(frozen=True)
class ImageOutcome:
    """One image's matches at the thresholds.

    Attributes:
        objects: COCO annotations, crowd regions among them.
        detections: COCO results from the score threshold on, best first.
        found: indices of matched objects.
        false_positives, ignored: indices of detections.
    """

    image_id: Id
    file_name: str
    objects: tuple[dict[str, Any], ...]
    detections: tuple[dict[str, Any], ...]
    found: frozenset[int]
    false_positives: frozenset[int]
    ignored: frozenset[int]

    @property
    def false_negatives(self) -> frozenset[int]:
        """Indices of objects that are neither found nor crowd regions."""
        plain = {i for i, entry in enumerate(self.objects) if not entry["iscrowd"]}
        return frozenset(plain - self.found)

    @property
    def mistakes(self) -> int:
        return len(self.false_negatives) + len(self.false_positives)


def match_images(
    dataset: CocoDataset, validated: ValidatedResults, iou: float, score: float
) -> tuple[Confusion, tuple[ImageOutcome, ...]]:
    """Match the detections of every image.

    Args:
        dataset: images and their file names.
        validated: ground truth and results.
        iou: overlap from which a detection may match an object.
        score: score from which detections count.

    Returns:
        The confusion matrix, and the images with most mistakes first.
    """
    objects: dict[Id, list[dict[str, Any]]] = defaultdict(list)
    for entry in validated.ground_truth:
        objects[entry["image_id"]].append(entry)
    detections: dict[Id, list[dict[str, Any]]] = defaultdict(list)
    for entry in validated.results:
        if entry["score"] >= score:
            detections[entry["image_id"]].append(entry)
    index = {id_: k for k, id_ in enumerate(validated.names)}
    matrix = np.zeros((len(index) + 1, len(index) + 1), dtype=np.int64)
    files = {image.id: image.file_name for image in dataset.images}
    outcomes = [
        _match_image(id_, files[id_], objects[id_], detections[id_], index, matrix, iou)
        for id_ in validated.image_ids
    ]
    outcomes.sort(key=lambda outcome: (-outcome.mistakes, id_order(outcome.image_id)))
    return Confusion((*validated.names.values(), BACKGROUND), matrix), tuple(outcomes)


def _match_image(
    image_id: Id,
    file_name: str,
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    index: dict[Id, int],
    matrix: NDArray[np.int64],
    least_iou: float,
) -> ImageOutcome:
    """Match one image and add it to the confusion matrix.

    First within each class as COCO does: by descending score, each detection takes the free
    object that it overlaps most. What is left over is then matched across classes, best overlap
    first, so that a class counts as mistaken only where the right one was not found.
    """
    detections = sorted(detections, key=lambda entry: -entry["score"])
    iou, over_detection = overlaps(detections, objects)
    object_class = np.array([index[entry["category_id"]] for entry in objects], dtype=np.int64)
    crowd = np.array([entry["iscrowd"] for entry in objects], dtype=bool)
    object_of: dict[int, int] = {}  # detection -> object
    free = ~crowd
    ignored = set()
    for d, detection in enumerate(detections):
        same_class = object_class == index[detection["category_id"]]
        candidates = np.where(same_class & free & (iou[d] >= least_iou), iou[d], -1)
        if candidates.size and candidates.max() >= 0:
            object_of[d] = int(candidates.argmax())
            free[object_of[d]] = False
        elif (same_class & crowd & (over_detection[d] >= least_iou)).any():
            ignored.add(d)
    true_positives = dict(object_of)
    left = [d for d in range(len(detections)) if d not in object_of and d not in ignored]
    across = [
        (-iou[d, g], d, g) for d in left for g in np.flatnonzero(free & (iou[d] >= least_iou))
    ]
    for _, d, g in sorted(across):
        if d not in object_of and free[g]:
            object_of[d], free[g] = int(g), False
    background = len(index)
    for d, detection in enumerate(detections):
        if d not in ignored:
            column = index[objects[object_of[d]]["category_id"]] if d in object_of else background
            matrix[index[detection["category_id"]], column] += 1
    for g in np.flatnonzero(free):
        matrix[background, index[objects[g]["category_id"]]] += 1
    return ImageOutcome(
        image_id,
        file_name,
        tuple(objects),
        tuple(detections),
        frozenset(true_positives.values()),
        frozenset(left),
        frozenset(ignored),
    )
