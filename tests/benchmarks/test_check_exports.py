"""The comparison of exports with the engine on two images, in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sparsedet.detections import Detections, from_rows
from sparsedet.evaluation.agreement import compare_exports
from sparsedet.images.letterbox import fit_letterbox
from sparsedet.images.read import read_image
from sparsedet.model.config import COCO_CATEGORY_IDS, COCO_NAMES
from sparsedet.model.presets import preset

ROOT = Path(__file__).parents[2]


def detections(*rows: tuple[float, ...]) -> Detections:
    """Detections from rows of label, score and a box in an image of 480 x 320."""
    full_rows = np.array(
        [[0, label, score, *np.array(box) / (480, 320, 480, 320)] for label, score, *box in rows],
        dtype=np.float32,
    ).reshape(-1, 7)
    letterbox = fit_letterbox(320, 480, 320, 480, "letterbox")
    return from_rows(full_rows, letterbox, COCO_NAMES, COCO_CATEGORY_IDS, 0.0)


def test_compare_tells_ties_from_differences() -> None:
    config = preset("r50half-c4")
    a = detections((1, 0.9, 10, 10, 110, 110), (2, 0.5, 10, 10, 50, 50))
    same = compare_exports([a], [a], config)
    assert (same["same"], same["ties"], same["others"]) == (2, 0, 0)
    # An IoU of exactly 0.5: rounding decides whether the second box is suppressed.
    tie = detections(
        (1, 0.9, 10, 10, 110, 110), (2, 0.5, 10, 10, 50, 50), (1, 0.4, 10, 10, 60, 110)
    )
    found = compare_exports([a], [tie], config)
    assert (found["same"], found["ties"], found["others"]) == (2, 1, 0)
    less = detections((1, 0.9, 10, 10, 110, 110))
    assert compare_exports([a], [less], config)["others"] == 1
    moved = detections((1, 0.9, 10, 10, 110, 110), (2, 0.5, 11, 10, 51, 50))
    assert compare_exports([a], [moved], config)["others"] == 2


@pytest.mark.slow
def test_two_images(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pycocotools")
    image = read_image(ROOT / "examples" / "beach.jpg")
    height, width = image.shape[:2]
    images = []
    for number, array in enumerate((image, image[:, ::-1]), 1):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), array)
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
        )
    names = zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True)
    box = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 0, 50, 50],
        "area": 2500,
        "iscrowd": 0,
    }
    annotations = tmp_path / "a.json"
    annotations.write_text(
        json.dumps(
            {
                "images": images,
                "annotations": [box],
                "categories": [{"id": i, "name": name} for i, name in names],
            }
        )
    )
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks" / "check_exports.py",
            "--annotations",
            annotations,
            "--images",
            tmp_path,
            "--json",
            tmp_path / "r.json",
            "--forms",
            "openvino float32",
            "openvino float32, hoisted",
            "onnx float32",
            "--threads",
            "1",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    for form in result["results"].values():
        assert form["ours"] >= 20 and form["others"] == 0
        assert form["largest_score_difference"] < 1e-4
    back = result["results"]["openvino float32, hoisted"]["read_back"]
    assert back["same_configuration"] and back["same_tensors"]
    assert (back["parameters"], back["zeros"]) == (result["parameters"], result["zeros"])
