"""Validates ground truth and results, so that bad input never gives a wrong score.

Reads the annotation file and takes COCO results; matches and counts nothing.

Glossary: a *result* is one detection as COCO writes it: image_id, category_id, bbox (x, y,
width, height in image pixels), score. *Ground truth* is annotations in the same form, crowd
regions (`iscrowd` 1) among them.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import read_json
from ..model.boxes import iou
from .coco import CocoDataset, annotated_object, annotation_keys
from .coco_fields import Id, finite_numbers, id_key, id_order


@dataclass(frozen=True)
class ValidatedResults:
    """Ground truth and results over the same images and classes.

    Attributes:
        image_ids: ascending, numbers before text.
        names: category id -> class name of the classes in the data set, ids ascending.
        ground_truth, results: entries with image_id, category_id, bbox, area and iscrowd; results
            also have a score. In the order of the files.
        annotated: images with annotations of any class.
        warnings: results that were left out, one line each.
    """

    image_ids: tuple[Id, ...]
    names: dict[Id, str]
    ground_truth: list[dict[str, Any]]
    results: list[dict[str, Any]]
    annotated: frozenset[Id]
    warnings: tuple[str, ...]


def validate_results(
    dataset: CocoDataset, results: Any, where: str = "results"
) -> ValidatedResults:
    """Check results against a data set's images and classes.

    Args:
        dataset: the images and classes that count; boxes are read again from its file, where they
            are exact and not clipped.
        results: COCO results. Results of other classes are left out, with a warning. Ids may
            have another form than in the data set (5, 5.0, "5").
        where: name of the results in messages.

    Raises:
        InputError: a result lacks a key, names an unknown image or has other values than finite
            numbers; the message names the entry.
    """
    image_ids = {id_key(image.id): image.id for image in dataset.images}
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    scored = [(id_, name) for id_, name in pairs if id_ != -1]
    names = dict(sorted(scored, key=lambda pair: id_order(pair[0])))
    categories = {id_key(id_): id_ for id_ in names}
    categories |= {key: id_ for key, id_ in dataset.same_class.items() if id_ in names}
    ground_truth, annotated = _ground_truth(dataset, image_ids, categories)
    if not isinstance(results, list):
        raise InputError(f"{where}: no COCO results ({type(results).__name__}, expected a list)")
    warnings = []
    checked = [
        _result(where, index, entry, image_ids, categories) for index, entry in enumerate(results)
    ]
    kept = [result for result in checked if result["category_id"] in names]
    if left_out := len(checked) - len(kept):
        warnings.append(f"{where}: {left_out} of categories that are not scored left out")
    return ValidatedResults(
        tuple(sorted(image_ids.values(), key=id_order)),
        names,
        ground_truth,
        kept,
        annotated,
        tuple(warnings),
    )


def overlaps(
    detections: list[dict[str, Any]], objects: list[dict[str, Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Overlaps of detections (d) and objects (g), given as COCO entries.

    Returns:
        (d, g) intersection over union, and (d, g) `intersection_over_detection`.
    """
    boxes: list[Any] = []  # xyxy, in float64 as pycocotools computes
    for entries in (detections, objects):
        xywh = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
        boxes.append(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]))
    with np.errstate(over="ignore", invalid="ignore"):  # an area past float64 overlaps nothing
        union = np.asarray(iou(*boxes), dtype=np.float64)
        return union, intersection_over_detection(*boxes)


def intersection_over_detection(
    detections: NDArray[np.float64], objects: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pairwise intersection over the detection's own area (d, g); 0 for empty detections.

    Args:
        detections, objects: (d, 4) and (g, 4) xyxy.

    Source: COCO compares detections with crowd regions so (`iscrowd` of pycocotools' mask.iou).
    """
    low = np.maximum(detections[:, None, :2], objects[None, :, :2])
    high = np.minimum(detections[:, None, 2:], objects[None, :, 2:])
    intersection = np.maximum(high - low, 0).prod(axis=2)
    area = np.prod(detections[:, 2:] - detections[:, :2], axis=1)
    own = np.broadcast_to(area[:, None], intersection.shape)
    fraction: NDArray[np.float64] = np.divide(
        intersection, own, out=np.zeros_like(intersection), where=own != 0
    )
    return fraction


def _ground_truth(
    dataset: CocoDataset, image_ids: dict[Id | None, Id], categories: dict[Id | None, Id]
) -> tuple[list[dict[str, Any]], frozenset[Id]]:
    """Annotations of these images and classes, and the images with any annotation.

    Read from the file, because the boxes of `dataset.images` are clipped, float32 and without
    `area`. What cannot be used is in `dataset.problems` already.
    """
    boxes = []
    annotated = set()
    for entry in read_json(dataset.path)["annotations"]:
        image, category = annotation_keys(entry)
        if image not in image_ids:
            continue
        annotated.add(image_ids[image])
        if category not in categories or isinstance(found := annotated_object(entry), str):
            continue
        boxes.append(
            {
                "image_id": image_ids[image],
                "category_id": categories[category],
                "bbox": found.box,
                "area": found.area,
                "iscrowd": int(found.crowd),
            }
        )
    return boxes, frozenset(annotated)


def _result(
    where: str,
    index: int,
    entry: Any,
    image_ids: dict[Id | None, Id],
    categories: dict[Id | None, Id],
) -> dict[str, Any]:
    """One checked result, with the `area` and `iscrowd` that pycocotools reads."""

    def refuse(problem: str) -> InputError:
        return InputError(f"{where}: entry {index}: {problem}")

    if not isinstance(entry, dict):
        raise refuse(f"{type(entry).__name__}, expected an object")
    if missing := {"image_id", "category_id", "bbox", "score"} - set(entry):
        raise refuse(f"no {min(missing)!r}")
    image, category = annotation_keys(entry)
    if image is None or category is None:
        raise refuse(
            "image_id and category_id are "
            f"{reprlib.repr((entry['image_id'], entry['category_id']))}, "
            "expected whole numbers or text"
        )
    if image not in image_ids:
        raise refuse(f"image_id {reprlib.repr(entry['image_id'])} is not in the ground truth")
    box = finite_numbers(entry["bbox"], 4)
    if box is None or min(box[2:]) < 0:
        raise refuse(
            f"bbox is {reprlib.repr(entry['bbox'])}, expected [x, y, width, height], "
            "finite and no size below 0"
        )
    score = finite_numbers([entry["score"]], 1)
    if score is None:
        raise refuse(f"score is {reprlib.repr(entry['score'])}, expected a finite number")
    return {
        "image_id": image_ids[image],
        "category_id": categories.get(category, category),
        "bbox": box,
        "score": score[0],
        "area": box[2] * box[3],
        "iscrowd": 0,
    }
