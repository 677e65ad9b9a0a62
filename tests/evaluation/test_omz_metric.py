"""`coco_precision` against Open Model Zoo's accuracy checker, whose own figures are kept.

`data/eval/make_omz_goldens.py` ran the checker to make them; see its first lines.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.detections import from_rows
from sparsedet.evaluation import AP_NAME, OMZ_NAME, CocoScores, evaluate, score_results
from sparsedet.evaluation.coco import load_coco
from sparsedet.evaluation.compare import compare
from sparsedet.images.letterbox import fit_letterbox

pytest.importorskip("pycocotools")

EVAL = Path(__file__).parents[1] / "data" / "eval"
GOLDENS = EVAL / "omz_coco_precision.json"
FIXTURES = (
    ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"),
    ("fce_gt_dataset.json", "fce_dt_dataset.json"),
    ("instances_dev_val.json", "picodet_s_416_dev_val.json.gz"),
)
DRAWN = 60


def read(path: Path) -> Any:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return json.load(file)
    return json.loads(path.read_text(encoding="utf-8"))


def load(annotations: str, detections: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return read(EVAL / annotations), read(EVAL / detections)


def drawn(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A data set as unkind as it gets: crowds, doubles, equal scores and overlaps, empty images."""
    draw = random.Random(seed).random

    def whole(n: int) -> int:
        return int(draw() * n)

    categories = (2, 5, 9)
    images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 60} for i in range(1, 7)]
    annotations: list[dict[str, Any]] = []
    results = []
    for image in images:
        for _ in range(whole(6)):
            category = categories[whole(3)]
            box = [whole(30), whole(30), 4 + whole(26), 4 + whole(26)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(draw() < 0.25),
                }
            )
            for _ in range(whole(4)):
                moved = [v + whole(5) - 2 if draw() < 0.7 else v for v in box]
                results.append((image["id"], category if draw() < 0.9 else 5, moved))
        for _ in range(whole(4)):
            box = [whole(40), whole(40), whole(20), whole(20)]
            results.append((image["id"], categories[whole(3)], box))
    document = {
        "images": images,
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in categories],
        "annotations": annotations,
    }
    return document, [
        {"image_id": image, "category_id": category, "bbox": box, "score": whole(12) / 11}
        for image, category, box in results
    ]


def score(folder: Path, document: dict[str, Any], results: list[dict[str, Any]]) -> CocoScores:
    path = folder / "instances.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return score_results(path, results)


def measured(scores: CocoScores) -> dict[str, float]:
    rows = scores.per_class.items()
    return {name: row["coco_precision"] for name, row in rows if row["coco_precision"] >= 0}


@pytest.mark.parametrize(("annotations", "detections"), FIXTURES)
def test_the_checkers_figures_on_published_detections(annotations: str, detections: str) -> None:
    golden = read(GOLDENS)["fixtures"][detections]
    scores = score_results(EVAL / annotations, load(annotations, detections)[1])
    assert measured(scores) == pytest.approx(golden, abs=1e-9)
    assert scores.coco_precision == pytest.approx(sum(golden.values()) / len(golden), abs=1e-9)
    if annotations == "instances_dev_val.json":
        # The two definitions differ where there are crowds and doubled detections.
        assert scores.both() == {
            AP_NAME: pytest.approx(0.32888352, abs=1e-6),
            OMZ_NAME: pytest.approx(0.33828186, abs=1e-6),
        }


def test_the_checkers_figures_on_unkind_data(tmp_path: Path) -> None:
    goldens = read(GOLDENS)["drawn"]
    assert len(goldens) == DRAWN
    different = 0
    for seed, golden in enumerate(goldens):
        scores = score(tmp_path, *drawn(seed))
        assert measured(scores) == pytest.approx(golden, abs=1e-9), seed
        different += abs(scores.coco_precision - scores.stats["AP"]) > 1e-6
    assert different > DRAWN * 0.8  # or it would say nothing about the definition


# ------------------------------------------------------------- each difference by itself


def one(annotations: list[dict[str, Any]], images: int = 1) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 100, "height": 100}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, **entry}
            for i, entry in enumerate(annotations, start=1)
        ],
    }


