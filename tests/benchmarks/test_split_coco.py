"""Joining annotation files and splitting their photographs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import split_coco
from helpers.tiny_training import make_data

from sparsedet import InputError
from sparsedet.evaluation.coco import load_coco


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two data sets of 8 and 4 photographs with different ids."""
    make_data(tmp_path / "one", 8)
    path, _ = make_data(tmp_path / "two", 4)
    data = json.loads(path.read_text())
    for entry in data["images"]:
        entry["id"] += 100
    for entry in data["annotations"]:
        entry["image_id"] += 100
    path.write_text(json.dumps(data))
    return tmp_path


BOTH = [("one/instances.json", "one/images"), ("two/instances.json", "two/images")]


def run(monkeypatch: pytest.MonkeyPatch, root: Path, *more: str) -> dict[str, Any]:
    words = [f"{file}={folder}" for file, folder in BOTH]
    given = ["--root", str(root), "--held-out", "5", "--output", str(root / "split"), *more]
    monkeypatch.setattr(sys, "argv", ["split_coco.py", *words, *given])
    split_coco.main()
    names = ("train", "held_out")
    return {name: json.loads((root / "split" / f"{name}.json").read_text()) for name in names}


def test_every_photograph_is_in_one_part_with_all_its_objects(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = run(monkeypatch, root)
    assert "held_out.json: 5 images" in capsys.readouterr().out
    ids = {name: {image["id"] for image in part["images"]} for name, part in parts.items()}
    assert len(ids["held_out"]) == 5 and len(ids["train"]) == 7
    assert ids["held_out"] | ids["train"] == {*range(1, 9), *range(101, 105)}
    boxes = []
    for name, part in parts.items():
        rows = part["annotations"]
        assert {row["image_id"] for row in rows} == ids[name]
        assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
        boxes += [(row["image_id"], tuple(row["bbox"]), row["category_id"]) for row in rows]
        dataset = load_coco(root / "split" / f"{name}.json", root)
        dataset.require_images()
        assert dataset.class_names == ("red box", "green box", "blue bär")
    before = [json.loads((root / file).read_text())["annotations"] for file, _ in BOTH]
    given = [(r["image_id"], tuple(r["bbox"]), r["category_id"]) for rows in before for r in rows]
    assert sorted(boxes) == sorted(given)


def test_the_seed_and_the_ids_decide(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(monkeypatch, root)
    with pytest.raises(InputError, match="exists"):
        run(monkeypatch, root)
    assert run(monkeypatch, root, "--overwrite") == first
    assert run(monkeypatch, root, "--overwrite", "--seed", "2") != first
    joined = split_coco.join(root, BOTH)
    joined["images"].reverse()
    ids = {image["id"] for image in split_coco.split(joined, 5, 1)[1]["images"]}
    assert ids == {image["id"] for image in first["held_out"]["images"]}
    more = {image["id"] for image in split_coco.split(joined, 7, 1)[1]["images"]}
    assert ids < more


def test_what_cannot_be_joined_or_split(root: Path) -> None:
    with pytest.raises(InputError, match=r"image 1 is also in one/instances\.json"):
        split_coco.join(root, [BOTH[0], BOTH[0]])
    for count in (0, 12):
        with pytest.raises(InputError, match=r"expected 1\.\.11"):
            split_coco.split(split_coco.join(root, BOTH), count, 1)
    path = root / BOTH[1][0]
    data = json.loads(path.read_text())
    data["categories"][0]["id"] = 77
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="class 'red box' has id 77, expected 3"):
        split_coco.join(root, BOTH)
    path.write_text("[]")
    with pytest.raises(InputError, match="not a COCO data set"):
        split_coco.join(root, BOTH)


def test_many_objects_of_a_class_are_beside_a_crowd(root: Path) -> None:
    def row(n: int, image: int, category: int) -> dict[str, Any]:
        box = [10 * n + 0.5, n, 5, 8]
        return {"image_id": image, "category_id": category, "bbox": box, "area": 40, "iscrowd": 0}

    rows = [row(n, 1, 3) for n in range(5)] + [row(n, 1, 5) for n in range(3)]
    rows += [row(n, 2, 3) for n in range(4)]
    assert split_coco.mark_crowds({"annotations": rows}, 6) == rows
    marked = split_coco.mark_crowds({"annotations": rows}, 5)
    crowd = {"image_id": 1, "category_id": 3, "bbox": [0.5, 0, 45, 12], "area": 540, "iscrowd": 1}
    assert marked == [*rows, crowd]
    assert split_coco.mark_crowds({"annotations": marked}, 3) == marked  # it marks its crowds
    path = root / BOTH[1][0]
    data = json.loads(path.read_text())
    data["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(data))
    joined = split_coco.join(root, BOTH, 1)
    crowds = [row["image_id"] for row in joined["annotations"] if row["iscrowd"]]
    assert sum(image > 100 for image in crowds) == 1 and len(crowds) >= 8 + 1
