"""COCO-format ground truth: what is read, corrected and counted, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet.errors import InputError
from sparsedet.evaluation.coco import (
    BAD_BOX,
    BAD_CROWD,
    NO_CATEGORY_ID,
    NO_IMAGE_ID,
    SAME_FILE,
    TWO_IDS,
    CocoDataset,
    load_coco,
)
from sparsedet.evaluation.coco_fields import Id, finite_numbers, id_key, id_order
from sparsedet.evaluation.results import validate_results
from sparsedet.files import read_json
from sparsedet.model.config import COCO_CATEGORY_IDS, COCO_NAMES

NO_AREA = "boxes without area skipped in training (scored as by pycocotools)"
OUTSIDE = "boxes outside the image skipped in training (scored as by pycocotools)"
EVAL = Path(__file__).parents[1] / "data" / "eval"


def document(**changes: Any) -> dict[str, Any]:
    """A sound data set: two images, two classes in descending id order, three boxes."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
            {"id": 3, "file_name": "b.jpg", "width": 60, "height": 80},
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 10, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 20, "bbox": [10, 5, 30, 20], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 10, "bbox": [0, 0, 60, 80], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 10, "bbox": [0.5, 0.25, 2.5, 4]},
        ],
        **changes,
    }


def load(folder: Path, content: Any, class_names: list[str] | None = None) -> CocoDataset:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return load_coco(path, folder, class_names)


def with_boxes(*boxes: Any, **extra: Any) -> dict[str, Any]:
    entries = [
        {"id": i, "image_id": 7, "category_id": 10, "bbox": b, **extra} for i, b in enumerate(boxes)
    ]
    return document(annotations=entries)


# ----------------------------------------------------------------------------- sound data


def test_a_sound_data_set(tmp_path: Path) -> None:
    data = load(tmp_path, document())
    assert (data.class_names, data.category_ids) == (("cat", "dog"), (10, 20))
    assert not data.problems and not data.warnings()
    first, second = data.images
    assert (first.id, first.file_name, first.width, first.height) == (7, "a.jpg", 100, 50)
    assert first.boxes.tolist() == [[10, 5, 40, 25], [0.5, 0.25, 3, 4.25]]
    assert first.labels.tolist() == [2, 1] and first.crowd.tolist() == [False, False]
    assert second.labels.tolist() == [1] and second.crowd.tolist() == [True]
    assert data.image_path(first) == tmp_path / "a.jpg"


def test_the_real_development_set() -> None:
    data = load_coco(EVAL / "instances_dev_val.json", EVAL)
    assert len(data.images) == 220
    assert sum(len(image.boxes) for image in data.images) == 2019
    assert sum(int(image.crowd.sum()) for image in data.images) == 27
    assert data.class_names == COCO_NAMES and data.category_ids == COCO_CATEGORY_IDS
    assert all((image.labels == 1).any() for image in data.images)  # a person on every one
    assert not data.problems


def test_classes_by_name_in_the_order_asked_for(tmp_path: Path) -> None:
    data = load(tmp_path, document(), ["horse", "dog"])
    assert (data.class_names, data.category_ids) == (("horse", "dog"), (-1, 20))
    assert [image.labels.tolist() for image in data.images] == [[2], []]
    assert data.problems == {"annotations of a class not asked for skipped": 2}
    person = load_coco(EVAL / "instances_dev_val.json", EVAL, ["person"])
    everything = load_coco(EVAL / "instances_dev_val.json", EVAL)
    for few, all_ in zip(person.images, everything.images, strict=True):
        np.testing.assert_array_equal(few.boxes, all_.boxes[all_.labels == 1])


def test_images_without_objects_stay(tmp_path: Path) -> None:
    data = load(tmp_path, document(annotations=[]))
    assert [image.boxes.shape for image in data.images] == [(0, 4), (0, 4)]
    assert data.images[0].labels.dtype == np.int64 and data.images[0].crowd.dtype == np.bool_


