"""Runs pycocotools: its matching, by boxes or by masks, and its figures."""

from __future__ import annotations

import contextlib
import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .results import ValidatedResults


def require_pycocotools() -> tuple[Any, Any]:
    """Its classes COCO and COCOeval; called before inference, which may take hours.

    Raises:
        InputError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped,unused-ignore]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise InputError("evaluation needs: pip install sparsedet[eval]") from None
    return COCO, COCOeval


def match(
    validated: ValidatedResults,
    areas: tuple[str, ...] = ("all", "small", "medium", "large"),
    kind: Literal["bbox", "segm"] = "bbox",
) -> Any:
    """A COCOeval of pycocotools after its matching, by boxes or by masks.

    Images and categories get numbers in the order of `validated`, because ids may be text.
    """
    coco, evaluator = require_pycocotools()
    image_of = {id_: number for number, id_ in enumerate(validated.image_ids)}
    category_of = {id_: number for number, id_ in enumerate(validated.names)}
    both = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on stdout
        for boxes in (validated.ground_truth, validated.results):
            entries = coco()
            # Ids from 1: pycocotools takes a match with annotation 0 for no match, and keeps only
            # the last of annotations that share an id.
            entries.dataset = {
                "images": [
                    dict(
                        zip(("id", "height", "width"), (number, *validated.sizes[id_]), strict=True)
                    )
                    for id_, number in image_of.items()
                ],
                "categories": [{"id": number} for number in category_of.values()],
                "annotations": [
                    {
                        **box,
                        "id": number,
                        "image_id": image_of[box["image_id"]],
                        "category_id": category_of[box["category_id"]],
                    }
                    for number, box in enumerate(boxes, start=1)
                ],
            }
            entries.createIndex()
            both.append(entries)
        run = evaluator(*both, kind)
        run.params.areaRng = run.params.areaRng[: len(areas)]  # "all" comes first
        run.params.areaRngLbl = list(areas)
        run.evaluate()
    return run


def counted(run: Any) -> Any:
    """A COCOeval after its matching: now with its figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
        run.summarize()
    return run


def measured_mean(precision: NDArray[np.float64]) -> float:
    """Mean of the measured entries, -1 if there is none."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0
