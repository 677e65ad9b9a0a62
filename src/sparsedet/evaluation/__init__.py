"""COCO detection scores of any callable image -> Detections.

The figures are those of pycocotools, the reference implementation: IoU with crowd regions as COCO
defines it, `area` from the file, at most 100 detections for each image and class. Where results and
ground truth have masks, there are figures of both boxes and masks. This module runs the detector
and names the figures; beside them is AP as Open Model Zoo counts it. `results`
validates the input, `analysis` computes curves and confusions.

Glossary: AP is the mean over classes and IoU thresholds 0.50, 0.55, ... 0.95; s, m, l are
ground-truth areas below 32^2, up to 96^2 and above; ARn allows n detections an image and class.
A *result* is one detection as COCO writes it: image_id, category_id, bbox (x, y, width, height in
image pixels), score. A figure is -1 where there was nothing to measure.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..files import read_json
from ..images.check import BadImages
from .average_precision import Matches, average_precision, class_matches
from .coco import UNUSABLE, CocoDataset, load_coco
from .coco_fields import Id
from .cocoeval import counted, match, measured_mean, require_pycocotools
from .images import chosen, read_images
from .omz_metric import omz_matches
from .results import ValidatedResults, validate_results

STAT_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
"""The 12 figures, in pycocotools' order."""

AP_NAME = "AP (pycocotools)"
OMZ_NAME = "AP (Open Model Zoo coco_precision)"


class DetectionsLike(Protocol):
    """What `evaluate` reads of detections; `detections.Detections` is such."""

    @property
    def names(self) -> Sequence[str]: ...

    def to_coco(self, image_id: Any) -> list[dict[str, Any]]: ...  # an int, or text

    # Optional: `unclipped`, (N, 4) xyxy as the network gives the boxes, for `coco_precision`.


