"""Write `omz_coco_precision.json`: figures of Open Model Zoo's accuracy checker for the fixtures.

    PYTHONPATH=src:tests python tests/data/eval/make_omz_goldens.py \\
        ZOO/tools/accuracy_checker

Runs the checker's own annotation converter and metric, with the settings of the model's
accuracy-check.yml (`max_detections: 100`, background label 0, labels in the order of categories).
Needs defusedxml and PyYAML beside numpy. None of the checker's code is here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def coco_precision(document: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """Class name -> the checker's figure, of the classes that it measures."""
    from accuracy_checker.annotation_converters.ms_coco import (  # type: ignore[import-not-found]
        MSCocoDetectionConverter,
    )
    from accuracy_checker.metrics.coco_metrics import (  # type: ignore[import-not-found]
        MSCOCOAveragePrecision,
    )
    from accuracy_checker.representation import (  # type: ignore[import-not-found]
        DetectionPrediction,
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        annotations = [{"segmentation": [], **entry} for entry in document["annotations"]]
        path.write_text(json.dumps({**document, "annotations": annotations}))
        settings = {
            "converter": "mscoco_detection",
            "annotation_file": path,
            "has_background": True,
            "use_full_label_map": False,
        }
        converted = MSCocoDetectionConverter(settings).convert()
    metric = MSCOCOAveragePrecision(
        {"type": "coco_precision", "max_detections": 100}, SimpleNamespace(metadata=converted.meta)
    )
    label = {entry["id"]: i for i, entry in enumerate(document["categories"], start=1)}
    file_name = {entry["id"]: entry["file_name"] for entry in document["images"]}
    for annotation in converted.annotations:
        own = [r for r in results if file_name[r["image_id"]] == annotation.identifier]
        x, y, w, h = np.array([r["bbox"] for r in own], dtype=float).reshape(-1, 4).T
        labels = [label[r["category_id"]] for r in own]
        scores = [r["score"] for r in own]
        metric.submit(
            annotation,
            DetectionPrediction(annotation.identifier, labels, scores, x, y, x + w, y + h),
        )
    values = metric.evaluate(None, None)
    return {name: float(v) for name, v in zip(metric.meta["names"], values, strict=True)}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from accuracy_checker import __version__  # type: ignore[import-not-found]
    from evaluation.test_omz_metric import DRAWN, FIXTURES, drawn, load

    goldens = {
        "how": f"make_omz_goldens.py with accuracy_checker {__version__} of Open Model Zoo",
        "fixtures": {
            detections: coco_precision(*load(annotations, detections))
            for annotations, detections in FIXTURES
        },
        "drawn": [coco_precision(*drawn(seed)) for seed in range(DRAWN)],
    }
    (HERE / "omz_coco_precision.json").write_text(json.dumps(goldens, indent=1) + "\n")
