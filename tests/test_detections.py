"""Rows of the contract to detections on the photograph, and every form they are handed out in."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsedet.detections import Detections, contract_rows, from_rows, pad_rows
from sparsedet.errors import InputError
from sparsedet.images import draw
from sparsedet.images.letterbox import fit_letterbox
from sparsedet.images.masks import paste
from sparsedet.images.run_lengths import decode_mask
from sparsedet.model.config import COCO_CATEGORY_IDS, COCO_NAMES

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

LETTERBOX = fit_letterbox(427, 640, 800, 1280)
PADDING = [-1.0, 0, 0, 0, 0, 0, 0]


def make_rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Valid rows in descending order of confidence, all different."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    scores = np.sort(rng.permutation(10 * count)[:count])[::-1] / (10 * count + 1) + 0.01
    labels = rng.integers(1, 81, count)
    return np.column_stack([np.zeros(count), labels, scores, corners]).astype(np.float32)


def detect(rows: Any, letterbox: Any = LETTERBOX, threshold: float | None = None) -> Detections:
    array = np.array(rows, np.float32)
    return from_rows(array, letterbox, COCO_NAMES, COCO_CATEGORY_IDS, threshold)


# -------------------------------------------------------------------- rows


@pytest.mark.parametrize("count", [0, 1, 2, 100])
@pytest.mark.parametrize("four_d", [False, True])
def test_rows_make_the_round_trip_through_both_forms(count: int, four_d: bool) -> None:
    rows = make_rows(count)
    published = contract_rows(rows, 100, four_d)
    assert published.shape == ((1, 1, 100, 7) if four_d else (100, 7))
    assert published.dtype == np.float32
    found = detect(published)
    assert len(found) == count
    assert np.array_equal(found.rows(), rows) and found.rows().dtype == np.float32
    assert np.array_equal(found.rows(100), published.reshape(100, 7))


def test_padding_is_minus_one_and_zeros_and_surplus_is_cut() -> None:
    rows = make_rows(3)
    assert pad_rows(rows, 5)[3:].tolist() == [PADDING, PADDING]
    assert np.array_equal(pad_rows(rows, 2), rows[:2])
    assert np.array_equal(detect(rows).rows(2), rows[:2])


@given(st.integers(0, 30), st.integers(0, 10), st.randoms(use_true_random=False))
def test_order_and_padding_of_the_rows_do_not_matter(count: int, padding: int, random: Any) -> None:
    rows = make_rows(count)
    unused = np.tile(np.array([PADDING, [0, 0, 0, 0, 0, 0, 0]], np.float32), (padding, 1))
    mixed = np.concatenate([rows, unused])
    order = list(range(len(mixed)))
    random.shuffle(order)
    assert np.array_equal(detect(mixed[order]).rows(), rows)


def test_equal_scores_keep_their_order() -> None:
    rows = make_rows(200)
    rows[:, 2] = np.repeat([0.5, 0.4], 100)
    mixed = np.stack([rows[100:], rows[:100]], axis=1).reshape(200, 7)
    assert np.array_equal(detect(mixed).rows(), rows)


def test_rows_of_a_later_image_of_a_batch_become_image_zero() -> None:
    rows = make_rows(4)
    rows[:, 0] = 7
    assert detect(rows).rows()[:, 0].tolist() == [0, 0, 0, 0]


def test_garbage_in_padding_rows_is_ignored() -> None:
    rows = np.vstack([make_rows(2), [[-1, np.nan, np.inf, 5, -9, np.nan, 3]]])
    assert len(detect(rows)) == 2


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 1, "belong to 2 images"),
        (1, 0, "class_id 0, expected 1..80"),
        (1, 81, "class_id 81"),
        (1, 2.5, "class_id 2.5"),
        (2, np.nan, "NaN"),
        (3, np.inf, "NaN"),
    ],
)
def test_impossible_rows_are_refused(column: int, value: float, message: str) -> None:
    rows = make_rows(3)
    rows[1, column] = value
    with pytest.raises(InputError, match=message):
        detect(rows)


@pytest.mark.parametrize("shape", [(7,), (3, 6), (2, 1, 3, 7), (1, 3, 7), ()])
def test_rows_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \[N, 7\] or \[1, 1, N, 7\]"):
        detect(np.zeros(shape))


# -------------------------------------------------------------------- arrays


def test_arrays_and_boxes_on_the_photograph() -> None:
    found = detect([[0, 1, 0.6, 0.1, 0.2, 0.5, 0.6], [0, 18, 0.9, 0.5, 0.5, 1.0, 1.0]])
    x, y = 1280 / (1199 / 640), 800 / (800 / 427)
    assert np.allclose(
        found.boxes, [[0.5 * x, 0.5 * y, 640, 427], [0.1 * x, 0.2 * y, 0.5 * x, 0.6 * y]], rtol=1e-6
    )
    assert found.boxes.dtype == np.float32 and found.scores.dtype == np.float32
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [18, 1]
    assert found.names == ["horse", "person"]
    assert [name for name, _, _ in found] == found.names
    for (_, score, box), expected, row in zip(found, found.scores, found.boxes, strict=True):
        assert score == expected and np.array_equal(box, row)


def test_above_keeps_the_threshold_itself() -> None:
    rows = make_rows(30)
    found = detect(rows)
    threshold = float(found.scores[12])
    kept = found.above(threshold)
    assert np.array_equal(kept.rows(), rows[:13])
    assert np.array_equal(kept.boxes, found.boxes[:13])
    assert np.array_equal(detect(rows, threshold=threshold).rows(), rows[:13])
    assert len(found.above(1.1)) == 0 and len(found) == 30
    assert len(found.above(np.float32(threshold))) == 13  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "threshold", ["0.5", b"0.5", "", float("nan"), np.float32("nan"), [0.5, 0.6], 10**400, {}]
)
def test_a_threshold_that_is_no_number_is_refused(threshold: Any) -> None:
    rows, words = make_rows(3), r"the score threshold is .*, expected a number"
    with pytest.raises(InputError, match=words):
        detect(rows).above(threshold)
    with pytest.raises(InputError, match=words):
        detect(rows, threshold=threshold)


def test_empty_detections_serve_every_form() -> None:
    empty = detect(np.zeros((0, 7)))
    assert empty.boxes.shape == (0, 4) and empty.scores.shape == (0,) and empty.labels.shape == (0,)
    assert empty.names == [] and list(empty) == [] and empty.to_coco(5) == []
    assert empty.to_csv() == "name,label,category_id,score,x0,y0,x1,y1\n"
    assert json.loads(empty.to_json()) == {"width": 640, "height": 427, "detections": []}
    image = np.full((427, 640, 3), 9, np.uint8)
    assert np.array_equal(empty.draw(image), image)


# -------------------------------------------------------------------- text


def test_coco_results() -> None:
    found = detect(make_rows(50))
    results = json.loads(json.dumps(found.to_coco(139)))
    assert [r["image_id"] for r in results] == [139] * 50
    assert [COCO_CATEGORY_IDS.index(r["category_id"]) + 1 for r in results] == found.labels.tolist()
    assert [np.float32(r["score"]) for r in results] == found.scores.tolist()
    boxes = np.array([r["bbox"] for r in results])
    boxes[:, 2:] += boxes[:, :2]
    assert np.allclose(boxes, found.boxes, rtol=0, atol=1.1e-3)
    assert all(round(v, 3) == v for r in results for v in r["bbox"])


def test_csv_and_json_say_the_same() -> None:
    names = ("plain", 'with, comma and "quotes"', "grün")
    rows = make_rows(9)
    rows[:, 1] = np.arange(9) % 3 + 1
    found = from_rows(rows, LETTERBOX, names, (4, 5, 6))
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    parsed = json.loads(found.to_json())
    assert "\n" not in found.to_json() and parsed["width"] == 640 and parsed["height"] == 427
    assert [{k: str(v) for k, v in d.items()} for d in parsed["detections"]] == lines
    assert [d["name"] for d in parsed["detections"]] == found.names
    for entry, score, box in zip(parsed["detections"], found.scores, found.boxes, strict=True):
        assert entry["category_id"] == entry["label"] + 3
        assert abs(entry["score"] - score) <= 5.1e-5
        assert np.allclose([entry[k] for k in ("x0", "y0", "x1", "y1")], box, rtol=0, atol=5.1e-3)


# -------------------------------------------------------------------- masks


def with_masks(count: int) -> Detections:
    """Detections whose masks are the left half of their boxes."""
    masks = np.zeros((count, 28, 28), np.float32)
    masks[:, :, :14] = 1
    return from_rows(make_rows(count), LETTERBOX, COCO_NAMES, COCO_CATEGORY_IDS, None, masks)


def test_masks_are_of_the_image_and_in_their_boxes() -> None:
    found = with_masks(20)
    masks = found.masks
    assert masks is not None and masks.shape == (20, 427, 640) and masks.dtype == bool
    assert np.array_equal(masks, list(found.each_mask()))
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    inside = (found.boxes == found.unclipped).all(axis=1) & (areas > 5000)
    assert inside.sum() > 5
    for mask, box, area, is_inside in zip(masks, found.boxes, areas, inside, strict=True):
        if is_inside:
            assert mask.sum() == pytest.approx(area / 2, rel=0.1)
        ys, xs = np.nonzero(mask)
        assert ys.min() >= box[1] - 2 and ys.max() <= box[3] + 2
        assert xs.min() >= box[0] - 2 and xs.max() <= box[2] + 2
    assert detect(make_rows(3)).masks is None and not list(detect(make_rows(3)).each_mask())


def test_masks_stay_with_their_detections() -> None:
    rows = make_rows(30)
    masks = np.random.default_rng(2).random((40, 28, 28)).astype(np.float32)
    padded = pad_rows(rows, 40)
    order = np.random.default_rng(3).permutation(40)
    names = COCO_NAMES, COCO_CATEGORY_IDS
    found = from_rows(padded[order], LETTERBOX, *names, None, masks[order])
    assert np.array_equal(found.mask_probabilities, masks[:30])  # type: ignore[arg-type]
    best = found.above(float(found.scores[6]))
    assert best.masks is not None and found.masks is not None
    assert np.array_equal(best.masks, found.masks[:7])
    nothing = found.above(1.0)
    assert nothing.masks is not None and nothing.masks.shape == (0, 427, 640)


def test_masks_of_a_letterbox_end_where_the_image_does() -> None:
    rows = np.array([[0, 1, 0.9, 0.5, 0.5, 1.0, 1.0]], np.float32)  # half of it is padding
    letterbox = fit_letterbox(100, 50, 100, 100)
    mask = np.zeros((1, 28, 28), np.float32)
    mask[:, :, 14:] = 1  # in the padding
    found = from_rows(rows, letterbox, COCO_NAMES, COCO_CATEGORY_IDS, None, mask)
    assert found.masks is not None and not found.masks.any()


def test_masks_are_pasted_as_their_model_says() -> None:
    whole = with_masks(9)
    continuous = replace(whole, pasting="continuous")
    assert whole.pasting == "whole" and continuous.above(0.0).pasting == "continuous"
    patches = list(
        paste(whole.mask_probabilities, whole.unclipped, 427, 640, "continuous")  # type: ignore[arg-type]
    )
    assert continuous.masks is not None and whole.masks is not None
    for mask, other, patch in zip(continuous.masks, whole.masks, patches, strict=True):
        assert np.array_equal(mask[patch.place], patch.inside)
        assert mask.sum() == patch.inside.sum() and not np.array_equal(mask, other)


def test_masks_as_run_lengths_in_both_forms_of_json() -> None:
    found = with_masks(9)
    results = json.loads(json.dumps(found.to_coco(5)))
    records = json.loads(found.to_json())["detections"]
    assert found.masks is not None
    for result, record, mask in zip(results, records, found.masks, strict=True):
        assert result["segmentation"] == record["segmentation"]
        assert result["segmentation"]["size"] == [427, 640]
        assert np.array_equal(decode_mask(result["segmentation"]), mask)
    assert "segmentation" not in found.to_csv() + detect(make_rows(2)).to_json()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((2, 28, 28)), r"masks have shape \[2, 28, 28\], expected \[3, h, w\]"),
        (np.zeros((3, 28)), r"masks have shape \[3, 28\]"),
        (np.zeros((3, 0, 28)), r"masks have shape \[3, 0, 28\]"),
        (np.full((3, 4, 4), np.nan), "masks hold NaN"),
    ],
)
def test_impossible_masks_are_refused(masks: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_rows(make_rows(3), LETTERBOX, COCO_NAMES, COCO_CATEGORY_IDS, None, masks)


def test_masks_are_blended_in_the_colour_of_their_box() -> None:
    rows = [[0, 3, 0.9, 0.2, 0.2, 0.8, 0.8], [0, 1, 0.5, 0.2, 0.2, 0.8, 0.8]]
    names = COCO_NAMES, COCO_CATEGORY_IDS
    letterbox = fit_letterbox(400, 400, 400, 400)
    image = np.full((400, 400, 3), 100, np.uint8)
    masks = np.zeros((2, 28, 28), np.float32)
    masks[0, :14], masks[1] = 1, 1
    out = from_rows(np.array(rows), letterbox, *names, None, masks).draw(image)
    for y, label in ((160, 3), (280, 1)):  # the better one on top, and never both
        expected = 100 + 0.45 * (np.array(draw._colour(label)) - 100)
        assert abs(out[y, 200] - expected).max() <= 1
    assert (out[20, 20] == 100).all() and (image == 100).all()


# -------------------------------------------------------------------- drawing


def picture(height: int, width: int, *boxes: tuple[int, float, float, float, float, float]) -> Any:
    """What `draw` makes of a grey photograph; boxes are (label, score, x0, y0, x1, y1)."""
    letterbox = fit_letterbox(height, width, height, width)
    rows = [
        [0, label, score, x0 / width, y0 / height, x1 / width, y1 / height]
        for label, score, x0, y0, x1, y1 in boxes
    ]
    image = np.full((height, width, 3), 128, np.uint8)
    out = detect(np.reshape(rows, (-1, 7)), letterbox).draw(image)
    assert (image == 128).all() and out.shape == image.shape and out.dtype == np.uint8
    return out


def test_a_box_is_drawn_on_its_pixels_in_its_colour() -> None:
    out = picture(300, 400, (3, 0.9, 100.6, 80.6, 249.4, 219.4))
    colour = draw._colour(3)
    for y, x in ((80, 240), (219, 150), (150, 100), (150, 249)):
        assert tuple(out[y, x]) == colour
    assert (out[95:205, 115:235] == 128).all()  # nothing inside
    assert (out[230:] == 128).all() and (out[:, 260:] == 128).all()  # nor far outside


def test_the_better_detection_lies_on_top() -> None:
    for first, second in ((1, 2), (2, 1)):
        out = picture(300, 400, (first, 0.6, 50, 50, 200, 200), (second, 0.7, 50, 50, 200, 200))
        assert tuple(out[199, 125]) == draw._colour(second)


def test_colours_are_distinct_and_stable() -> None:
    colours = [draw._colour(label) for label in range(1, 81)]
    assert all(len(set(colours[i : i + 20])) == 20 for i in range(61))
    assert colours.count(colours[0]) == 1  # nothing looks like a person
    assert colours[0] == (0, 159, 230)  # golden: a class never changes its colour
    pairs = itertools.combinations(colours[:21], 2)
    assert min(np.abs(np.subtract(a, b)).max() for a, b in pairs) >= 30


@given(
    st.integers(40, 900),
    st.integers(140, 900),
    st.sampled_from(COCO_NAMES),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=8),
)
def test_labels_stay_inside_the_picture(
    height: int, width: int, name: str, corners: list[tuple[float, ...]]
) -> None:
    taken = np.zeros((0, 4), dtype=np.int64)
    for corner in corners:
        low_high = np.sort(np.reshape(corner, (2, 2)), axis=0).reshape(4)
        box = (low_high * [width, height, width, height]).astype(np.float32)
        label = draw._Label.fitting(f"{name} 0.50", float(np.sqrt(height * width)), width)
        at = label.place(box, taken, height, width, 2)
        assert (at[2:] - at[:2]).tolist() == [label.width, label.height]
        assert (at[:2] >= 0).all() and at[2] <= width and at[3] <= height
        taken = np.vstack([taken, at])


def test_labels_of_equal_boxes_do_not_cover_each_other() -> None:
    labels = (1, 2, 3, 4)
    out = picture(300, 400, *((k, 0.9 - k / 10, 100, 80, 300, 220) for k in labels))
    areas = [(out == draw._colour(k)).all(axis=2).sum() for k in labels]
    text = [draw._Label.fitting(f"{COCO_NAMES[k - 1]} 0.50", 346, 400) for k in labels]
    for area, label in zip(areas, text, strict=True):
        assert area > 0.5 * label.width * label.height  # the rest is ink


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (16, 16), (40, 30)])
def test_the_smallest_pictures_can_be_drawn_on(size: tuple[int, int]) -> None:
    height, width = size
    out = picture(height, width, (1, 0.9, 0, 0, width, height), (61, 0.8, 0, 0, 0, 0))
    assert (out != 128).any()


@pytest.mark.parametrize("size", [(96, 128), (480, 640), (2000, 3000)])
def test_text_and_lines_grow_with_the_picture(size: tuple[int, int]) -> None:
    extent = float(np.sqrt(size[0] * size[1]))
    label = draw._Label.fitting("person 0.50", extent, size[1])
    assert max(9, extent / 50) <= label.height <= max(18, extent / 20)
    y1, x1 = round(size[0] * 0.75), round(size[1] * 0.75)
    out = picture(*size, (2, 0.5, size[1] / 4, size[0] / 4, x1, y1))
    line = (out[size[0] // 2, size[1] * 5 // 8 :] == draw._colour(2)).all(axis=1).sum()
    assert 1 <= line <= 2 + extent / 200 and (line > 1) == (extent > 390)


def test_draw_wants_the_photograph_that_was_detected_on() -> None:
    found = detect(make_rows(2))
    with pytest.raises(InputError, match="belong to an image of 640x427"):
        found.draw(np.zeros((640, 427, 3), np.uint8))
    with pytest.raises(InputError, match=r"expected \(H, W, 3\)"):
        found.draw(np.zeros((427, 640), np.uint8))


def test_draw_accepts_views() -> None:
    found = detect(make_rows(5))
    image = np.asarray(
        cv2.resize(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), (640, 427)), np.uint8
    )
    assert np.array_equal(found.draw(image[:, ::-1]), found.draw(image[:, ::-1].copy()))
