"""`sparsedet eval` and `sparsedet compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.coco_files import coco
from helpers.commands import Outcome, Run, refused, tree
from helpers.small import SMALL

from sparsedet.errors import InputError
from sparsedet.evaluation import score_results
from sparsedet.model.file import load_model, save_model


@pytest.fixture
def evaluate(run: Run, small_model: Path) -> Callable[..., Outcome]:
    pytest.importorskip("pycocotools")

    def call(files: tuple[Path, Path], *flags: object) -> Outcome:
        return run(
            "eval",
            "--model",
            small_model,
            "--threads",
            1,
            "--annotations",
            files[0],
            "--images",
            files[1],
            *flags,
        )

    return call


def test_eval(evaluate: Run, tmp_path: Path) -> None:
    files = coco(tmp_path)
    outcome = evaluate(files, "--json", tmp_path / "s.json", "--results", tmp_path / "r.json")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith("2 images, ")
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["images"] == 2 and 0 <= scores["stats"]["AP"] <= 1
    results = json.loads((tmp_path / "r.json").read_text())
    assert len(results) == scores["detections"] > 10
    assert {r["image_id"] for r in results} == {1, 2}
    assert {r["category_id"] for r in results} <= set(SMALL.category_ids)


def test_eval_of_masks(run: Run, tmp_path: Path, mask_model: Path) -> None:
    pytest.importorskip("pycocotools")
    annotations, images = coco(tmp_path)
    document = json.loads(annotations.read_text())
    document["categories"] = [{"id": 3, "name": "class 1"}]
    for entry in document["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["category_id"] = 3
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    annotations.write_text(json.dumps(document))
    out = tmp_path / "s.json", tmp_path / "r.json"
    files = (
        "--annotations",
        annotations,
        "--images",
        images,
        "--json",
        out[0],
        "--results",
        out[1],
    )
    outcome = run("eval", "--model", mask_model, "--threads", 1, *files)
    assert outcome.code == 0, outcome.err
    assert "  boxes  masks\n" in outcome.out and "mask AP" in outcome.out
    results = json.loads(out[1].read_text())
    assert len(results) > 3 and all(r["segmentation"]["size"] == [90, 120] for r in results)
    scores = json.loads(out[0].read_text())
    assert score_results(annotations, results).mask_stats == scores["mask_stats"]
    results[1]["segmentation"]["counts"] = "~"
    with pytest.raises(InputError, match=r"results: entry 1: segmentation's counts"):
        score_results(annotations, results)


def test_single_bad_annotations_are_counted_warnings(evaluate: Run, tmp_path: Path) -> None:
    one = {"id": 1, "image_id": 1, "category_id": 17, "iscrowd": 0, "area": 9}
    bad = [
        {**one, "bbox": [500, 500, 3, 3]},
        {**one, "bbox": [5, 5, 0, 3]},
        {**one, "bbox": [5, 5, 3, 3], "category_id": 99},
        {**one, "bbox": [5, 5, 3, 3], "image_id": 99},
        {**one, "bbox": [100, 5, 60, 3]},
        {**one, "bbox": [5, 5, 9, 9]},
    ]
    outcome = evaluate(coco(tmp_path, annotations=bad))
    assert outcome.code == 0
    warnings = outcome.err.splitlines()
    assert all(line.startswith("sparsedet: warning: ") and " 1 " in line for line in warnings)
    for word in ("outside", "without area", "unknown category", "unknown image", "clipped"):
        assert sum(word in line for line in warnings) == 1, word


BAD_COCO: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": None}, "no list 'images'"),
    "no annotations": ({"annotations": None}, "no list 'annotations'"),
    "no categories": ({"categories": None}, "no list 'categories'"),
    "empty": ({"images": []}, "no images"),
    "no file name": ({"images": [{"id": 1, "width": 120, "height": 90}]}, "'file_name'"),
    "no width": ({"images": [{"id": 1, "file_name": "1.png", "height": 90}]}, "'width'"),
    "other classes": ({"categories": [{"id": 1, "name": "zebra"}]}, "none of its categories"),
    "missing photograph": (
        {
            "images": [
                {"id": n, "file_name": f"{n + 8}.png", "width": 120, "height": 90} for n in (1, 2)
            ]
        },
        "2 of 2 images are missing, first '9.png'",
    ),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_bad_data_set(evaluate: Run, tmp_path: Path, case: str) -> None:
    changes, word = BAD_COCO[case]
    files = coco(tmp_path, **changes)
    before = tree(tmp_path)
    refused(evaluate(files, "--json", tmp_path / "s.json", "--results", tmp_path / "r.json"), word)
    assert tree(tmp_path) == before


def test_bad_eval(evaluate: Run, tmp_path: Path) -> None:
    path, images = coco(tmp_path)
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "list.json").write_text("[1]")
    (images / "2.png").write_bytes(b"broken")
    before = tree(tmp_path)
    refused(evaluate((tmp_path / "none.json", images)), "none.json", "No such file")
    refused(evaluate((tmp_path / "text.json", images)), "text.json", "not valid JSON")
    refused(evaluate((tmp_path / "list.json", images)), "list.json", "not a COCO data set")
    refused(evaluate((path, tmp_path / "none")), "2 of 2 images are missing")
    refused(evaluate((path, images), "--limit", 0), "limit is 0", code=2)
    refused(evaluate((path, images), "--json", path), "exists already")
    refused(evaluate((path, images), "--results", path / "r.json"), "cannot be written")
    refused(evaluate((path, images), "--json", tmp_path / "s.json"), "2.png")
    assert tree(tmp_path) == before
    outcome = evaluate((path, images), "--bad-images", "skip")
    assert outcome.code == 0 and outcome.err.count("sparsedet: warning: ") == 1
    old = evaluate((path, images), "--skip-bad")
    assert old.code == 0 and "--skip-bad is now --bad-images skip" in old.err


def test_eval_report(evaluate: Run, tmp_path: Path) -> None:
    files = coco(tmp_path)
    page, figures = tmp_path / "r.html", tmp_path / "s.json"
    outcome = evaluate(files, "--report", page, "--json", figures, "--score-threshold", 0.1)
    assert outcome.code == 0 and outcome.out.endswith(f"-> {page}\n")
    for words in (
        "AP (pycocotools)",
        "AP (Open Model Zoo coco_precision)",
        "AP by IoU",
        "scores from 0.1",
        "Most mistakes",
    ):
        assert words in outcome.out
    text = page.read_text(encoding="utf-8")
    assert "1.png" in text and "dög" in text and "data:image/jpeg" in text
    data = json.loads(figures.read_text())
    assert data["analysis"]["score"] == 0.1 and "coco_precision" in data
    before = tree(tmp_path)
    refused(evaluate(files, "--report", page), "r.html", "exists already")
    refused(evaluate(files, "--report", tmp_path / "none" / "r.html"), "cannot be written")
    refused(
        evaluate(files, "--report", tmp_path / "n", "--json", tmp_path / "n"), "one name", code=2
    )
    refused(evaluate(files, "--score-threshold", 2), "--score-threshold is 2", code=2)
    assert tree(tmp_path) == before
    assert evaluate(files, "--report", page, "--overwrite").code == 0


def test_compare(run: Run, small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    annotations, images = coco(tmp_path)
    target = tmp_path / "c.json"

    def call(a: object, b: object, *flags: object) -> Outcome:
        return run(
            "compare",
            a,
            b,
            "--annotations",
            annotations,
            "--images",
            images,
            "--threads",
            1,
            *flags,
        )

    outcome = call(small_model, small_model, "--json", target)
    assert outcome.code == 0 and outcome.err == ""
    assert "2 images" in outcome.out and "do not tell them apart" in outcome.out
    data = json.loads(target.read_text())
    assert data["a"]["scores"]["stats"] == data["b"]["scores"]["stats"]
    assert data["a"]["size_mb"] == small_model.stat().st_size / 1e6
    before = tree(tmp_path)
    refused(call(small_model, small_model, "--json", target), "c.json", "exists already")
    refused(call(small_model, tmp_path / "absent"), "absent")
    model, other = load_model(small_model), tmp_path / "other.safetensors"
    save_model(other, replace(model.config, class_names=("a", "b", "c")), model.tensors, {})
    before = tree(tmp_path)
    refused(call(small_model, other), "no class in common")
    refused(call(small_model, small_model, "--limit", 0), "limit is 0", code=2)
    assert tree(tmp_path) == before
    shared = call(small_model, "picodet-s", "--limit", 1)  # cat and traffic light
    assert shared.code == 0 and "classes that are not scored" in shared.err


def test_annotations_as_exporters_write_them(evaluate: Run, tmp_path: Path) -> None:
    path, images = coco(tmp_path)
    data = json.loads(path.read_text())
    plain = evaluate((path, images)).out
    for entry in data["images"]:
        entry["id"] = f"a{entry['id']}"
    for entry in data["annotations"]:
        entry |= {"image_id": f"a{entry['image_id']}", "iscrowd": "0", "area": str(entry["area"])}
    bad = {"image_id": "a1", "category_id": 17}
    data["annotations"] += [
        {**bad, "id": 70, "bbox": None},
        {**bad, "id": 71},
        {**bad, "id": 72, "bbox": []},
    ]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(data).encode())
    results = tmp_path / "r.json"
    outcome = evaluate((path, images), "--results", results, "--limit", 2)
    assert (outcome.code, outcome.out) == (0, plain)
    (line,) = outcome.err.splitlines()
    assert "3 annotations whose bbox is not four numbers" in line and "annotation 70" in line
    assert {entry["image_id"] for entry in json.loads(results.read_text())} == {"a1", "a2"}


def test_the_old_spelling_of_bad_images_does_the_same(evaluate: Run, tmp_path: Path) -> None:
    path, images = coco(tmp_path)
    (images / "2.png").write_bytes(b"")
    outcome, old = (
        evaluate((path, images), "--bad-images", "skip"),
        evaluate((path, images), "--skip-bad"),
    )
    assert old.out == outcome.out and old.err.splitlines()[1:] == outcome.err.splitlines()
    assert "2.png: the file is empty" in outcome.err
    stopped = evaluate((path, images))
    refused(stopped, "2.png: the file is empty", "--bad-images skip")