def test_ids_written_as_floats_become_integers(tmp_path: Path) -> None:
    content = document()
    for entry in content["images"] + content["categories"] + content["annotations"]:
        for key in {"id", "image_id", "category_id", "width", "height"} & set(entry):
            entry[key] = float(entry[key])
    floats, integers = load(tmp_path, content), load(tmp_path, document())
    assert floats.category_ids == integers.category_ids
    for a, b in zip(floats.images, integers.images, strict=True):
        assert (a.id, a.width, a.height) == (b.id, b.width, b.height)
        assert all(type(v) is int for v in (a.id, a.width, a.height))
        np.testing.assert_array_equal(a.labels, b.labels)


# ----------------------------------------------------- what tools write in other types


def as_text(entry: dict[str, Any]) -> dict[str, Any]:
    """All numbers as text, those of lists too."""
    return {
        key: [str(v) for v in value] if isinstance(value, list) else str(value)
        for key, value in entry.items()
    }


def test_numbers_written_as_text_mean_the_same(tmp_path: Path) -> None:
    sound = load(tmp_path, document())
    text = {name: [as_text(e) for e in entries] for name, entries in document().items()}
    data = load(tmp_path, text)
    assert not data.problems
    assert data.category_ids == ("10", "20") and [i.id for i in data.images] == ["7", "3"]
    assert data.whole_category_ids() == (10, 20)
    for a, b in zip(data.images, sound.images, strict=True):
        assert (a.file_name, a.width, a.height) == (b.file_name, b.width, b.height)
        for name in ("boxes", "labels", "crowd"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_ids_may_be_any_text(tmp_path: Path) -> None:
    content = document()
    names = {7: "street/a 1", 3: "007", 20: "hund", 10: "katze"}
    for entry in content["images"] + content["categories"]:
        entry["id"] = names[entry["id"]]
    for entry in content["annotations"]:
        entry |= {key: names[entry[key]] for key in ("image_id", "category_id")}
    data = load(tmp_path, content)
    assert not data.problems and [i.id for i in data.images] == ["street/a 1", "007"]
    assert [i.labels.tolist() for i in data.images] == [[1, 2], [2]]  # by id: hund, katze
    assert (data.class_names, data.category_ids) == (("dog", "cat"), ("hund", "katze"))
    assert data.whole_category_ids() == (1, 2)  # for a model file, which has numbers
    content["annotations"][0]["image_id"] = 7  # not "007"
    assert load(tmp_path, content).problems == {"annotations of an unknown image skipped": 1}


def test_one_id_in_several_forms_is_one_id(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0] |= {"image_id": "7", "category_id": 20.0}
    content["annotations"][2] |= {"image_id": 7.0, "category_id": "10"}
    data = load(tmp_path, content)
    assert not data.problems and [len(i.boxes) for i in data.images] == [2, 1]
    assert [id_key(v) for v in (7, 7.0, "7", np.int64(7), "007", "7.0")] == [7] * 4 + ["007", "7.0"]
    no_ids: list[Any] = [None, True, "", 1.5, [7], {}, float("nan")]
    assert [id_key(v) for v in no_ids] == [None] * 7
    ids: list[Id] = ["b", 10, "9", "a", 2]
    assert sorted(ids, key=id_order) == [2, "9", 10, "a", "b"]


@pytest.mark.parametrize("crowd", [0, 0.0, False, "0", "false", "False", " 0 ", "", None, "0.0"])
def test_what_is_no_crowd(tmp_path: Path, crowd: Any) -> None:
    data = load(tmp_path, with_boxes([1, 2, 3, 4], iscrowd=crowd))
    assert data.images[0].crowd.tolist() == [False] and not data.problems


@pytest.mark.parametrize("crowd", [1, 1.0, True, "1", "true", "TRUE", "1.0"])
def test_what_is_a_crowd(tmp_path: Path, crowd: Any) -> None:
    data = load(tmp_path, with_boxes([1, 2, 3, 4], iscrowd=crowd))
    assert data.images[0].crowd.tolist() == [True] and not data.problems


def test_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(document()).encode())
    assert len(load_coco(path, tmp_path).images[0].boxes) == 2


def test_a_file_name_written_on_windows(tmp_path: Path) -> None:
    content = document()
    content["images"][0]["file_name"] = "left\\a.jpg"
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    data = load(tmp_path, content)
    data.require_images()
    assert data.image_path(data.images[0]) == tmp_path / "left" / "a.jpg"


