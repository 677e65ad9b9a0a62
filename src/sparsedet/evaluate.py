"""COCO detection scores: any callable image -> Detections against COCO ground truth.

The figures are pycocotools' own (the reference implementation: IoU with crowd regions as COCO
defines it, `area` as the file says, at most 100 detections an image and class). This module
checks what goes in, so that a bad file is an error and never a wrong score, and gives the
figures names. It draws no curves and knows no other metric.

Glossary: AP is the mean over classes and IoU thresholds 0.50, 0.55, ... 0.95; s, m, l are
ground-truth areas below 32^2, up to 96^2 and above; ARn allows n detections an image and class.
A *result* is one detection as COCO writes it: image_id, category_id, bbox (x, y, width,
height in photograph pixels), score. -1 stands for a figure that nothing was there to measure.
"""

from __future__ import annotations

import contextlib
import io
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .coco import CocoDataset, finite_numbers, load_coco, read_json
from .errors import InputError
from .matches import IOU_THRESHOLDS, ClassMatches, Matches, sort_by_score
from .preprocess import read_image

STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl",
              "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # fmt: skip
"""The 12 figures, in pycocotools' order."""


class DetectionsLike(Protocol):
    """What `evaluate` needs of a detector's answer, as `detections.Detections` has it."""

    @property
    def names(self) -> Sequence[str]: ...

    def to_coco(self, image_id: int) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class CocoScores:
    """The outcome of one evaluation.

    Attributes:
        stats: the figures of `STAT_NAMES`, 0..1 or -1.
        per_class: class name -> {"AP", "AP50", "images", "boxes"}: its own two figures, the
            photographs that hold it and its boxes, crowd regions not counted.
        images: photographs scored.
        detections: results scored.
        warnings: what was left out, one line each.
    """

    stats: dict[str, float]
    per_class: dict[str, dict[str, float]]
    images: int
    detections: int
    warnings: tuple[str, ...] = ()

    def table(self) -> str:
        """The figures as text, classes without ground truth left out."""
        lines = [f"{self.images} images, {self.detections} detections", ""]
        lines += [f"{name:<6}{_figure(value)}" for name, value in self.stats.items()]
        width = max(map(len, self.per_class))
        lines += ["", f"{'class':<{width}}{'AP':>7}{'AP50':>7}{'images':>8}{'boxes':>8}"]
        for name, row in self.per_class.items():
            if row["boxes"]:
                lines.append(f"{name:<{width}}{_figure(row['AP'])}{_figure(row['AP50'])}"
                             f"{row['images']:>8}{row['boxes']:>8}")  # fmt: skip
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON-ready values, one for each attribute."""
        return {**asdict(self), "warnings": list(self.warnings)}


def score_results(
    ground_truth: str | os.PathLike[str],
    results: list[dict[str, Any]] | str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
) -> CocoScores:
    """Score finished results over every photograph of a COCO file.

    Args:
        ground_truth: the annotation JSON; no photographs are needed.
        results: COCO results or the JSON file that holds them. Order matters only between
            equal scores of one photograph and class, as in pycocotools.
        class_names: the classes that count; default: all of the file.

    Raises:
        InputError: pycocotools is missing, a file cannot be read or is no COCO data, or a
            result lacks a key, names an unknown photograph or holds anything but finite
            numbers; the message names the entry. Results of categories that are not scored
            are left out and counted in `warnings`.
    """
    coco, evaluator = _pycocotools()
    dataset = load_coco(ground_truth, Path(ground_truth).parent, class_names)
    where = "results"
    if isinstance(results, str | os.PathLike):
        where, results = str(results), read_json(results)
    return _score(coco, evaluator, dataset, results, where)


def evaluate(
    detect: Callable[[NDArray[np.uint8]], DetectionsLike],
    dataset: CocoDataset,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CocoScores, list[dict[str, Any]]]:
    """Run a detector over a data set's photographs and score it.

    Args:
        detect: (H, W, 3) uint8 BGR photograph -> detections in photograph pixels. They are
            matched to the data set's classes by name: its category ids may be others.
        dataset: the photographs, their ground truth (read again from `dataset.path`, for the
            exact boxes and areas) and the classes that count.
        limit: only the first so many photographs.
        skip_bad: a photograph that is missing, unreadable or of another size than the
            annotations say counts as one without detections, with a warning, not as an error.
        progress: called with (done, total) after each photograph.

    Returns:
        The scores, and the results as `score_results` accepts them: those of the classes that
        count, with the data set's category ids.

    Raises:
        InputError: as `score_results`; or, without `skip_bad`, a photograph is bad.
    """
    coco, evaluator = _pycocotools()
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit is {limit}, expected at least 1 image")
        dataset = replace(dataset, images=dataset.images[:limit])
    if not skip_bad:
        dataset.require_images()
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    results: list[dict[str, Any]] = []
    warnings = []
    left_out: Counter[str] = Counter()
    for done, image in enumerate(dataset.images, start=1):
        try:
            pixels = read_image(dataset.image_path(image))
            if pixels.shape[:2] != (image.height, image.width):
                raise InputError(
                    f"{dataset.image_path(image)}: {pixels.shape[1]}x{pixels.shape[0]} pixels, "
                    f"expected {image.width}x{image.height} as in {dataset.path}"
                )
        except InputError as error:
            if not skip_bad:
                raise
            warnings.append(f"counted as without detections: {error}")
        else:
            found = detect(pixels)
            for name, entry in zip(found.names, found.to_coco(image.id), strict=True):
                if ids.get(name, -1) == -1:
                    left_out[name] += 1
                else:
                    results.append({**entry, "category_id": ids[name]})
        if progress is not None:
            progress(done, len(dataset.images))
    if left_out:
        warnings.append(
            f"{left_out.total()} detections of {len(left_out)} classes that are not scored left "
            f"out, such as {min(left_out)!r}"
        )
    scores = _score(coco, evaluator, dataset, results, "detections")
    return replace(scores, warnings=(*warnings, *scores.warnings)), results


def _pycocotools() -> tuple[Any, Any]:
    """Its COCO and COCOeval classes; asked for first, not after hours of inference."""
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped,unused-ignore]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise InputError("evaluation needs: pip install sparsedet[eval]") from None
    return COCO, COCOeval


def coco_matches(dataset: CocoDataset, results: list[dict[str, Any]]) -> Matches:
    """What pycocotools matches, before it counts: for curves and resampling.

    Args:
        dataset: ground truth, photographs and classes, as for `evaluate`.
        results: COCO results, as `evaluate` returns them.

    Raises:
        InputError: as `score_results`.
    """
    coco, evaluator = _pycocotools()
    run, _, _, _ = _match(coco, evaluator, dataset, results, "results", ("all",))
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    images = len(run.params.imgIds)
    classes = []
    for k, category in enumerate(run.params.catIds):
        # One entry a photograph, or None where there is neither object nor detection.
        cells = run.evalImgs[k * images : (k + 1) * images]
        filled = [(index, cell) for index, cell in enumerate(cells) if cell is not None]
        objects = np.zeros(images, dtype=np.int64)
        for index, cell in filled:
            objects[index] = np.count_nonzero(np.asarray(cell["gtIgnore"]) == 0)
        scores = [np.asarray(cell["dtScores"], dtype=np.float64) for _, cell in filled]
        order = sort_by_score(scores)
        owner = np.repeat([i for i, _ in filled], [len(s) for s in scores]).astype(np.int64)
        none = [np.empty((len(IOU_THRESHOLDS), 0))]
        hit = np.concatenate(none + [cell["dtMatches"] for _, cell in filled], axis=1) > 0
        ignored = np.concatenate(none + [cell["dtIgnore"] for _, cell in filled], axis=1) > 0
        classes.append(ClassMatches(
            names[category], int(category), owner[order],
            np.concatenate([np.empty(0), *scores])[order], hit[:, order], ignored[:, order],
            objects,
        ))  # fmt: skip
    return Matches(run.params.iouThrs, tuple(map(int, run.params.imgIds)), tuple(classes))


def _match(
    coco: Any, evaluator: Any, dataset: CocoDataset, results: Any, where: str,
    areas: tuple[str, ...] = ("all", "small", "medium", "large"),
) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]], list[str]]:  # fmt: skip
    """pycocotools' run with its matches done, the ground truth and results in it, warnings."""
    image_ids = {image.id for image in dataset.images}
    categories = set(dataset.category_ids) - {-1}
    truth, warnings = _ground_truth(dataset, image_ids, categories)
    if not isinstance(results, list):
        raise InputError(f"{where}: no COCO results ({type(results).__name__}, expected a list)")
    checked = [_result(where, index, entry, image_ids) for index, entry in enumerate(results)]
    scored = [result for result in checked if result["category_id"] in categories]
    if left_out := len(checked) - len(scored):
        warnings.append(f"{where}: {left_out} of categories that are not scored left out")

    images = [{"id": id_} for id_ in sorted(image_ids)]
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on stdout
        for boxes in (truth, scored):
            side = coco()
            # Ids from 1: pycocotools takes a match with annotation 0 for no match, and of
            # annotations that share an id it keeps the last.
            side.dataset = {
                "images": images,
                "categories": [{"id": id_} for id_ in sorted(categories)],
                "annotations": [{**box, "id": i} for i, box in enumerate(boxes, start=1)],
            }
            side.createIndex()
            sides.append(side)
        run = evaluator(*sides, "bbox")
        run.params.areaRng = run.params.areaRng[: len(areas)]  # "all" comes first
        run.params.areaRngLbl = list(areas)
        run.evaluate()
    return run, truth, scored, warnings