def result(box: Sequence[float], score: float, image: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": box, "score": score}


def test_a_small_detection_in_a_crowd_is_a_false_positive(tmp_path: Path) -> None:
    document = one([{"bbox": [0, 0, 10, 10]}, {"bbox": [20, 20, 60, 60], "iscrowd": 1}])
    scores = score(tmp_path, document, [result([30, 30, 9, 9], 0.9), result([0, 0, 10, 10], 0.5)])
    assert scores.stats["AP"] == pytest.approx(1)  # pycocotools: inside the crowd, forgiven
    assert scores.coco_precision == pytest.approx(1 / 2)
    fits = [result([20, 20, 60, 60], 0.9), result([0, 0, 10, 10], 0.5)]
    assert score(tmp_path, document, fits).coco_precision == pytest.approx(1)


def test_the_best_detections_object_can_be_found_twice(tmp_path: Path) -> None:
    document = one([{"bbox": [0, 0, 10, 10]}, {"bbox": [50, 50, 10, 10]}])
    same, other = [0, 0, 10, 10], [50, 50, 10, 10]
    twice = [result(same, 0.9), result(same, 0.8), result(other, 0.7)]
    scores = score(tmp_path, document, twice)
    assert scores.coco_precision == pytest.approx(1)
    assert scores.stats["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    thrice = [result(same, 0.9), result(same, 0.8), result(same, 0.75), result(other, 0.7)]
    # Recall reaches 1 with the double already, so what comes later costs nothing.
    assert score(tmp_path, document, thrice).coco_precision == pytest.approx(1)
    later = [result(other, 0.9), result(same, 0.8), result(same, 0.7)]
    assert score(tmp_path, document, later).coco_precision == pytest.approx(1)


def test_images_without_annotations_are_left_out(tmp_path: Path) -> None:
    document = one([{"bbox": [0, 0, 10, 10]}], images=2)
    results = [result([0, 0, 10, 10], 0.5), result([0, 0, 9, 9], 0.9, image=2)]
    scores = score(tmp_path, document, results)
    assert scores.coco_precision == pytest.approx(1)
    assert scores.stats["AP"] == pytest.approx(1 / 2)


@dataclass
class Reaching:
    """Detections whose box reaches 40 pixels past the image's right edge."""

    unclipped: NDArray[np.float32]

    @property
    def names(self) -> list[str]:
        return ["cat"]

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        return [{**result([80, 0, 20, 60], 0.9), "image_id": image_id}]


def test_boxes_count_as_the_network_gives_them(tmp_path: Path) -> None:
    # Clipped, the box is the object; as it comes, its overlap is 20 * 60 / (60 * 60): a third.
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(one([{"bbox": [80, 0, 20, 60]}])), encoding="utf-8")
    assert cv2.imwrite(str(tmp_path / "1.png"), np.zeros((100, 100, 3), np.uint8))
    dataset = load_coco(path, tmp_path)
    found = Reaching(np.array([[80, 0, 140, 60]], np.float32))
    scores, results = evaluate(lambda image: found, dataset)
    assert scores.stats["AP"] == pytest.approx(1) and scores.coco_precision == 0
    assert results[0]["bbox"] == [80, 0, 20, 60]  # the results file is clipped
    assert score_results(path, results).coco_precision == pytest.approx(1)
    assert compare(lambda image: found, lambda image: found, dataset).b.scores.coco_precision == 0


def test_detections_know_their_boxes_before_clipping() -> None:
    # 100x50 in a network input of 64x64: resized to 64x32, the lower half is padding.
    rows = np.array([[0, 1, 0.9, -0.1, 0.25, 0.5, 0.75]], np.float32)
    detections = from_rows(rows, fit_letterbox(50, 100, 64, 64), ("cat",), (1,))
    np.testing.assert_allclose(detections.unclipped, [[-10, 25, 50, 75]], atol=1e-4)
    np.testing.assert_allclose(detections.boxes, [[0, 25, 50, 50]], atol=1e-4)


def test_nothing_to_measure(tmp_path: Path) -> None:
    scores = score(tmp_path, one([]), [result([0, 0, 9, 9], 0.9)])
    assert scores.coco_precision == -1 and scores.per_class["cat"]["coco_precision"] == -1
    assert score(tmp_path, one([{"bbox": [0, 0, 9, 9]}]), []).coco_precision == 0
