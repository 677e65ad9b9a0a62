"""Two detectors side by side: figures as `evaluate` has them, speed interleaved, caveats."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.errors import InputError
from sparsedet.evaluation import evaluate
from sparsedet.evaluation.coco import CocoDataset, load_coco
from sparsedet.evaluation.compare import Comparison, Detect, compare

pytest.importorskip("pycocotools")

BOX = [10, 10, 30, 30]


@dataclass
class CatsOnly:
    names: list[str]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        return [
            {"image_id": image_id, "category_id": 99, "bbox": BOX, "score": 0.9} for _ in self.names
        ]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """A cat on each of 20 images; image i has brightness i everywhere."""
    document = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 60, "height": 50} for i in range(20)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "iscrowd": 0} for i in range(20)
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    for i in range(20):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((50, 60, 3), i, np.uint8))
    return load_coco(path, tmp_path)


def finds(
    first: int, seconds: float = 0.0, calls: list[str] | None = None, name: str = ""
) -> Detect:
    """A detector that finds the cat from image `first` on and sleeps `seconds`."""

    def detect(image: NDArray[np.uint8]) -> CatsOnly:
        time.sleep(seconds)
        if calls is not None:
            calls.append(name)
        return CatsOnly(["cat"] if image[0, 0, 0] >= first else [])

    return detect


def test_a_clear_difference(dataset: CocoDataset) -> None:
    calls: list[str] = []
    good, bad = finds(0, 0.004, calls, "a"), finds(10, 0.001, calls, "b")
    outcome = compare(
        good,
        bad,
        dataset,
        names=("good", "bad"),
        facts=({"size_mb": 9.0, "zeros_percent": 0.0}, {"size_mb": 4.5, "zeros_percent": 60.0}),
    )
    assert "".join(calls) == "ab" + "abba" * 10  # warmed up, then in turn
    for side, detect in ((outcome.a, good), (outcome.b, bad)):
        assert side.scores == evaluate(detect, dataset)[0]
    change = outcome.differences["AP"]
    assert change.difference == pytest.approx(51 / 101 - 1)
    assert change.low < change.difference < change.high < 0
    assert outcome.verdict().endswith("B is worse.")
    median, low, high = outcome.speed
    assert 1.3 < median < 6 and low <= median <= high
    assert outcome.a.milliseconds > outcome.b.milliseconds > 1
    ((name, ap_a, ap_b, objects),) = outcome.classes()
    assert (name, objects) == ("cat", 20)
    assert (ap_a, ap_b) == pytest.approx((1, 51 / 101))
    text = outcome.text()
    for words in (
        "A  good",
        "B  bad",
        "AP (pycocotools)",
        "AP (Open Model Zoo coco_precision)",
        "20 images",
        "size, MB",
        "-4.5",
        "+60.0",
        "x   as fast",
        "cat",
    ):
        assert words in text, words
    assert "dog" not in text  # no ground truth
    assert "fewer than" not in text
    data = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert data["a"]["name"] == "good" and data["b"]["zeros_percent"] == 60
    assert data["differences"]["AP"]["difference"] == pytest.approx(change.difference)
    swapped = compare(bad, good, dataset)
    assert swapped.verdict().endswith("B is better.")


def test_what_the_images_do_not_settle_is_said(dataset: CocoDataset) -> None:
    outcome = compare(finds(1), finds(0), dataset)
    assert outcome.differences["AP"].difference > 0
    assert "fewer than 10 objects" not in outcome.text()
    assert outcome.verdict().endswith("these 20 images do not tell them apart.")
    same = compare(finds(3), finds(3), dataset)
    assert same.differences["AP"].difference == 0 and "do not tell" in same.verdict()
    assert "Largest changes" not in same.text()


def test_nothing_to_compare(dataset: CocoDataset, tmp_path: Path) -> None:
    document = json.loads(dataset.path.read_text())
    dataset.path.write_text(json.dumps({**document, "annotations": []}))
    outcome: Comparison = compare(finds(0), finds(5), load_coco(dataset.path, tmp_path))
    assert outcome.differences == {} and outcome.classes() == []
    assert "nothing to compare" in outcome.text()


def test_bad_images(dataset: CocoDataset, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"3\.png"):
        compare(finds(0), finds(0), dataset)
    outcome = compare(finds(0), finds(0), dataset, bad_images="skip")
    (line,) = outcome.warnings
    assert "3.png" in line and outcome.a.scores.images == 20
    with pytest.warns(DeprecationWarning, match="bad_images"):
        assert compare(finds(0), finds(0), dataset, skip_bad=True).warnings == outcome.warnings
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="20 of 20 images are missing"):
        compare(finds(0), finds(0), dataset)
    with pytest.raises(InputError, match="none of the images can be read"):
        compare(finds(0), finds(0), dataset, bad_images="skip")


def test_a_class_that_only_a_detector_knows_is_warned_of_once(dataset: CocoDataset) -> None:
    def ghosts(image: NDArray[np.uint8]) -> CatsOnly:
        return CatsOnly(["cat", "ghost"])

    outcome = compare(ghosts, ghosts, dataset)
    (line,) = outcome.warnings
    assert "20 detections of 1 classes" in line and "'ghost'" in line
