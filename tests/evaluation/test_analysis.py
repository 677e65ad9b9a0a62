"""Curves and confusions by hand, and against the figures that pycocotools gives."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet.errors import InputError
from sparsedet.evaluation import CocoScores, coco_matches, score
from sparsedet.evaluation.analysis import Analysis, analyse
from sparsedet.evaluation.coco import load_coco

pytest.importorskip("pycocotools")

EVAL = Path(__file__).parents[1] / "data" / "eval"


@cache
def picodet() -> tuple[CocoScores, Analysis]:
    with gzip.open(EVAL / "picodet_s_416_dev_val.json.gz", "rt", encoding="utf-8") as file:
        results = json.load(file)
    dataset = load_coco(EVAL / "instances_dev_val.json", EVAL)
    return score(dataset, results), analyse(dataset, results, score=0.3)


def annotation(image: int, category: int, box: Sequence[float], crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}


def result(image: int, category: int, box: Sequence[float], value: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": value}


def small(
    folder: Path, annotations: list[dict[str, Any]], results: list[dict[str, Any]], **options: Any
) -> Analysis:
    """Over two images; classes 1 cat, 2 dog, 3 cow."""
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 90, "height": 90} for i in (1, 2)],
        "categories": [{"id": i, "name": n} for i, n in enumerate(("cat", "dog", "cow"), 1)],
        "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations, 1)],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return analyse(load_coco(path, folder), results, **options)


A, B, C = [0, 0, 20, 20], [40, 0, 20, 20], [0, 40, 20, 20]


# ------------------------------------------------------------------- against pycocotools


def test_curves_and_ap_by_iou_are_those_of_pycocotools() -> None:
    scores, analysis = picodet()
    assert analysis.ap_by_iou.mean() == pytest.approx(scores.stats["AP"], abs=1e-12)
    for iou, figure in (("0.50", "AP50"), ("0.75", "AP75")):
        assert analysis.curves[""][iou].mean() == pytest.approx(scores.stats[figure], abs=1e-12)
    for name, row in scores.per_class.items():
        if row["boxes"]:
            curve = analysis.curves[name]["0.50"]
            assert curve.mean() == pytest.approx(row["AP50"], abs=1e-12)
            assert (np.diff(curve) <= 0).all()  # the envelope never rises
        else:
            assert name not in analysis.curves and name in analysis.absent
    assert analysis.intervals["AP"].value == pytest.approx(scores.stats["AP"], abs=1e-12)


def test_true_positives_at_a_threshold_are_those_of_pycocotools() -> None:
    scores, analysis = picodet()
    with gzip.open(EVAL / "picodet_s_416_dev_val.json.gz", "rt", encoding="utf-8") as file:
        results = json.load(file)
    dataset = load_coco(EVAL / "instances_dev_val.json", EVAL)
    matrix = analysis.confusion.matrix
    boxes = sum(int(row["boxes"]) for row in scores.per_class.values())
    true_positives = counted = 0
    for k, entry in enumerate(coco_matches(dataset, results).classes):
        kept = (entry.scores >= 0.3) & ~entry.ignored[0]
        assert matrix[k, k] == np.count_nonzero(entry.true_positive[0] & kept), entry.name
        true_positives += int(np.count_nonzero(entry.true_positive[0] & kept))
        counted += int(np.count_nonzero(kept))
    assert true_positives > 500
    assert analysis.counts() == (true_positives, boxes - true_positives, counted - true_positives)
    # Every object has one column entry, every detection that counts one row entry.
    assert matrix[:, :-1].sum() == boxes and matrix[:-1].sum() == counted
    precision, recall, f1 = analysis.by_score[30]
    assert (precision, recall) == pytest.approx((true_positives / counted, true_positives / boxes))
    assert f1 == pytest.approx(2 / (1 / precision + 1 / recall))
    best = analysis.best_score()
    assert best and best[3] == np.nanmax(analysis.by_score[:, 2])
    # The histogram holds everything, whatever the threshold.
    assert (
        analysis.histogram[6:].sum() == counted
        and analysis.histogram[6:, 0].sum() == true_positives
    )


# ------------------------------------------------------------------------ confusion matrix


def test_confusions_by_hand(tmp_path: Path) -> None:
    outcome = small(
        tmp_path,
        [annotation(1, 1, A), annotation(1, 2, B), annotation(1, 2, C), annotation(2, 3, A)],
        [
            result(1, 1, A, 0.9),  # a cat
            result(1, 1, [1, 0, 20, 20], 0.8),  # the same cat again: false, nothing is left there
            result(1, 1, B, 0.7),  # a dog taken for a cat
            result(2, 2, B, 0.6),  # nothing there
            result(2, 3, A, 0.2),  # right, but below the threshold
        ],
    )
    assert outcome.confusion.names == ("cat", "dog", "cow", "background")
    #                              true: cat dog cow background
    np.testing.assert_array_equal(
        outcome.confusion.matrix, [[1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    )
    assert outcome.confusion.mistaken() == [("dog", "cat", 1)]
    assert outcome.counts() == (1, 3, 3)
    first, second = outcome.images
    assert (first.image_id, len(first.false_negatives), len(first.false_positives)) == (1, 2, 2)
    assert (second.image_id, len(second.false_negatives), len(second.false_positives)) == (2, 1, 1)
    lower = small(tmp_path, [annotation(2, 3, A)], [result(2, 3, A, 0.2)], score=0.1)
    assert lower.confusion.matrix[2, 2] == 1 and lower.counts() == (1, 0, 0)


def test_the_right_class_comes_first_even_where_another_fits_better(tmp_path: Path) -> None:
    outcome = small(
        tmp_path,
        [annotation(1, 1, A)],
        [result(1, 2, A, 0.9), result(1, 1, [2, 0, 20, 20], 0.5)],
    )
    assert outcome.confusion.matrix[0, 0] == 1
    assert outcome.confusion.matrix[1].tolist() == [0, 0, 0, 1]


def test_overlap_of_exactly_a_half_is_a_true_positive_and_less_is_not(tmp_path: Path) -> None:
    for height, hit in ((10, 1), (9.9, 0)):
        box = [0, 0, 20, height]
        outcome = small(tmp_path, [annotation(1, 1, A)], [result(1, 1, box, 0.9)])
        assert outcome.counts() == (hit, 1 - hit, 1 - hit)


def test_detections_in_a_crowd_of_their_class_count_neither_way(tmp_path: Path) -> None:
    outcome = small(
        tmp_path,
        [annotation(1, 1, [0, 0, 80, 80], crowd=1)],
        [result(1, 1, A, 0.9), result(1, 1, B, 0.8), result(1, 2, C, 0.7)],
    )
    assert outcome.confusion.matrix.sum() == 1 and outcome.confusion.matrix[1, 3] == 1
    assert outcome.counts() == (0, 0, 1)
    assert outcome.images[0].ignored == {0, 1}


# --------------------------------------------------------------------------- little data


def test_classes_without_objects_are_left_out_of_means_and_said(tmp_path: Path) -> None:
    outcome = small(tmp_path, [annotation(1, 1, A)], [result(1, 1, A, 0.9), result(1, 3, B, 0.9)])
    assert set(outcome.curves) == {"", "cat"} and outcome.absent == ("dog", "cow")
    assert outcome.ap_by_iou == pytest.approx(np.ones(10))
    text = outcome.text()
    assert "2 of 3 classes have no object in the ground truth" in text
    assert "1 classes have fewer than 10 objects" in text and outcome.few == {"cat": 1}
    assert "dog" not in outcome.to_json()["precision"]


def test_nothing_to_measure_and_nothing_found(tmp_path: Path) -> None:
    empty = small(tmp_path, [], [result(1, 1, A, 0.9)])
    assert np.isnan(empty.ap_by_iou).all() and empty.intervals == {} and empty.curves == {}
    assert empty.counts() == (0, 0, 1) and empty.best_score() is None
    assert empty.to_json()["ap_by_iou"]["0.50"] is None
    silent = small(tmp_path, [annotation(1, 1, A)], [])
    assert silent.counts() == (0, 1, 0) and silent.best_score() is None
    assert silent.ap_by_iou == pytest.approx(np.zeros(10))
    for outcome in (empty, silent):
        assert "Most mistakes" in outcome.text()
        json.dumps(outcome.to_json(), allow_nan=False)


def test_as_json() -> None:
    _, analysis = picodet()
    data = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert data["iou"] == 0.5 and data["score"] == 0.3
    assert len(data["confusion"]["detected_by_true"]) == len(data["confusion"]["names"]) == 81
    assert sum(p["missed"] for p in data["photographs"]) == analysis.counts()[1]
    assert len(data["precision"]["mean over classes"]["0.75"]) == len(data["recalls"]) == 101


def test_bad_threshold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"score is 1\.5, expected 0\.\.1"):
        small(tmp_path, [], [], score=1.5)