def _score(coco: Any, evaluator: Any, dataset: CocoDataset, results: Any, where: str) -> CocoScores:
    """Score `results` over the photographs and classes of `dataset`."""
    run, truth, scored, warnings = _match(coco, evaluator, dataset, results, where)
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
        run.summarize()

    # precision: [10 IoU thresholds, 101 recalls, classes, all/s/m/l, 1/10/100 detections]
    precision = run.eval["precision"][:, :, :, 0, 2]
    column = {id_: k for k, id_ in enumerate(run.params.catIds)}
    plain = [box for box in truth if not box["iscrowd"]]
    boxes_of = Counter(box["category_id"] for box in plain)
    images_of = Counter(id_ for _, id_ in {(box["image_id"], box["category_id"]) for box in plain})
    per_class = {
        name: {
            "AP": _mean(precision[:, :, column[id_]]) if id_ in column else -1.0,
            "AP50": _mean(precision[0, :, column[id_]]) if id_ in column else -1.0,
            "images": images_of[id_],
            "boxes": boxes_of[id_],
        }
        for name, id_ in zip(dataset.class_names, dataset.category_ids, strict=True)
    }
    stats = dict(zip(STAT_NAMES, map(float, run.stats), strict=True))
    return CocoScores(stats, per_class, len(run.params.imgIds), len(scored), tuple(warnings))


