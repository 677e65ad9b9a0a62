"""The evaluator against published figures, a second implementation, and hostile input."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sparsedet.errors import InputError
from sparsedet.evaluation import STAT_NAMES, CocoScores, evaluate, score_results
from sparsedet.evaluation.analysis import analyse
from sparsedet.evaluation.bootstrap import paired_bootstrap
from sparsedet.evaluation.coco import CocoDataset, load_coco

pytest.importorskip("pycocotools")

EVAL = Path(__file__).parents[1] / "data" / "eval"
FAKE_BOXES = EVAL / "instances_val2014_fakebbox100_results.json"
VAL2014 = EVAL / "instances_val2014_100.json"
DEV_VAL = EVAL / "instances_dev_val.json"


@cache
def picodet_scores() -> CocoScores:
    return score_results(DEV_VAL, picodet())


def picodet() -> list[dict[str, Any]]:
    with gzip.open(EVAL / "picodet_s_416_dev_val.json.gz", "rt", encoding="utf-8") as file:
        results: list[dict[str, Any]] = json.load(file)
    return results


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def perfect(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The ground truth itself as results, crowd regions left out."""
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1}
        for a in document["annotations"]
        if not a.get("iscrowd")
    ]


# ----------------------------------------------------------------- published figures


def test_cocoapis_fake_boxes() -> None:
    published = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    scores = score_results(VAL2014, FAKE_BOXES)
    assert [round(value, 3) for value in scores.stats.values()] == published
    assert (scores.images, scores.detections) == (100, 734)
    assert scores.warnings == ()


def test_padillas_figures() -> None:
    published = [
        0.503647,
        0.696973,
        0.571667,
        0.593252,
        0.557991,
        0.489363,
        0.386813,
        0.593680,
        0.595353,
        0.654764,
        0.603130,
        0.553744,
    ]
    scores = score_results(EVAL / "padilla_gts_bbox_area.json", FAKE_BOXES)
    assert list(scores.stats.values()) == pytest.approx(published, abs=1e-6)


def test_real_detections_on_the_development_set() -> None:
    published = read(EVAL / "picodet_s_416_dev_val_pycocotools_stats.json")
    assert published["stats_order"].split() == list(STAT_NAMES)
    scores = picodet_scores()
    assert list(scores.stats.values()) == pytest.approx(published["stats"], abs=1e-6)
    assert round(scores.stats["AP"], 3) == 0.329
    assert scores.images == 220 and scores.detections == 22_000


def test_faster_coco_evals_figures() -> None:
    # Published for masks, each of which here fits its box or misses; only APm depends on the
    # areas of masks (0.7368), so it is compared with that project's own box figure below.
    published = {
        "AP": 0.6947194719471946,
        "AP50": 0.6947194719471946,
        "AP75": 0.6947194719471946,
        "APs": -1.0,
        "APl": 0.0,
        "AR1": 0.6666666666666666,
        "AR10": 0.75,
        "AR100": 0.75,
        "ARs": -1.0,
        "ARm": 0.7916666666666666,
        "ARl": 0.0,
    }
    stats = score_results(EVAL / "fce_gt_dataset.json", EVAL / "fce_dt_dataset.json").stats
    assert {name: stats[name] for name in published} == pytest.approx(published, abs=1e-12)


@pytest.mark.parametrize(
    ("annotations", "results"),
    [
        (VAL2014, FAKE_BOXES),
        (EVAL / "padilla_gts_bbox_area.json", FAKE_BOXES),
        (EVAL / "fce_gt_dataset.json", EVAL / "fce_dt_dataset.json"),
        (DEV_VAL, None),
    ],
    ids=["cocoapi", "padilla", "fce", "picodet"],
)
def test_a_second_implementation_agrees(annotations: Path, results: Path | None) -> None:
    peer = pytest.importorskip("faster_coco_eval")
    scores = score_results(annotations, results) if results else picodet_scores()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = peer.COCO(str(annotations))
        run = peer.COCOeval_faster(
            theirs, theirs.loadRes(read(results) if results else picodet()), "bbox"
        )
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert list(scores.stats.values()) == pytest.approx(list(run.stats[:12]), abs=1e-9)


# ------------------------------------------------------------------------ properties