# ------------------------------------------------------------------ mended and counted


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image_id": None}, NO_IMAGE_ID),
        ({"image_id": 1.5}, NO_IMAGE_ID),
        ({"image_id": [7]}, NO_IMAGE_ID),
        ({"category_id": None}, NO_CATEGORY_ID),
        ({"category_id": True}, NO_CATEGORY_ID),
        ({"bbox": None}, BAD_BOX),
        ({"iscrowd": 2}, BAD_CROWD),
        ({"iscrowd": "yes"}, BAD_CROWD),
        ({"iscrowd": [0]}, BAD_CROWD),
        ({"iscrowd": -1}, BAD_CROWD),
    ],
)
def test_an_annotation_that_cannot_be_used_is_skipped_and_counted(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    content = document()
    bad = {**content["annotations"][0], "id": "x9", **changes}
    content["annotations"] += [bad, {**bad, "id": 5}]
    data = load(tmp_path, content)
    assert [len(i.boxes) for i in data.images] == [2, 1]
    assert data.problems == {problem: 2}
    assert data.warnings() == [f"{data.path}: 2 {problem} (first: annotation x9)"]


def test_annotations_that_lack_keys_are_skipped_and_counted(tmp_path: Path) -> None:
    content = document()
    content["annotations"] += [
        None,
        {},
        {"image_id": 7},
        {"image_id": 7, "category_id": 10, "segmentation": [[8, 8, 24, 8, 24, 48]]},
    ]
    data = load(tmp_path, content)
    assert data.problems == {NO_IMAGE_ID: 2, NO_CATEGORY_ID: 1, BAD_BOX: 1}
    assert f"{data.path}: 2 {NO_IMAGE_ID} (first: number 4 of the list)" in data.warnings()


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([10, 10, 0, 5], NO_AREA),
        ([10, 10, 5, -5], NO_AREA),
        ([99.9999999, 10, 1e-7, 5], NO_AREA),  # closes in float32
        ([100, 10, 5, 5], OUTSIDE),
        ([-20, 10, 20, 5], OUTSIDE),
        ([10, 1e300, 1e300, 1e300], OUTSIDE),
        ([10, 10, 5], BAD_BOX),
        ([10, 10, 5, None], BAD_BOX),
        ([10, 10, 5, "five"], BAD_BOX),
        ([10, 10, 5, "nan"], BAD_BOX),
        ([10, 10, 5, "1_0"], BAD_BOX),
        ([], BAD_BOX),
        ({}, BAD_BOX),
        (None, BAD_BOX),
        ("1", BAD_BOX),
        ([10, 10, 5, True], BAD_BOX),
        ([10, 10, 5, float("nan")], BAD_BOX),
        ([10, 10, float("inf"), 5], BAD_BOX),
        ([10, 10, 5, 10**400], BAD_BOX),
    ],
)
def test_a_bad_box_is_skipped_and_counted(tmp_path: Path, box: Any, problem: str) -> None:
    data = load(tmp_path, with_boxes(box, [1, 2, 3, 4], box))
    assert data.images[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert data.problems == {problem: 2}
    assert data.warnings() == [f"{data.path}: 2 {problem} (first: annotation 0)"]
    assert data.warnings([]) == []


def test_boxes_over_the_edge_are_clipped_and_counted_from_a_pixel_on(tmp_path: Path) -> None:
    data = load(tmp_path, with_boxes([-5, -6, 20, 30], [90, 40, 10.5, 10.9], [0, 0, 1e30, 1e30]))
    assert data.images[0].boxes.tolist() == [[0, 0, 15, 24], [90, 40, 100, 50], [0, 0, 100, 50]]
    assert data.problems == {"boxes reaching over the image's edge clipped in training": 2}


def test_unknown_images_and_categories_are_skipped_and_counted(tmp_path: Path) -> None:
    content = document()
    content["annotations"] += [
        {"image_id": 99, "category_id": 10, "bbox": [1, 1, 2, 2]},
        {"image_id": 7, "category_id": 11, "bbox": [1, 1, 2, 2]},
    ]
    data = load(tmp_path, content)
    assert sum(len(image.boxes) for image in data.images) == 3
    assert data.problems == {
        "annotations of an unknown image skipped": 1,
        "annotations of an unknown category skipped": 1,
    }


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_boxes_what_is_kept_can_be_trained_on(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-9, 10, size=(200, 4))
    boxes = (random.normal(size=(200, 4)) * scale).tolist()
    data = load(tmp_path, with_boxes(*boxes))
    kept = data.images[0].boxes
    assert len(kept) + sum(n for what, n in data.problems.items() if "skipped" in what) == 200
    assert len(kept) > 0
    assert (kept[:, 2:] > kept[:, :2]).all()
    assert (kept >= 0).all() and (kept <= [100, 50, 100, 50]).all()


# ----------------------------------------------------------------------------- refused


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "not valid JSON"),
        ('{"images": [', "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "not valid JSON"),
        ([], "top level"),
        ({}, "'images'"),
        (document(annotations={}), "'annotations'"),
        (document(categories=None), "'categories'"),
        (document(images=[]), "no images"),
        (document(categories=[]), "none of its categories"),
        (document(images=["a.jpg"]), "'images' has no 'id'"),
        (document(images=[{"id": 1, "file_name": "a.jpg", "width": 10}]), "'height'"),
        (document(images=[IMAGE, {**IMAGE, "file_name": "b.jpg"}]), "id 1 appears twice"),
        (document(images=[IMAGE, {**IMAGE, "id": "1"}]), "id 1 appears twice"),
        (document(images=[{**IMAGE, "id": True}]), r"images.id is True, expected a whole number"),
        (document(images=[{**IMAGE, "id": 1.5}]), r"images.id is 1.5, expected a whole number"),
        (document(images=[{**IMAGE, "id": ""}]), r"images.id is '', expected a whole number"),
        (document(images=[{**IMAGE, "id": None}]), r"images.id is None, expected a whole number"),
        (document(images=[{**IMAGE, "width": 0}]), "size 0x10"),
        (document(images=[{**IMAGE, "height": 1e30}]), "size 10x1000"),
        (document(images=[{**IMAGE, "width": float("nan")}]), "images.width is nan"),
        (document(images=[{**IMAGE, "file_name": 5}], annotations=[]), "images.file_name is 5"),
        (document(categories=[{"id": 1}]), "'categories' has no 'name'"),
        (document(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "category 1 'b'"),
        (document(categories=[{"id": -1, "name": "a"}]), "negative"),
    ],
)
def test_what_is_not_a_data_set_is_refused_in_one_line(
    tmp_path: Path, content: Any, named: str
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'instances.json'}: ")
    assert "\n" not in message


