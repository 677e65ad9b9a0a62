"""Average precision as Open Model Zoo's accuracy checker computes it: its metric `coco_precision`.

The published 38.74 % of `faster-rcnn-resnet101-coco-sparse-60-0001` is this figure, which is not
pycocotools' AP. Both interpolate at 101 recalls, average over ten IoU thresholds and then over
the classes that have objects, and take the 100 best detections of a class in a photograph.
They differ in who matches whom:

1. Crowd regions are compared by plain IoU. pycocotools divides by the detection's area alone,
   so that a small detection inside a large crowd region is forgiven; here it is a false alarm.
2. An object that was matched by the best detection of its class in the photograph can be matched
   once more. (The checker stores the matching detection's index and takes 0 for "not matched".)
   Some doubles are therefore hits instead of false alarms, and recall can pass 1.
3. Overlaps are rounded to float32 before they are compared.
4. Photographs without any annotation are left out, and the false alarms on them with them.

The first lowers the figure, the second and fourth raise it. Areas play no part.

Source: read and run from Open Model Zoo, tools/accuracy_checker 0.10.6 (metrics/coco_metrics.py,
annotation_converters/ms_coco.py), with the model's own settings (`max_detections: 100`, all else
by default); its matching is unchanged since 2019. Not covered, for results do not hold it: the
checker's boxes are float32 and not clipped to the photograph.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .average_precision import IOU_THRESHOLDS, Matches, class_matches
from .results import Scored, overlaps

MAX_DETECTIONS = 100
"""Of a class in a photograph, as the model's accuracy-check.yml says."""


def omz_matches(scored: Scored) -> Matches:
    """Match ground truth and results the accuracy checker's way; `average_precision` counts."""
    truth, results = (_by_class_and_image(entries) for entries in (scored.truth, scored.results))
    classes = []
    for category, name in scored.names.items():
        cells = {}
        for index, image in enumerate(scored.image_ids):
            objects, found = truth[category].get(image, []), results[category].get(image, [])
            if image in scored.annotated and (objects or found):
                cells[index] = _match_image(objects, found)
        classes.append(class_matches(name, category, len(scored.image_ids), cells))
    return Matches(IOU_THRESHOLDS, scored.image_ids, tuple(classes))


def _by_class_and_image(
    entries: list[dict[str, Any]],
) -> dict[int, dict[int, list[dict[str, Any]]]]:
    groups: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        groups[entry["category_id"]][entry["image_id"]].append(entry)
    return groups


def _match_image(
    objects: list[dict[str, Any]], found: list[dict[str, Any]]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """One class in one photograph: scores (d,), hits, ignored (T, d), crowd flags (g,)."""
    found = sorted(found, key=lambda entry: -entry["score"])[:MAX_DETECTIONS]  # stable
    objects = sorted(objects, key=lambda entry: entry["iscrowd"])  # crowd regions last
    scores = np.array([entry["score"] for entry in found], dtype=np.float64)
    crowd = np.array([entry["iscrowd"] for entry in objects], dtype=bool)
    hit, ignored = (np.zeros((len(IOU_THRESHOLDS), len(found)), dtype=bool) for _ in range(2))
    if not objects or not found:
        return scores, hit, ignored, crowd
    overlap = overlaps(found, objects)[0].astype(np.float32)  # [d, g]
    plain = int(np.count_nonzero(~crowd))
    taken = np.zeros((len(IOU_THRESHOLDS), len(objects)), dtype=bool)
    rows = np.arange(len(IOU_THRESHOLDS))
    for d, row in enumerate(overlap):
        free = (row >= IOU_THRESHOLDS[:, None]) & (~taken | crowd)  # [T, g]
        if not free.any():
            continue
        # The best object, of equal ones the last; a crowd region only where no object is left.
        for columns, is_crowd in ((slice(0, plain), False), (slice(plain, None), True)):
            values = np.where(free, row, -1.0)[:, columns]
            if not values.shape[1]:
                continue
            best = values.shape[1] - 1 - np.argmax(values[:, ::-1], axis=1)  # [T]
            matched = (values[rows, best] >= 0) & ~hit[:, d]
            hit[:, d] |= matched
            if is_crowd:
                ignored[:, d] = matched
            elif d:  # what the best detection matched stays free: point 2 above
                taken[rows[matched], best[matched]] = True
    return scores, hit, ignored, crowd
