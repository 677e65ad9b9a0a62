"""Detections in the forms of other libraries, and back."""

from __future__ import annotations

import pickle
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.small import picture
from test_detections import detect, make_rows

from sparsedet.detections import Detections
from sparsedet.errors import InputError
from sparsedet.model.config import COCO_CATEGORY_IDS, COCO_NAMES

SIZE: dict[str, Any] = {"height": 427, "width": 640}
IDS: dict[str, Any] = {"category_ids": COCO_CATEGORY_IDS}


def same(one: Detections, other: Detections, tolerance: float = 1e-4) -> None:
    """Equal, but for the rounding of boxes."""
    assert np.allclose(one.boxes, other.boxes, atol=tolerance, rtol=0)
    assert np.array_equal(one.scores, other.scores) and np.array_equal(one.labels, other.labels)
    assert one.class_names == other.class_names and one.category_ids == other.category_ids


@pytest.mark.parametrize("count", [0, 1, 40])
def test_each_form_makes_the_round_trip(count: int) -> None:
    found = detect(make_rows(count)) if count else detect(make_rows(3), threshold=2)
    names = COCO_NAMES
    same(found, Detections.from_numpy(found.to_numpy(), names, **SIZE, **IDS))
    same(found, Detections.from_columns(found.to_columns(), names, **SIZE, **IDS))
    # COCO's entries are rounded to a thousandth of a pixel.
    same(found, Detections.from_coco(found.to_coco(1), names, **SIZE, **IDS), 2e-3)
    assert found.to_numpy().shape == (count, 6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("count", [0, 12])
def test_tables(library: str, count: int) -> None:
    pytest.importorskip(library)
    found = detect(make_rows(count)) if count else detect(make_rows(3), threshold=2)
    frame = getattr(found, f"to_{library}")()
    assert list(frame["name"]) == found.names and len(frame) == count
    assert frame["category_id"].sum() == sum(e["category_id"] for e in found.to_coco(0))
    back = getattr(Detections, f"from_{library}")
    same(found, back(frame, COCO_NAMES, **SIZE, **IDS))


def test_supervision() -> None:
    sv = pytest.importorskip("supervision")
    found = detect(make_rows(12)).above(0.1)
    theirs: Any = found.to_supervision()
    assert len(theirs) == len(found) and theirs["class_name"].tolist() == found.names
    same(found, Detections.from_supervision(theirs, COCO_NAMES, **SIZE, **IDS))
    kept = Detections.from_supervision(theirs[theirs.confidence > 0.5], COCO_NAMES, **SIZE, **IDS)
    same(kept, found.select(found.scores > 0.5))
    blank = np.zeros((427, 640, 3), np.uint8)
    assert sv.BoxAnnotator().annotate(blank.copy(), theirs).any()
    none = Detections.from_supervision(sv.Detections.empty(), COCO_NAMES, **SIZE)
    assert len(none) == 0 and len(none.to_supervision()) == 0


@pytest.mark.slow
def test_torchvisions_dictionary() -> None:
    torch = pytest.importorskip("torch")
    boxes_of = pytest.importorskip("torchvision.ops")
    found = detect(make_rows(12))
    output = found.to_torch()
    assert output["boxes"].dtype == torch.float32 and output["labels"].dtype == torch.int64
    kept = boxes_of.batched_nms(output["boxes"], output["scores"], output["labels"], 1.0)
    assert kept.tolist() == list(range(12))  # theirs sorts by score, as ours
    same(found, Detections.from_torch(output, COCO_NAMES, **SIZE, **IDS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0]}, "label 0"),
        ({"labels": [3]}, "label 3, expected a whole number 1..2"),
        ({"labels": [1.5]}, "label 1.5"),
        ({"labels": [1, 1]}, "1 boxes, but scores, labels, track ids: 1, 2"),
        ({"scores": [float("nan")]}, "NaN"),
        ({"boxes": [[0, 0, float("inf"), 1]]}, "infinite"),
        ({"height": 0}, "5x0 pixels"),
        ({"category_ids": [1]}, "1 category_ids for 2"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"boxes": [[0, 0, 1, 1]], "scores": [0.5], "labels": [1]}
    given |= {"class_names": ["a", "b"], "height": 5, "width": 5, **change}
    with pytest.raises(InputError, match=message):
        Detections.from_boxes(**given)


def test_missing_parts_are_refused() -> None:
    with pytest.raises(InputError, match="no column 'x1'"):
        Detections.from_columns(dict.fromkeys(("label", "score", "x0", "y0")), ["a"], **SIZE)
    with pytest.raises(InputError, match="not entries of COCO results"):
        entry = {"bbox": [0, 0, 1, 1], "score": 1, "category_id": 9}
        Detections.from_coco([entry], ["a"], **SIZE)
    with pytest.raises(InputError, match=r"expected \[N, 6\]"):
        Detections.from_numpy(np.zeros((3, 7)), ["a"], **SIZE)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(InputError, match=r"polars is not installed: pip install 'sparsedet\[tab"):
        detect(make_rows(1)).to_polars()


# ------------------------------------------------------------------- what people look at


def test_a_repr_says_what_was_found() -> None:
    boxes = [[0, 0, 9, 9]] * 3
    found = Detections.from_boxes(boxes, [0.5, 0.9, 0.8], [1, 2, 1], ["a", "b"], height=9, width=9)
    assert repr(found) == "<Detections in 9x9: 2 a 0.50..0.80, 1 b 0.90>"
    assert repr(found.best(0)) == "<Detections in 9x9: nothing>"


def test_only_and_best() -> None:
    found = detect(make_rows(40))
    people = found.only(["person", "dog"])
    assert set(people.names) <= {"person", "dog"} and len(people) == sum(
        name in ("person", "dog") for name in found.names
    )
    assert np.array_equal(found.best(3).rows(), found.rows()[:3])
    with pytest.raises(InputError, match=r"'persn' is no class of this model.*as person"):
        found.only(["persn"])


def test_a_notebook_shows_the_image_while_it_is_in_memory() -> None:
    image = picture(60, 80)
    found = Detections.from_boxes([[5, 5, 40, 40]], [0.9], [1], ["cat"], height=60, width=80)

    def shown() -> Any:
        return cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)

    assert (shown()[45:, 60:] == 96).all()
    found.remember(image)
    assert np.array_equal(shown(), found.draw(image))
    assert len(pickle.loads(pickle.dumps(found))) == 1
    del image
    assert (shown()[45:, 60:] == 96).all()  # nothing was kept