def test_perfect_detections_score_one() -> None:
    document = read(VAL2014)
    scores = score_results(VAL2014, perfect(document))
    recalls_of_few = {"AR1", "AR10"}  # several objects of a class share an image
    assert all(scores.stats[n] == pytest.approx(1) for n in STAT_NAMES if n not in recalls_of_few)
    assert 0 < scores.stats["AR1"] < scores.stats["AR10"] < 1
    held = {a["category_id"] for a in document["annotations"] if not a["iscrowd"]}
    for category in document["categories"]:
        row = scores.per_class[category["name"]]
        expected = 1 if category["id"] in held else -1
        assert (row["AP"], row["AP50"]) == pytest.approx((expected, expected))


def test_no_detections_score_zero() -> None:
    scores = score_results(VAL2014, [])
    assert set(scores.stats.values()) == {0.0}
    assert scores.detections == 0 and scores.images == 100
    assert {row["AP"] for row in scores.per_class.values()} == {0.0, -1.0}
    assert "AP50    0.000" in scores.table()


def test_order_of_results_does_not_matter() -> None:
    results = read(FAKE_BOXES)
    ties = Counter((r["image_id"], r["category_id"], r["score"]) for r in results)
    results = [r for r in results if ties[r["image_id"], r["category_id"], r["score"]] == 1]
    assert len(results) > 700
    before = deepcopy(results)
    scores = score_results(VAL2014, results)
    assert results == before  # the caller's entries are left as they are
    random.Random(1).shuffle(results)
    assert score_results(VAL2014, results) == scores


def test_classes_add_up_and_can_be_chosen() -> None:
    everything = score_results(VAL2014, FAKE_BOXES)
    rows = everything.per_class
    for stat in ("AP", "AP50"):
        measured = [row[stat] for row in rows.values() if row[stat] >= 0]
        assert len(measured) == 70
        assert sum(measured) / len(measured) == pytest.approx(everything.stats[stat])
    document = read(VAL2014)
    plain = [a for a in document["annotations"] if not a["iscrowd"]]
    assert sum(row["boxes"] for row in rows.values()) == len(plain)
    people = [a["image_id"] for a in plain if a["category_id"] == 1]
    assert (rows["person"]["images"], rows["person"]["boxes"]) == (len(set(people)), len(people))

    few = score_results(VAL2014, FAKE_BOXES, class_names=["unicorn", "dog", "person"])
    assert list(few.per_class) == ["unicorn", "dog", "person"]
    assert few.per_class["dog"] == rows["dog"] and few.per_class["person"] == rows["person"]
    assert few.per_class["unicorn"] == {
        "AP": -1,
        "AP50": -1,
        "coco_precision": -1,
        "images": 0,
        "boxes": 0,
    }
    assert few.stats["AP"] == pytest.approx((rows["dog"]["AP"] + rows["person"]["AP"]) / 2)
    left_out = everything.detections - few.detections
    assert few.warnings == (f"{FAKE_BOXES}: {left_out} of categories that are not scored left out",)


def test_scores_as_text_and_json() -> None:
    scores = score_results(VAL2014, FAKE_BOXES)
    text = scores.table()
    assert text.startswith("100 images, 734 detections")
    for name, value in scores.stats.items():
        assert f"\n{name:<6}{value:7.3f}\n" in text
    assert "person" in text
    assert "toaster" not in text  # no ground truth
    data = json.loads(json.dumps(scores.to_json()))
    assert data["stats"] == scores.stats and data["per_class"] == scores.per_class
    assert (data["images"], data["detections"], data["warnings"]) == (100, 734, [])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score_results(EVAL / "fce_gt_dataset.json", EVAL / "fce_dt_dataset.json")
    assert capfd.readouterr() == ("", "")


def test_a_missing_evaluator_is_reported_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    message = r"^evaluation needs: pip install sparsedet\[eval\]$"
    with pytest.raises(InputError, match=message):
        score_results("absent.json", [])
    dataset = load_coco(VAL2014, EVAL)
    with pytest.raises(InputError, match=message):
        evaluate(lambda image: pytest.fail("ran the detector"), dataset)


# ------------------------------------------------------------------- a small data set


