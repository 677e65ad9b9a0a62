"""Figures of masks against published ones, a second implementation, and bad masks."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet.errors import InputError
from sparsedet.evaluation import STAT_NAMES, score_results
from sparsedet.evaluation.report import render_report
from sparsedet.evaluation.segmentation import area_and_box, to_rle

theirs = pytest.importorskip("pycocotools.mask")

EVAL = Path(__file__).parents[1] / "data" / "eval"
VAL2014 = EVAL / "instances_val2014_100.json"
FAKE_MASKS = EVAL / "instances_val2014_fakesegm100_results.json"
FAKE_BOXES = EVAL / "instances_val2014_fakebbox100_results.json"
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]

# ----------------------------------------------------------------- published figures


def test_cocoapis_fake_masks() -> None:
    published = [0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381]
    scores = score_results(VAL2014, FAKE_MASKS)
    assert scores.mask_stats is not None and list(scores.mask_stats) == list(STAT_NAMES)
    assert [round(value, 3) for value in scores.mask_stats.values()] == published
    assert scores.warnings == () and scores.detections == 734
    lines = scores.table().splitlines()
    assert "        boxes  masks" in lines
    assert f"AP      {scores.stats['AP']:.3f}  0.320" in lines
    measured = [row["mask_AP"] for row in scores.per_class.values() if row["mask_AP"] >= 0]
    assert np.mean(measured) == pytest.approx(scores.mask_stats["AP"])
    assert json.loads(json.dumps(scores.to_json()))["mask_stats"] == scores.mask_stats


def test_faster_coco_evals_figures_of_masks() -> None:
    scores = score_results(EVAL / "fce_gt_dataset.json", EVAL / "fce_dt_dataset.json")
    assert scores.mask_stats is not None
    assert scores.mask_stats["AP"] == pytest.approx(0.6947194719471946, abs=1e-12)
    assert round(scores.mask_stats["APm"], 4) == 0.7368
    assert scores.mask_stats["ARm"] == pytest.approx(0.7916666666666666, abs=1e-12)


def test_a_second_implementation_agrees_on_masks() -> None:
    peer = pytest.importorskip("faster_coco_eval")
    scores = score_results(VAL2014, FAKE_MASKS)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = peer.COCO(str(VAL2014))
        run = peer.COCOeval_faster(truth, truth.loadRes(str(FAKE_MASKS)), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert scores.mask_stats is not None
    assert list(scores.mask_stats.values()) == pytest.approx(list(run.stats[:12]), abs=1e-9)


def test_perfect_masks_score_one_crowds_and_all() -> None:
    document = json.loads(VAL2014.read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in document["images"]}
    assert any(isinstance(a["segmentation"], dict) for a in document["annotations"])  # crowds
    results = [
        {
            **{key: a[key] for key in ("image_id", "category_id", "bbox")},
            "score": 1,
            "segmentation": to_rle(a["segmentation"], *sizes[a["image_id"]]),
        }
        for a in document["annotations"]
    ]
    scores = score_results(VAL2014, results)
    assert scores.mask_stats is not None and scores.mask_stats["AP"] == pytest.approx(1)


def test_results_without_masks_have_figures_of_boxes_alone() -> None:
    scores = score_results(VAL2014, FAKE_BOXES)
    assert scores.mask_stats is None and "masks" not in scores.table()
    assert "mask_AP" not in scores.per_class["person"]


# ------------------------------------------------------------------- a small data set


def write(folder: Path, *annotations: dict[str, Any]) -> Path:
    path = folder / "instances.json"
    base = {"image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0}
    document = {
        "images": [{"id": 5, "file_name": "five.png", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{**base, "id": i, **a} for i, a in enumerate(annotations, start=1)],
    }
    path.write_text(json.dumps(document))
    return path


def result(**changes: Any) -> dict[str, Any]:
    entry = {"image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.5, **changes}
    return {key: value for key, value in entry.items() if value is not None}


def square() -> dict[str, Any]:
    """As run lengths in text."""
    rle = theirs.merge(theirs.frPyObjects(SQUARE, 48, 64))
    return {"size": [48, 64], "counts": rle["counts"].decode()}


def test_a_mask_in_every_form_is_the_same(tmp_path: Path) -> None:
    lengths = [10 * 48 + 10, *[20, 28] * 19, 20, 34 * 48 + 18]
    forms = [SQUARE, square(), {"size": [48, 64], "counts": lengths}]
    assert len({str(to_rle(form, 48, 64)) for form in forms}) == 1
    rle = to_rle(SQUARE, 48, 64)
    assert isinstance(rle, dict) and area_and_box(rle) == (400, [10, 10, 20, 20])
    for truth in forms:
        path = write(tmp_path, {"segmentation": truth})
        for form in forms:
            for box in ([10, 10, 20, 20], None):  # without a box, that of the mask
                scores = score_results(path, [result(segmentation=form, bbox=box)])
                assert scores.mask_stats is not None and scores.warnings == ()
                assert (scores.mask_stats["AP"], scores.stats["AP"]) == pytest.approx((1, 1))


def test_a_mask_is_not_its_box(tmp_path: Path) -> None:
    path = write(tmp_path, {"segmentation": SQUARE})
    half = [[10, 10, 30, 10, 30, 21, 10, 21]]  # 11 of 20 rows: IoU 0.55
    scores = score_results(path, [result(segmentation=half)])
    assert scores.mask_stats is not None
    assert (scores.stats["AP"], scores.mask_stats["AP50"]) == pytest.approx((1, 1))
    assert scores.mask_stats["AP75"] == 0 and scores.mask_stats["AP"] == pytest.approx(0.2)


def test_a_mask_in_a_crowd_is_no_mistake(tmp_path: Path) -> None:
    crowd = {"segmentation": [[32, 5, 63, 5, 63, 45, 32, 45]], "bbox": [32, 5, 31, 40]}
    inside = [[40, 10, 50, 10, 50, 20, 40, 20]]
    results = [result(segmentation=square()), result(segmentation=inside, score=0.9)]
    for iscrowd, expected in ((1, 1.0), (0, 1 / 2 * 51 / 101)):
        path = write(tmp_path, {"segmentation": SQUARE}, {**crowd, "iscrowd": iscrowd})
        scores = score_results(path, results)
        assert scores.mask_stats is not None
        assert scores.mask_stats["AP"] == pytest.approx(expected)


def test_areas_are_the_files_and_else_the_masks(tmp_path: Path) -> None:
    for extra, size in (({}, "s"), ({"area": 2000}, "m")):
        path = write(tmp_path, {"segmentation": SQUARE, "bbox": [10, 10, 40, 40], **extra})
        scores = score_results(path, [result(segmentation=square())])
        assert scores.mask_stats is not None
        assert scores.mask_stats[f"AP{size}"] == pytest.approx(1)
        assert scores.mask_stats["APm" if size == "s" else "APs"] == -1


def test_what_has_no_mask_is_said(tmp_path: Path) -> None:
    with_mask = result(segmentation=square())
    forms: list[dict[str, Any]] = [{}, {"segmentation": []}, {"segmentation": None}]
    for absent in forms:
        scores = score_results(write(tmp_path, absent), [with_mask])
        assert scores.mask_stats is None and "annotations have no masks" in scores.warnings[0]
    path = write(tmp_path, {"segmentation": SQUARE}, {"bbox": [40, 20, 9, 9]})
    scores = score_results(path, [with_mask])
    (line,) = scores.warnings
    assert "1 annotations without a usable mask" in line and scores.mask_stats is not None
    assert scores.mask_stats["AP"] == pytest.approx(1) and scores.stats["AP"] < 1
    scores = score_results(path, [with_mask, result(), result()])
    assert scores.mask_stats is None and "2 have no segmentation" in scores.warnings[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rle: {**rle, "size": [64, 48]}, r"has size \[64, 48\], expected .* \[48, 64\]"),
        (lambda rle: {"counts": rle["counts"]}, "has size None, expected"),
        (lambda rle: {**rle, "counts": rle["counts"][:-3]}, r"segmentation's counts"),
        (lambda rle: {**rle, "counts": "~~~"}, r"cannot be read: they are not in COCO's form"),
        (lambda rle: {**rle, "counts": "oooooooooo0"}, r"cannot be read"),
        (lambda rle: {**rle, "counts": "5"}, r"are of 5 pixels, expected 3072"),
        (lambda rle: {**rle, "counts": [1, 2, 3]}, r"are of 6 pixels, expected 3072"),
        (lambda rle: {**rle, "counts": [3073, -1]}, r"counts are \[3073, -1\]"),
        (lambda rle: {**rle, "counts": 7}, r"counts are 7, expected text"),
        (lambda rle: [[1, 2, 3]], r"segmentation is \[\[1, 2, 3\]\], expected polygons"),
        (lambda rle: [[1, 2, 3, 4, 5, float("nan")]], r"expected polygons"),
        (lambda rle: [[1, 2, 3, 4, 5, 1e9]], r"far outside"),
        (lambda rle: "a mask", r"segmentation is 'a mask', expected polygons"),
    ],
)
def test_a_broken_mask_is_one_clear_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = write(tmp_path, {"segmentation": SQUARE})
    for box in ([10, 10, 20, 20], None):
        entries = [result(segmentation=square()), result(segmentation=change(square()), bbox=box)]
        with pytest.raises(InputError, match=message) as caught:
            score_results(path, entries)
        text = str(caught.value)
        assert text.startswith("results: entry 1: segmentation") and "\n" not in text
    # An annotation with it is left out.
    scores = score_results(
        write(tmp_path, {"segmentation": SQUARE}, {"segmentation": change(square())}),
        [result(segmentation=square())],
    )
    assert scores.mask_stats is not None and scores.mask_stats["AP"] == pytest.approx(1)
    assert "1 annotations without a usable mask" in scores.warnings[0]


def test_the_report_shows_both(tmp_path: Path) -> None:
    from sparsedet.evaluation.analysis import analyse
    from sparsedet.evaluation.coco import load_coco

    path = write(tmp_path, {"segmentation": SQUARE})
    results = [result(segmentation=square())]
    dataset = load_coco(path, tmp_path)
    analysis = analyse(dataset, results)
    page = render_report(score_results(path, results), analysis, dataset, title="t", facts={})
    assert "<th>boxes</th><th>masks</th>" in page