@dataclass(frozen=True)
class CocoScores:
    """The scores of one evaluation.

    Attributes:
        stats: the figures of `STAT_NAMES`, 0..1 or -1.
        coco_precision: AP as Open Model Zoo's accuracy checker counts it, see `omz_metric`.
        per_class: class name -> {"AP", "AP50", "coco_precision", "images", "boxes"}: the class's
            own figures, its images and its boxes, without crowd regions.
        images: number of images.
        detections: number of results that count.
        warnings: input that was left out, one line each.
        mask_stats: the figures of `STAT_NAMES` for masks (pycocotools' "segm"); None where results
            or annotations have none. A class then has "mask_AP" and "mask_AP50", too.
    """

    stats: dict[str, float]
    coco_precision: float
    per_class: dict[str, dict[str, float]]
    images: int
    detections: int
    warnings: tuple[str, ...] = ()
    mask_stats: dict[str, float] | None = None

    def both(self) -> dict[str, float]:
        """The two definitions of average precision, by their full names."""
        return {AP_NAME: self.stats["AP"], OMZ_NAME: self.coco_precision}

    def table(self) -> str:
        """The figures as text, without the classes that have no ground truth."""
        lines = [f"{self.images} images, {self.detections} detections", ""]
        lines += [f"{label:<37}{_figure(value)}" for label, value in self.both().items()]
        kinds = [self.stats] if self.mask_stats is None else [self.stats, self.mask_stats]
        masks = len(kinds) > 1
        lines += ["", f"{'':<6}{'boxes':>7}{'masks':>7}"] if masks else [""]
        for name in self.stats:
            lines.append(f"{name:<6}" + "".join(_figure(figures[name]) for figures in kinds))
        keys = ["AP", "AP50", *(["mask_AP", "mask_AP50"] if masks else [])]
        titles = "".join(f"{key.replace('_', ' '):>{max(7, len(key) + 1)}}" for key in keys)
        width = max(map(len, self.per_class))
        lines += ["", f"{'class':<{width}}{titles}{'images':>8}{'boxes':>8}"]
        for name, row in self.per_class.items():
            if row["boxes"]:
                figures = "".join(f"{_figure(row[key]):>{max(7, len(key) + 1)}}" for key in keys)
                lines.append(f"{name:<{width}}{figures}{row['images']:>8}{row['boxes']:>8}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, one for each attribute."""
        return {**asdict(self), "warnings": list(self.warnings)}


def score_results(
    ground_truth: str | os.PathLike[str],
    results: list[dict[str, Any]] | str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
) -> CocoScores:
    """Score finished results over every image of a COCO file.

    Results of categories that are not scored are left out and counted in `warnings`, and so are
    annotations that cannot be used.

    Args:
        ground_truth: the annotation JSON; the images themselves are not needed.
        results: COCO results, or their JSON file. Order matters only between equal scores of
            one image and class, as in pycocotools.
        class_names: the classes that count; default: all of the file.

    Raises:
        InputError: pycocotools is missing; a file cannot be read or is not COCO data; or a result
            lacks a key, names an unknown image or has other values than finite numbers (the
            message names the entry).
    """
    require_pycocotools()
    dataset = load_coco(ground_truth, Path(ground_truth).parent, class_names)
    where = "results"
    if isinstance(results, str | os.PathLike):
        where, results = str(results), read_json(results)
    return score(dataset, results, where)


def evaluate(
    detect: Callable[[NDArray[np.uint8]], DetectionsLike],
    dataset: CocoDataset,
    *,
    limit: int | None = None,
    bad_images: BadImages = "stop",
    progress: Callable[[int, int], None] | None = None,
    skip_bad: bool | None = None,
) -> tuple[CocoScores, list[dict[str, Any]]]:
    """Run a detector over a data set's images and score it.

    Args:
        detect: (H, W, 3) uint8 BGR image -> detections in image pixels. Classes are matched by
            name; the detector's category ids may differ from the data set's.
        dataset: the images, their ground truth (read again from `dataset.path`, for the exact
            boxes and areas) and the classes that count.
        limit: number of images, from the first on; default: all.
        bad_images: what an image does that is missing, unreadable or not of the size in the
            annotations. "stop": an error, for most of them before the first image is run. "skip":
            it counts as one without detections, with a warning. "keep": as "skip", but what of a
            damaged image can be decoded is used.
        progress: called with (done, total) after each image.
        skip_bad: deprecated: `bad_images="skip"`.

    Returns:
        The scores, and the results as `score_results` accepts them: only classes that count, with
        the data set's category ids.

    Raises:
        InputError: as `score_results`; or an image is bad and `bad_images` is "stop".
    """
    require_pycocotools()
    dataset = dataset.first(limit)
    collected = Results(dataset)
    warnings = []
    images = read_images(dataset, chosen(bad_images, skip_bad))
    for done, (image_id, image, problem) in enumerate(images, start=1):
        if image is None:
            warnings.append(problem)
        else:
            collected.add(image_id, detect(image))
        if progress is not None:
            progress(done, len(dataset.images))
    scores = score(dataset, collected.entries, "detections", collected.unclipped)
    warnings = [*warnings, *collected.warnings(), *scores.warnings]
    return replace(scores, warnings=tuple(warnings)), collected.entries


class Results:
    """Collects COCO results of a data set's classes, image by image.

    Attributes:
        entries: results as `score_results` accepts them, with the data set's category ids.
        unclipped: the bbox of each entry as the network gives it, not clipped to the image.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.entries: list[dict[str, Any]] = []
        self.unclipped: list[list[float]] = []
        self._ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
        self._left_out: Counter[str] = Counter()

    def add(self, image_id: Id, detections: DetectionsLike) -> None:
        """Add an image's detections; classes that the data set lacks are only counted."""
        entries = detections.to_coco(image_id)
        boxes = [entry["bbox"] for entry in entries]
        if (unclipped := getattr(detections, "unclipped", None)) is not None:
            corners = np.asarray(unclipped, dtype=np.float64)
            boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
        for name, entry, box in zip(detections.names, entries, boxes, strict=True):
            if self._ids.get(name, -1) == -1:
                self._left_out[name] += 1
            else:
                self.entries.append({**entry, "category_id": self._ids[name]})
                self.unclipped.append(box)

    def warnings(self) -> list[str]:
        if not self._left_out:
            return []
        return [
            f"{self._left_out.total()} detections of {len(self._left_out)} classes that are not "
            f"scored left out, such as {min(self._left_out)!r}"
        ]


def coco_matches(dataset: CocoDataset, results: list[dict[str, Any]]) -> Matches:
    """The matches of pycocotools, before it counts them: for curves and resampling.

    Args:
        dataset: ground truth, images and classes, as for `evaluate`.
        results: COCO results, as `evaluate` returns them.

    Raises:
        InputError: as `score_results`.
    """
    validated = validate_results(dataset, results)
    run = match(validated, ("all",))
    images = len(validated.image_ids)
    classes = []
    for k, category in enumerate(validated.names):
        # One entry an image, None where there is neither object nor detection.
        cells = run.evalImgs[k * images : (k + 1) * images]
        classes.append(
            class_matches(
                validated.names[category],
                category,
                images,
                {
                    index: (cell["dtScores"], cell["dtMatches"], cell["dtIgnore"], cell["gtIgnore"])
                    for index, cell in enumerate(cells)
                    if cell is not None
                },
            )
        )
    return Matches(run.params.iouThrs, validated.image_ids, tuple(classes))


def score(
    dataset: CocoDataset,
    results: Any,
    where: str = "results",
    unclipped: Sequence[list[float]] | None = None,
) -> CocoScores:
    """`score_results` over the images and classes of a data set that is read already.

    Args:
        where: name of the results in messages.
        unclipped: the bbox of each result for `coco_precision`, as `Results.unclipped`; default:
            that of the results.
    """
    validated = validate_results(dataset, results, where)
    run = counted(match(validated))
    masks, warnings = _mask_figures(dataset, results, where, validated)
    omz = average_precision(omz_matches(validated, unclipped))[0].mean(axis=0)  # [K]

    # precision: [10 IoU thresholds, 101 recalls, classes, all/s/m/l, 1/10/100 detections]
    precision = run.eval["precision"][:, :, :, 0, 2]
    column = {id_: k for k, id_ in enumerate(validated.names)}
    plain = [box for box in validated.ground_truth if not box["iscrowd"]]
    boxes_of = Counter(box["category_id"] for box in plain)
    images_of = Counter(id_ for _, id_ in {(box["image_id"], box["category_id"]) for box in plain})
    per_class = {
        name: {
            "AP": measured_mean(precision[:, :, column[id_]]) if id_ in column else -1.0,
            "AP50": measured_mean(precision[0, :, column[id_]]) if id_ in column else -1.0,
            "coco_precision": float(omz[column[id_]]) if boxes_of[id_] else -1.0,
            "images": images_of[id_],
            "boxes": boxes_of[id_],
            **_class_figures(masks, column.get(id_)),
        }
        for name, id_ in zip(dataset.class_names, dataset.category_ids, strict=True)
    }
    stats = dict(zip(STAT_NAMES, map(float, run.stats), strict=True))
    measured = omz[~np.isnan(omz)]
    return CocoScores(
        stats,
        float(measured.mean()) if measured.size else -1.0,
        per_class,
        len(validated.image_ids),
        len(validated.results),
        (*dataset.warnings(UNUSABLE), *validated.warnings, *warnings),
        None if masks is None else dict(zip(STAT_NAMES, map(float, masks.stats), strict=True)),
    )


def _mask_figures(
    dataset: CocoDataset, results: Any, where: str, validated: ValidatedResults
) -> tuple[Any, list[str]]:
    """A COCOeval of masks with its figures, None where there is no mask; and warnings."""
    with_mask = sum(result["segmentation"] is not None for result in validated.results)
    if not with_mask:
        return None, []
    if without := len(validated.results) - with_mask:
        return None, [f"{where}: {without} have no segmentation: masks are not scored"]
    if not any(entry["segmentation"] for entry in validated.ground_truth):
        return None, [f"{dataset.path}: annotations have no masks: masks are not scored"]
    masks = validate_results(dataset, results, where, masks=True)
    new = [line for line in masks.warnings if line not in validated.warnings]
    return counted(match(masks, kind="segm")), new


def _class_figures(masks: Any, column: int | None) -> dict[str, float]:
    """A class's figures of masks; none where masks are not scored."""
    if masks is None:
        return {}
    if column is None:
        return {"mask_AP": -1.0, "mask_AP50": -1.0}
    precision = masks.eval["precision"][:, :, column, 0, 2]
    return {"mask_AP": measured_mean(precision), "mask_AP50": measured_mean(precision[0])}


def _figure(value: float) -> str:
    return f"{'-':>7}" if value < 0 else f"{value:7.3f}"
