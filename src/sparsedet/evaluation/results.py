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
from .coco import CocoDataset, finite_numbers


@dataclass(frozen=True)
class ValidatedResults:
    """Ground truth and results over the same images and classes.

    Attributes:
        image_ids: ascending.
        names: category id -> class name of the classes in the data set, ids ascending.
        ground_truth, results: entries with image_id, category_id, bbox, area and iscrowd; results
            also have a score. In the order of the files.
        annotated: images with annotations of any class.
        warnings: entries that were left out, one line each.
    """

    image_ids: tuple[int, ...]
    names: dict[int, str]
    ground_truth: list[dict[str, Any]]
    results: list[dict[str, Any]]
    annotated: frozenset[int]
    warnings: tuple[str, ...]


def validate_results(
    dataset: CocoDataset, results: Any, where: str = "results"
) -> ValidatedResults:
    """Check results against a data set's images and classes.

    Args:
        dataset: the images and classes that count; boxes are read again from its file, where they
            are exact and not clipped.
        results: COCO results. Results of other classes are left out, with a warning.
        where: name of the results in messages.

    Raises:
        InputError: a result lacks a key, names an unknown image or has other values than finite
            numbers; the message names the entry.
    """
    image_ids = {image.id for image in dataset.images}
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    names = dict(sorted((id_, name) for id_, name in pairs if id_ != -1))
    ground_truth, annotated, warnings = _ground_truth(dataset, image_ids, set(names))
    if not isinstance(results, list):
        raise InputError(f"{where}: no COCO results ({type(results).__name__}, expected a list)")
    checked = [_result(where, index, entry, image_ids) for index, entry in enumerate(results)]
    kept = [result for result in checked if result["category_id"] in names]
    if left_out := len(checked) - len(kept):
        warnings.append(f"{where}: {left_out} of categories that are not scored left out")
    return ValidatedResults(
        tuple(sorted(image_ids)), names, ground_truth, kept, annotated, tuple(warnings)
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
    dataset: CocoDataset, image_ids: set[int], categories: set[int]
) -> tuple[list[dict[str, Any]], frozenset[int], list[str]]:
    """Annotations of these images and classes, the images with any annotation, and warnings.

    Read from the file, because the boxes of `dataset.images` are clipped, float32 and without
    `area`. `load_coco` has checked the file: keys exist and ids are whole numbers.
    """
    boxes, bad = [], 0
    entries = read_json(dataset.path)["annotations"]
    for entry in entries:
        if entry["image_id"] not in image_ids or entry["category_id"] not in categories:
            continue
        box = finite_numbers(entry["bbox"], 4)
        if box is None:
            bad += 1
            continue
        area = finite_numbers([entry.get("area")], 1)
        boxes.append(
            {
                "image_id": int(entry["image_id"]),
                "category_id": int(entry["category_id"]),
                "bbox": box,
                "area": area[0] if area else box[2] * box[3],
                "iscrowd": int(bool(entry.get("iscrowd"))),
            }
        )
    problem = "annotations whose bbox is not four numbers left out"
    annotated = image_ids.intersection(entry["image_id"] for entry in entries)
    return boxes, frozenset(annotated), [f"{dataset.path}: {bad} {problem}"] if bad else []


def _result(where: str, index: int, entry: Any, image_ids: set[int]) -> dict[str, Any]:
    """One checked result, with the `area` and `iscrowd` that pycocotools reads."""

    def refuse(problem: str) -> InputError:
        return InputError(f"{where}: entry {index}: {problem}")

    if not isinstance(entry, dict):
        raise refuse(f"{type(entry).__name__}, expected an object")
    if missing := {"image_id", "category_id", "bbox", "score"} - set(entry):
        raise refuse(f"no {min(missing)!r}")
    ids = finite_numbers([entry["image_id"], entry["category_id"]], 2)
    if ids is None or not all(number.is_integer() for number in ids):
        raise refuse(
            "image_id and category_id are "
            f"{reprlib.repr((entry['image_id'], entry['category_id']))}, "
            "expected whole numbers"
        )
    if entry["image_id"] not in image_ids:
        raise refuse(f"image_id {entry['image_id']} is not in the ground truth")
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
        "image_id": int(entry["image_id"]),
        "category_id": int(entry["category_id"]),
        "bbox": box,
        "score": score[0],
        "area": box[2] * box[3],
        "iscrowd": 0,
    }