def _ground_truth(
    dataset: CocoDataset, image_ids: set[int], categories: set[int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The file's annotations of these photographs and classes, and warnings.

    From the file and not from `dataset.images`, whose boxes are clipped and float32 and have
    no `area`. `load_coco` has checked the file: keys exist and ids are whole numbers.
    """
    boxes, bad = [], 0
    for entry in read_json(dataset.path)["annotations"]:
        if entry["image_id"] not in image_ids or entry["category_id"] not in categories:
            continue
        box = finite_numbers(entry["bbox"], 4)
        if box is None:
            bad += 1
            continue
        area = finite_numbers([entry.get("area")], 1)
        boxes.append({
            "image_id": int(entry["image_id"]),
            "category_id": int(entry["category_id"]),
            "bbox": box,
            "area": area[0] if area else box[2] * box[3],
            "iscrowd": int(bool(entry.get("iscrowd"))),
        })  # fmt: skip
    what = "annotations whose bbox is not four numbers left out"
    return boxes, [f"{dataset.path}: {bad} {what}"] if bad else []


def _result(where: str, index: int, entry: Any, image_ids: set[int]) -> dict[str, Any]:
    """One checked result, with the `area` and `iscrowd` that pycocotools reads."""

    def refuse(what: str) -> InputError:
        return InputError(f"{where}: entry {index}: {what}")

    if not isinstance(entry, dict):
        raise refuse(f"{type(entry).__name__}, expected an object")
    if missing := {"image_id", "category_id", "bbox", "score"} - set(entry):
        raise refuse(f"no {min(missing)!r}")
    ids = finite_numbers([entry["image_id"], entry["category_id"]], 2)
    if ids is None or not all(number.is_integer() for number in ids):
        raise refuse("image_id and category_id are "
                     f"{reprlib.repr((entry['image_id'], entry['category_id']))}, "
                     "expected whole numbers")  # fmt: skip
    if entry["image_id"] not in image_ids:
        raise refuse(f"image_id {entry['image_id']} is not in the ground truth")
    box = finite_numbers(entry["bbox"], 4)
    if box is None or min(box[2:]) < 0:
        raise refuse(f"bbox is {reprlib.repr(entry['bbox'])}, expected [x, y, width, height], "
                     "finite and no size below 0")  # fmt: skip
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


def _mean(precision: NDArray[np.float64]) -> float:
    """Mean of the measured entries, -1 if there is none."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _figure(value: float) -> str:
    return f"{'-':>7}" if value < 0 else f"{value:7.3f}"
