"""Average precision as Open Model Zoo's accuracy checker computes it: its metric `coco_precision`.

The published 38.74 % of `faster-rcnn-resnet101-coco-sparse-60-0001` is this figure, which is not
pycocotools' AP. Both interpolate at 101 recalls, average over ten IoU thresholds and then over
the classes that have objects, and take the 100 best detections of a class in an image.
They differ in what they match:

1. Crowd regions are compared by plain IoU. pycocotools divides by the detection's area alone,
   which forgives a small detection inside a large crowd region; here it is a false positive.
2. An object matched by the best detection of its class in the image can be matched once more.
   (The checker stores the matching detection's index and takes 0 for "not matched".) Some
   doubled detections are therefore true positives, and recall can exceed 1.
3. Overlaps are rounded to float32 before they are compared.
4. Images without any annotation are left out, together with their false positives.
5. Boxes are scored as the network gives them. pycocotools' figures are of detections that are
   clipped to the image.

The first lowers the figure, the second and fourth raise it. Object areas are not used.

Source: read and run from Open Model Zoo, tools/accuracy_checker 0.10.6 (metrics/coco_metrics.py,
annotation_converters/ms_coco.py), with the model's own settings (`max_detections: 100`, defaults
else); its matching is unchanged since 2019. A results file has clipped boxes alone; they are scored
as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .average_precision import IOU_THRESHOLDS, Matches, class_matches
from .coco_fields import Id
from .results import ValidatedResults, overlaps

MAX_DETECTIONS = 100
"""Largest number for a class and image, from the model's accuracy-check.yml."""


def omz_matches(
    validated: ValidatedResults, unclipped: Sequence[list[float]] | None = None
) -> Matches:
    """Match as the accuracy checker does; `average_precision` counts.

    Args:
        unclipped: the bbox of each result as the network gives it, not clipped to the image;
            default: that of the result.
    """
    ground_truth = _by_class_and_image(validated.ground_truth)
    entries = validated.results
    if unclipped is not None:
        boxes = zip(entries, unclipped, strict=True)
        entries = [{**entry, "bbox": box} for entry, box in boxes]
    results = _by_class_and_image(entries)
    classes = []
    for category, name in validated.names.items():
        cells = {}
        for index, image in enumerate(validated.image_ids):
            objects = ground_truth[category].get(image, [])
            detections = results[category].get(image, [])
            if image in validated.annotated and (objects or detections):
                cells[index] = _match_class(objects, detections)
        classes.append(class_matches(name, category, len(validated.image_ids), cells))
    return Matches(IOU_THRESHOLDS, validated.image_ids, tuple(classes))


def _by_class_and_image(
    entries: list[dict[str, Any]],
) -> dict[Id, dict[Id, list[dict[str, Any]]]]:
    """category_id -> image_id -> entries."""
    result: dict[Id, dict[Id, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        result[entry["category_id"]][entry["image_id"]].append(entry)
    return result


def _match_class(
    objects: list[dict[str, Any]], detections: list[dict[str, Any]]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """One class in one image: scores (d,), true positives and ignored (T, d), crowd flags (g,)."""
    detections = sorted(detections, key=lambda entry: -entry["score"])[:MAX_DETECTIONS]  # stable
    objects = sorted(objects, key=lambda entry: entry["iscrowd"])  # crowd regions last
    scores = np.array([entry["score"] for entry in detections], dtype=np.float64)
    crowd = np.array([entry["iscrowd"] for entry in objects], dtype=bool)
    true_positive, ignored = (
        np.zeros((len(IOU_THRESHOLDS), len(detections)), dtype=bool) for _ in range(2)
    )
    if not objects or not detections:
        return scores, true_positive, ignored, crowd
    overlap = overlaps(detections, objects)[0].astype(np.float32)  # [d, g]
    plain = int(np.count_nonzero(~crowd))
    taken = np.zeros((len(IOU_THRESHOLDS), len(objects)), dtype=bool)
    rows = np.arange(len(IOU_THRESHOLDS))
    for d, row in enumerate(overlap):
        free = (row >= IOU_THRESHOLDS[:, None]) & (~taken | crowd)  # [T, g]
        if not free.any():
            continue
        # The best object, the last of equal ones; a crowd region only where no object is left.
        for columns, is_crowd in ((slice(0, plain), False), (slice(plain, None), True)):
            values = np.where(free, row, -1.0)[:, columns]
            if not values.shape[1]:
                continue
            best = values.shape[1] - 1 - np.argmax(values[:, ::-1], axis=1)  # [T]
            matched = (values[rows, best] >= 0) & ~true_positive[:, d]
            true_positive[:, d] |= matched
            if is_crowd:
                ignored[:, d] = matched
            elif d:  # the object of the best detection stays free: point 2 above
                taken[rows[matched], best[matched]] = True
    return scores, true_positive, ignored, crowd