def test_no_usable_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its categories is among the 2 classes"):
        load(tmp_path, document(), ["horse", "cow"])
    with pytest.raises(InputError, match="twice"):
        load(tmp_path, document(), ["cat", "cat"])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: No such file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(InputError, match="directory"):
        read_json(tmp_path)
    (tmp_path / "latin.json").write_bytes('{"name": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.json: not valid JSON"):
        read_json(tmp_path / "latin.json")


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    content = document()
    content["images"].append({**content["images"][0], "id": 8, "file_name": "x" * 5000})
    data = load(tmp_path, content)
    with pytest.raises(InputError, match=r"3 of 3 images are missing, first 'a\.jpg'"):
        data.require_images()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").mkdir()
    with pytest.raises(InputError, match=r"2 of 3 images are missing, first 'b\.jpg'"):
        data.require_images()
    (tmp_path / "b.jpg").rmdir()
    (tmp_path / "b.jpg").touch()
    load(tmp_path, document()).require_images()


def test_finite_numbers() -> None:
    assert finite_numbers([1, 2.5], 2) == [1.0, 2.5]
    assert finite_numbers(["1", " -2.5e1 "], 2) == [1.0, -25.0]
    assert finite_numbers((np.float32(0.5), np.int64(3)), 2) == [0.5, 3.0]
    for bad in ([1], [1, 2, 3], "12", None, [1, False], [1, float("inf")], [1, 10**400]):
        assert finite_numbers(bad, 2) is None
    for text in ("two", "inf", "nan", "", "1_0", "0x1", "1e999", "\u0663"):
        assert finite_numbers([1, text], 2) is None


# ------------------------------------------------------------------- what exporters write


def test_a_category_listed_twice_is_one_class(tmp_path: Path) -> None:
    group = {"id": 0, "name": "dog", "supercategory": "none"}  # of Roboflow: no objects of its own
    dog, cat = document()["categories"]
    data = load(tmp_path, document(categories=[group, dog, cat]))
    assert (data.class_names, data.category_ids) == (("cat", "dog"), (10, 20))
    assert dict(data.problems) == {TWO_IDS: 1} and data.examples[TWO_IDS] == "category 0 'dog'"
    assert data.images[0].labels.tolist() == [2, 1]
    repeated = load(tmp_path, document(categories=[dog, cat, dog, dog]))  # of renderers
    assert repeated.class_names == ("cat", "dog") and not repeated.problems


def test_objects_and_results_of_both_ids_count_for_the_class(tmp_path: Path) -> None:
    content = document(categories=[{"id": i, "name": "cat"} for i in (10, "20")])
    data = load(tmp_path, content)
    assert (data.class_names, data.category_ids) == (("cat",), (10,))  # the first that is used
    assert data.images[0].labels.tolist() == [1, 1]
    box = {"image_id": 7, "bbox": [0, 0, 9, 9], "score": 0.5}
    checked = validate_results(data, [{**box, "category_id": id_} for id_ in (10, 20)])
    assert [r["category_id"] for r in checked.results] == [10, 10] and not checked.warnings
    assert {entry["category_id"] for entry in checked.ground_truth} == {10}
    assert len(checked.ground_truth) == 3
    only = load(tmp_path, content, ["cat", "horse"])
    assert only.category_ids == (10, -1) and len(only.images[0].labels) == 2


def test_images_that_share_a_file_are_told(tmp_path: Path) -> None:
    first, second = document()["images"]
    for name in ("a.jpg", "./a.jpg", "x\\..\\a.jpg"):
        data = load(tmp_path, document(images=[first, {**second, "file_name": name}]))
        assert dict(data.problems) == {SAME_FILE: 1} and len(data.images) == 2
        assert data.examples[SAME_FILE].startswith("image 3 ")
    assert not load(tmp_path, document(images=[first, {**second, "file_name": "b/a.jpg"}])).problems


@pytest.mark.parametrize("written", ["a%20b%20%C3%A9.jpg", ".\\a%20b%20%C3%A9.jpg", "a b é.jpg"])
def test_names_in_the_form_of_web_addresses(tmp_path: Path, written: str) -> None:
    image = {"id": 7, "file_name": written, "width": 10, "height": 10}
    data = load(tmp_path, document(images=[image]))
    assert not data.image_path(data.images[0]).exists()
    (tmp_path / "a b é.jpg").touch()
    data.require_images()
    exact = tmp_path / written
    if "\\" not in written:  # a file of that very name comes first
        exact.touch()
        assert data.image_path(data.images[0]) == exact


def test_a_folder_of_images_given_one_too_deep(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "d.json").write_text(
        json.dumps(document(images=[{**document()["images"][0], "file_name": "images\\a.jpg"}]))
    )
    load_coco(tmp_path / "d.json", tmp_path).require_images()
    with pytest.raises(InputError, match=r"1 of 1 images are missing.*; give --images ") as caught:
        load_coco(tmp_path / "d.json", tmp_path / "images").require_images()
    assert str(caught.value).endswith(str(tmp_path))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_json_in_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"name": "é\\u00e9"}\r\n', encoding=encoding)
    assert read_json(path) == {"name": "éé"}


def test_what_is_given_in_place_of_json_is_named(tmp_path: Path) -> None:
    for start, match in (
        (b"PK\3\4\x14\0", "is a ZIP file: unpack it"),
        (b"\x1f\x8b\x08\0", "is a compressed file"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ):
        (tmp_path / "data.json").write_bytes(start + bytes(99))
        with pytest.raises(InputError, match=match) as caught:
            read_json(tmp_path / "data.json")
        assert str(caught.value).startswith(str(tmp_path / "data.json"))
