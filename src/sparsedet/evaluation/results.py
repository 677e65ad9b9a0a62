"""Validates ground truth and results, so that bad input never gives a wrong score.

Reads the annotation file and takes COCO results; matches and counts nothing.

Glossary: a *result* is one detection as COCO writes it: image_id, category_id, bbox (x, y,
width, height in image pixels), score; with a mask also segmentation, and then a bbox is not needed.
*Ground truth* is annotations in the same form, crowd regions (`iscrowd` 1) among them.
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
from .segmentation import area_and_box, to_rle


@dataclass(frozen=True)
class ValidatedResults:
    """Ground truth and results over the same images and classes.

    Attributes:
        image_ids: ascending, numbers before text.
        names: category id -> class name of the classes in the data set, ids ascending.
        ground_truth, results: entries with image_id, category_id, bbox, area and iscrowd; results
            also have a score. In the order of the files.
        annotated: images with annotations of any class.
        warnings: entries that were left out, one line each.
        sizes: height and width of each image.
    """

    image_ids: tuple[Id, ...]
    names: dict[Id, str]
    ground_truth: list[dict[str, Any]]
    results: list[dict[str, Any]]
    annotated: frozenset[Id]
    warnings: tuple[str, ...]
    sizes: dict[Id, tuple[int, int]]


def validate_results(
    dataset: CocoDataset, results: Any, where: str = "results", *, masks: bool = False
) -> ValidatedResults:
    """Check results against a data set's images and classes.

    Args:
        dataset: the images and classes that count; boxes are read again from its file, where they
            are exact and not clipped.
        results: COCO results. Results of other classes are left out, with a warning. Ids may
            have another form than in the data set (5, 5.0, "5").
        where: name of the results in messages.
        masks: for the figures of masks: each entry has its `segmentation` as pycocotools' RLE, and
            a result the area of its mask. Annotations without a mask are left out, with a warning.

    Raises:
        InputError: a result lacks a key, names an unknown image, has other values than finite
            numbers or a damaged mask; the message names the entry.
    """
    image_ids = {id_key(image.id): image.id for image in dataset.images}
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    scored = [(id_, name) for id_, name in pairs if id_ != -1]
    names = dict(sorted(scored, key=lambda pair: id_order(pair[0])))
    categories = {id_key(id_): id_ for id_ in names}
    categories |= {key: id_ for key, id_ in dataset.same_class.items() if id_ in names}
    sizes = {image.id: (image.height, image.width) for image in dataset.images}
    warnings: list[str] = []
    ground_truth, annotated = _ground_truth(dataset, image_ids, categories)
    if masks:
        ground_truth = _with_masks(dataset, ground_truth, sizes, warnings)
    if not isinstance(results, list):
        raise InputError(f"{where}: no COCO results ({type(results).__name__}, expected a list)")
    of_image = image_ids, sizes, masks
    checked = [
        _result(where, index, entry, categories, *of_image) for index, entry in enumerate(results)
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
        sizes,
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
                "segmentation": entry.get("segmentation"),
                "has_area": finite_numbers([entry.get("area")], 1) is not None,
            }
        )
    return boxes, frozenset(annotated)


def _with_masks(
    dataset: CocoDataset,
    ground_truth: list[dict[str, Any]],
    sizes: dict[Id, tuple[int, int]],
    warnings: list[str],
) -> list[dict[str, Any]]:
    """The annotations with a usable mask; the others become one warning."""
    kept: list[dict[str, Any]] = []
    first = ""
    for entry in ground_truth:
        rle = to_rle(entry["segmentation"], *sizes[entry["image_id"]])
        if isinstance(rle, str):
            first = first or f"image {entry['image_id']}: {rle}"
            continue
        # Areas are those of the file, as in pycocotools; without one, the mask's.
        area = entry["area"] if entry["has_area"] else area_and_box(rle)[0]
        kept.append({**entry, "segmentation": rle, "area": area})
    if left_out := len(ground_truth) - len(kept):
        warnings.append(
            f"{dataset.path}: {left_out} annotations without a usable mask left out of the figures "
            f"of masks (first: {first})"
        )
    return kept


def _result(
    where: str,
    index: int,
    entry: Any,
    categories: dict[Id | None, Id],
    image_ids: dict[Id | None, Id],
    sizes: dict[Id, tuple[int, int]],
    masks: bool,
) -> dict[str, Any]:
    """One checked result, with the `area` and `iscrowd` that pycocotools reads."""

    def refuse(problem: str) -> InputError:
        return InputError(f"{where}: entry {index}: {problem}")

    if not isinstance(entry, dict):
        raise refuse(f"{type(entry).__name__}, expected an object")
    segmentation = entry.get("segmentation") or None
    given = {*entry, "bbox"} if segmentation is not None else set(entry)
    if missing := {"image_id", "category_id", "bbox", "score"} - given:
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
    mask_area = 0.0
    box: list[float] | None = None
    if "bbox" not in entry or (masks and category in categories):
        rle = to_rle(segmentation, *sizes[image_ids[image]])
        if isinstance(rle, str):
            raise refuse(rle)
        segmentation = rle
        mask_area, box = area_and_box(rle)
    if "bbox" in entry:
        box = finite_numbers(entry["bbox"], 4)
    if box is None or min(box[2:]) < 0:
        raise refuse(
            f"bbox is {reprlib.repr(entry.get('bbox'))}, expected [x, y, width, height], "
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
        "area": mask_area if masks else box[2] * box[3],
        "iscrowd": 0,
        "segmentation": segmentation,
    }