def document(*annotations: dict[str, Any]) -> dict[str, Any]:
    entries = [
        {"id": i, "image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20], **a}
        for i, a in enumerate(annotations)
    ]
    return {
        "images": [
            {"id": 5, "file_name": "five.png", "width": 64, "height": 48},
            {"id": 2, "file_name": "two.png", "width": 32, "height": 40},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": entries,
    }


def write(folder: Path, content: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def result(**changes: Any) -> dict[str, Any]:
    return {"image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.5, **changes}


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in result().items() if k != key}


def test_annotation_ids_have_no_meaning(tmp_path: Path) -> None:
    # pycocotools takes id 0 for "no match", and the last of equal ids for the only one.
    boxes = [[10 * i, 10, 8, 8] for i in range(5)]
    for ids in ([0, 1, 2, 3, 4], [7, 7, 7, 7, 7], ["a", None, 2.5, -1, 0]):
        entries = [{"id": id_, "bbox": box} for id_, box in zip(ids, boxes, strict=True)]
        path = write(tmp_path, document(*entries))
        scores = score_results(path, [result(bbox=box) for box in boxes])
        assert scores.stats["AP"] == pytest.approx(1)


def test_a_detection_in_a_crowd_is_no_mistake(tmp_path: Path) -> None:
    in_the_crowd = [result(bbox=[40 + i, 20, 10, 10], score=0.9) for i in range(5)]
    results = [result(), *in_the_crowd]
    # Without the flag the region is an object of its own, which nothing fits: precision 1/6 up
    # to recall 1/2, the first 51 of 101 recall points.
    for crowd, expected in ((1, 1.0), (0, 1 / 6 * 51 / 101)):
        path = write(tmp_path, document({}, {"bbox": [38, 15, 24, 30], "iscrowd": crowd}))
        scores = score_results(path, results)
        assert scores.per_class["cat"]["boxes"] == 2 - crowd
        assert scores.stats["AP"] == pytest.approx(expected)


def test_area_comes_from_the_file_and_else_from_the_box(tmp_path: Path) -> None:
    for extra, size in (({"area": 2000.0}, "m"), ({}, "s"), ({"area": None}, "s")):
        stats = score_results(write(tmp_path, document(extra)), [result()]).stats
        assert stats[f"AP{size}"] == pytest.approx(1)
        assert stats["APm" if size == "s" else "APs"] == -1


def test_bad_annotations_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, document({}, {"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, None]}))
    scores = score_results(path, [result()])
    assert scores.stats["AP"] == pytest.approx(1)
    assert scores.warnings == (
        f"{path}: 2 annotations whose bbox is not four numbers skipped (first: annotation 1)",
    )


def test_ids_may_be_whole_floats(tmp_path: Path) -> None:
    path = write(tmp_path, document({"image_id": 5.0, "category_id": 1.0}))
    scores = score_results(path, [result(image_id=5.0, category_id=1.0)])
    assert scores.stats["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (7, "int, expected an object"),
        (without("image_id"), "no 'image_id'"),
        (without("category_id"), "no 'category_id'"),
        (without("bbox"), "no 'bbox'"),
        (without("score"), "no 'score'"),
        (result(image_id=6), "image_id 6 is not in the ground truth"),
        (result(image_id="5x"), "'5x' is not in the ground truth"),
        (result(image_id=True), "expected whole numbers"),
        (result(category_id=1.5), "expected whole numbers"),
        (result(category_id=None), "expected whole numbers"),
        (result(score=float("nan")), "score is nan"),
        (result(score="high"), "score is 'high'"),
        (result(score=10**400), "score is 1000"),
        (result(bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]"),
        (result(bbox={"x": 1}), "bbox is"),
        (result(bbox=[1, 2, 3, float("inf")]), "bbox is"),
        (result(bbox=[1, 2, -3, 4]), "bbox is"),
        (result(bbox=[1] * 10_000), r"bbox is \[1, 1, 1, .*\.\.\."),
    ],
)
def test_bad_results_are_refused_by_entry(tmp_path: Path, entry: Any, named: str) -> None:
    annotations = write(tmp_path, document({}))
    results = [result(), entry]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    for given, where in ((results, "results"), (path, str(path))):
        with pytest.raises(InputError, match=named) as caught:
            score_results(annotations, given)
        message = str(caught.value)
        assert message.startswith(f"{where}: entry 1: ")
        assert "\n" not in message and len(message) < 400


def test_files_that_hold_no_results(tmp_path: Path) -> None:
    annotations = write(tmp_path, document({}))
    with pytest.raises(InputError, match=r"absent\.json: No such file"):
        score_results(annotations, tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"json: no COCO results \(dict, expected a list\)"):
        score_results(annotations, annotations)
    with pytest.raises(InputError, match=r"results: no COCO results"):
        score_results(annotations, {"annotations": []})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="top level"):
        score_results(FAKE_BOXES, FAKE_BOXES)


def test_extreme_but_finite_results_do_no_harm(tmp_path: Path) -> None:
    annotations = write(tmp_path, document({}))
    odd = [result(bbox=[-1e300, 0, 1e300, 1e300], score=-5), result(bbox=[0, 0, 0, 0], score=0.1)]
    assert score_results(annotations, [result(), *odd]).stats["AP"] == pytest.approx(1)


# -------------------------------------------------------------- detectors over images


@dataclass
class NamedBoxes:
    """Stands for `detections.Detections`, with category ids of its own."""

    names: list[str]
    boxes: list[list[float]]

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        return [result(image_id=image_id, category_id=40, bbox=box) for box in self.boxes]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """A cat and a dog on `five.png`, which is all blue, and a dog on `two.png`."""
    dogs = [
        {"category_id": 4, "bbox": [1, 2, 30, 30]},
        {"category_id": 4, "bbox": [3, 4, 9, 9], "image_id": 2},
    ]
    path = write(tmp_path, document({}, *dogs))
    blue = np.zeros((48, 64, 3), np.uint8)
    blue[..., 0] = 255
    assert cv2.imwrite(str(tmp_path / "five.png"), blue)
    assert cv2.imwrite(str(tmp_path / "two.png"), np.zeros((40, 32, 3), np.uint8))
    return load_coco(path, tmp_path)


def oracle(image: np.ndarray) -> NamedBoxes:
    assert image.dtype == np.uint8
    if image[0, 0].tolist() == [255, 0, 0]:  # BGR
        return NamedBoxes(["cat", "dog", "ghost"], [[10, 10, 20, 20], [1, 2, 30, 30], [0, 0, 9, 9]])
    return NamedBoxes(["dog"], [[3, 4, 9, 9]])


def test_a_detector_over_images(dataset: CocoDataset) -> None:
    seen = []
    scores, results = evaluate(
        oracle, dataset, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    assert scores.stats["AP"] == pytest.approx(1)
    assert (scores.images, scores.detections) == (2, 3)
    # Classes are matched by name: the detector's own category ids were 40.
    assert [(r["image_id"], r["category_id"]) for r in results] == [(5, 1), (5, 4), (2, 4)]
    assert scores.warnings == (
        "1 detections of 1 classes that are not scored left out, such as 'ghost'",
    )
    assert score_results(dataset.path, results).stats == scores.stats


def test_only_the_first_images(dataset: CocoDataset) -> None:
    dataset.image_path(dataset.images[1]).unlink()  # not needed, so not missed
    scores, results = evaluate(oracle, dataset, limit=1)
    assert scores.images == 1 and {r["image_id"] for r in results} == {5}
    assert scores.per_class["dog"]["boxes"] == 1
    assert scores.stats["AP"] == pytest.approx(1)
    with pytest.raises(InputError, match="limit is 0"):
        evaluate(oracle, dataset, limit=0)


def test_only_the_classes_of_the_data_set(dataset: CocoDataset) -> None:
    cats = load_coco(dataset.path, dataset.root, ["unicorn", "cat"])
    scores, results = evaluate(oracle, cats)
    assert list(scores.per_class) == ["unicorn", "cat"]
    assert [r["category_id"] for r in results] == [1]
    assert scores.stats["AP"] == pytest.approx(1)


def test_a_missing_image_is_reported_before_the_work(dataset: CocoDataset) -> None:
    dataset.image_path(dataset.images[1]).unlink()
    with pytest.raises(InputError, match=r"1 of 2 images are missing, first 'two\.png'"):
        evaluate(lambda image: pytest.fail("ran the detector"), dataset)


@pytest.mark.parametrize("bad", ["missing", "broken", "size"])
def test_bad_images(dataset: CocoDataset, bad: str) -> None:
    path = dataset.image_path(dataset.images[1])
    if bad == "missing":
        path.unlink()
    elif bad == "broken":
        path.write_bytes(path.read_bytes()[:40])
    else:  # as when an image was turned or replaced
        assert cv2.imwrite(str(path), np.zeros((32, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"two\.png") as caught:
        evaluate(oracle, dataset)
    if bad == "size":
        assert "40x32 pixels, expected 32x40" in str(caught.value)
    scores, results = evaluate(oracle, dataset, bad_images="skip")
    with pytest.warns(DeprecationWarning, match="bad_images='skip'"):
        assert evaluate(oracle, dataset, skip_bad=True) == (scores, results)
    assert evaluate(oracle, dataset, bad_images="keep") == (scores, results)  # nothing to keep
    with pytest.raises(InputError, match="bad_images is 'drop'"):
        evaluate(oracle, dataset, bad_images="drop")  # type: ignore[arg-type]
    assert {r["image_id"] for r in results} == {5}
    assert scores.images == 2  # its dog counts as not found
    assert scores.stats["AP50"] < 1 and scores.per_class["dog"]["boxes"] == 2
    assert any("without detections" in line and "two.png" in line for line in scores.warnings)


def test_bad_images_stop_before_the_work_and_are_counted(dataset: CocoDataset) -> None:
    for image in dataset.images:
        dataset.image_path(image).write_bytes(b"")
    with pytest.raises(InputError, match=r"five\.png: the file is empty.*; 1 more of 2 images are"):
        evaluate(lambda image: pytest.fail("ran the detector"), dataset)


def test_a_turned_image_is_measured_as_it_is_decoded(dataset: CocoDataset) -> None:
    # Its header has 32x48, its EXIF orientation makes 48x32 of it.
    path = dataset.image_path(dataset.images[0]).with_suffix(".jpg")
    _, data = cv2.imencode(".jpg", np.full((64, 48, 3), (255, 0, 0), np.uint8))
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"\xff\xe1" + (8 + len(tiff)).to_bytes(2, "big") + b"Exif\0\0" + tiff
    path.write_bytes(data.tobytes()[:2] + exif + data.tobytes()[2:])
    images = (replace(dataset.images[0], file_name=path.name), dataset.images[1])
    scores, _ = evaluate(lambda image: NamedBoxes([], []), replace(dataset, images=images))
    assert scores.images == 2 and scores.warnings == ()


def test_ids_that_are_text_come_back_in_the_results(dataset: CocoDataset, tmp_path: Path) -> None:
    expected = evaluate(oracle, dataset)[0]
    content = read(dataset.path)
    for entry in content["images"]:
        entry["id"] = f"image {entry['id']}"
    for entry in content["categories"]:
        entry["id"] = f"class {entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"image {entry['image_id']}"
        entry["category_id"] = f"class {entry['category_id']}"
        entry["iscrowd"], entry["area"] = "0", str(entry["bbox"][2] * entry["bbox"][3])
    text = load_coco(write(tmp_path, content), tmp_path)
    scores, results = evaluate(oracle, text)
    assert {(r["image_id"], r["category_id"]) for r in results} == {
        ("image 5", "class 1"),
        ("image 5", "class 4"),
        ("image 2", "class 4"),
    }
    assert scores == expected
    assert score_results(text.path, results).stats == expected.stats
    analysis = analyse(text, results)
    assert analysis.counts() == (3, 0, 0)
    assert {"image 5", "image 2"} == {i["image_id"] for i in analysis.to_json()["photographs"]}
    assert paired_bootstrap(text, results, results)["AP"].difference == 0


def test_results_name_ids_in_any_form(tmp_path: Path) -> None:
    results = [result(image_id="5", category_id=1.0, score="0.5", bbox=["10", "10", 20, 20])]
    assert score_results(write(tmp_path, document({})), results).stats["AP"] == pytest.approx(1)


def test_crowds_written_as_text_are_scored_alike(tmp_path: Path) -> None:
    for crowd, boxes in (("0", 2), (False, 2), (None, 2), ("1", 1), (True, 1)):
        path = write(tmp_path, document({}, {"bbox": [40, 20, 9, 9], "iscrowd": crowd}))
        scores = score_results(path, [result()])
        assert scores.per_class["cat"]["boxes"] == boxes and scores.warnings == ()
    path = write(tmp_path, document({}, {"bbox": [40, 20, 9, 9], "iscrowd": "maybe"}))
    (line,) = score_results(path, [result()]).warnings
    assert "1 annotations whose iscrowd is neither 0 nor 1" in line and "annotation 1" in line


def test_a_detectors_bad_boxes_are_an_error(dataset: CocoDataset) -> None:
    with pytest.raises(InputError, match="detections: entry 0: bbox is"):
        evaluate(lambda image: NamedBoxes(["cat"], [[0, 0, float("nan"), 1]]), dataset)
