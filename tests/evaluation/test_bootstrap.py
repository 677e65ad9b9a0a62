"""Intervals by resampling: the accumulation against pycocotools, the interval against theory."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet.errors import InputError
from sparsedet.evaluation import coco_matches, score_results
from sparsedet.evaluation.average_precision import (
    IOU_THRESHOLDS,
    ClassMatches,
    Matches,
    average_precision,
    mean_over_classes,
)
from sparsedet.evaluation.bootstrap import (
    Difference,
    compare_matches,
    intervals,
    paired_bootstrap,
)
from sparsedet.evaluation.coco import CocoDataset, load_coco

pytest.importorskip("pycocotools")

EVAL = Path(__file__).parents[1] / "data" / "eval"
DEV_VAL = EVAL / "instances_dev_val.json"


@cache
def dev_val() -> tuple[CocoDataset, list[dict[str, Any]], Matches]:
    with gzip.open(EVAL / "picodet_s_416_dev_val.json.gz", "rt", encoding="utf-8") as file:
        results = [entry for entry in json.load(file) if entry["score"] >= 0.1]  # for speed
    assert len(results) > 3000
    dataset = load_coco(DEV_VAL, EVAL)
    return dataset, results, coco_matches(dataset, results)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ------------------------------------------------- the accumulation against pycocotools


@pytest.mark.parametrize(
    ("annotations", "detections"),
    [
        ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json"),
        ("padilla_gts_bbox_area.json", "instances_val2014_fakebbox100_results.json"),
        ("fce_gt_dataset.json", "fce_dt_dataset.json"),
        ("instances_dev_val.json", None),
    ],
)
def test_the_sample_itself_scores_as_pycocotools_has_it(
    annotations: str, detections: str | None
) -> None:
    results = read(EVAL / detections) if detections else dev_val()[1]
    theirs = score_results(EVAL / annotations, results)
    matches = coco_matches(load_coco(EVAL / annotations, EVAL), results)
    each = average_precision(matches)  # [1, T, K]
    mean = mean_over_classes(each)[0]
    assert mean.mean() == pytest.approx(theirs.stats["AP"], abs=1e-12)
    assert mean[0] == pytest.approx(theirs.stats["AP50"], abs=1e-12)
    assert mean[5] == pytest.approx(theirs.stats["AP75"], abs=1e-12)
    for k, entry in enumerate(matches.classes):
        row = theirs.per_class[entry.name]
        ours = np.nan_to_num(each[0, :, k], nan=-1)
        assert (ours.mean(), ours[0]) == pytest.approx((row["AP"], row["AP50"]), abs=1e-12)
        assert entry.objects.sum() == row["boxes"]


def test_a_resample_scores_as_the_data_set_with_copies_of_its_images(tmp_path: Path) -> None:
    dataset, results, matches = dev_val()
    document = read(DEV_VAL)
    # Equal scores make the order of copies matter, and it has no meaning: make them unequal.
    rng = np.random.default_rng(4)
    results = [{**r, "score": r["score"] + rng.uniform(0, 1e-7)} for r in results]
    matches = coco_matches(dataset, results)
    counts = rng.multinomial(220, np.full(220, 1 / 220))
    assert counts.max() >= 3 and (counts == 0).sum() > 50
    copies = [
        (id_, copy) for id_, n in zip(matches.image_ids, counts, strict=True) for copy in range(n)
    ]
    new_ids: dict[int | str, list[int]] = {}
    for number, (id_, _) in enumerate(copies, start=1):
        new_ids.setdefault(id_, []).append(number)

    def copied(entries: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
        return [{**e, key: new} for e in entries for new in new_ids.get(e[key], ())]

    document["images"] = copied(document["images"], "id")
    document["annotations"] = copied(document["annotations"], "image_id")
    path = tmp_path / "copies.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    theirs = score_results(path, copied(results, "image_id"))
    assert theirs.images == 220
    mean = mean_over_classes(average_precision(matches, counts[None]))[0]
    ours = mean.mean(), mean[0], mean[5]
    assert ours == pytest.approx([theirs.stats[n] for n in ("AP", "AP50", "AP75")], abs=1e-9)
    whole = mean_over_classes(average_precision(matches)).mean()
    assert abs(ours[0] - whole) > 1e-3  # the resample is not the sample


# ------------------------------------------------------------------------ hand-made cases


def one_class(*images: tuple[int, list[tuple[float, bool]]]) -> Matches:
    """Matches of a class at all thresholds alike, from (objects, [(score, true positive), ...])."""
    rows = [
        (score, hit, i) for i, (_, detections) in enumerate(images) for score, hit in detections
    ]
    rows.sort(key=lambda row: -row[0])
    shape = len(IOU_THRESHOLDS), 1
    entry = ClassMatches(
        "cat",
        1,
        np.array([i for _, _, i in rows], dtype=np.int64),
        np.array([score for score, _, _ in rows], dtype=np.float64),
        np.tile(np.array([hit for _, hit, _ in rows], dtype=bool), shape),
        np.zeros((len(IOU_THRESHOLDS), len(rows)), dtype=bool),
        np.array([n for n, _ in images], dtype=np.int64),
    )
    return Matches(IOU_THRESHOLDS, tuple(range(len(images))), (entry,))


def test_counts_by_hand() -> None:
    # A true positive at .9, a false one at .8 on another image, a true one at .7 on the third.
    matches = one_class((1, [(0.9, True)]), (0, [(0.8, False)]), (1, [(0.7, True)]))
    counts = np.array([[1, 1, 1], [1, 4, 1], [0, 1, 2], [1, 0, 0], [0, 3, 0]])
    # Recall 1/2 is at 51 of the 101 points; the rest has the precision at the last true positive.
    expected = [(51 + 50 * 2 / 3) / 101, (51 + 50 * 2 / 6) / 101, 2 / 3, 1.0, np.nan]
    got = average_precision(matches, counts)[:, :, 0]
    np.testing.assert_allclose(got, np.repeat(np.array(expected)[:, None], 10, axis=1))


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean() -> None:
    cats = one_class((1, [(0.9, True)]), (0, []))
    dogs = one_class((0, []), (1, [(0.9, False)]))
    both = Matches(cats.thresholds, cats.image_ids, cats.classes + dogs.classes)
    counts = np.array([[1, 1], [2, 0], [0, 2], [0, 0]])
    mean = mean_over_classes(average_precision(both, counts))
    np.testing.assert_allclose(mean[:, 0], [0.5, 1.0, 0.0, np.nan])


# ------------------------------------------------------------------------------ intervals


def test_equal_detectors_differ_by_nothing() -> None:
    dataset, results, _ = dev_val()
    same = paired_bootstrap(dataset, results, list(results), resamples=50)
    stats = score_results(DEV_VAL, results).stats
    for figure in ("AP", "AP50", "AP75"):
        value: Any = pytest.approx(stats[figure])
        assert same[figure] == Difference(value, value, 0, 0, 0, 0)
        assert not same[figure].clear


def test_a_clearly_worse_detector_is_told_apart_and_a_reshuffled_one_is_not() -> None:
    dataset, results, matches = dev_val()
    rng = np.random.default_rng(1)
    worse = coco_matches(dataset, [r for r in results if rng.random() < 0.7])
    down = compare_matches(matches, worse, resamples=60)["AP"]
    assert down.difference < down.high < 0 and down.clear and down.above == 0
    assert down.low < down.difference < down.high
    noisy = [{**r, "score": r["score"] * rng.uniform(0.97, 1)} for r in results]
    level = paired_bootstrap(dataset, results, noisy, resamples=60)["AP"]
    assert level.low < 0 < level.high and not level.clear
    # Pairing is what makes it narrow: the score itself is far less certain.
    alone = intervals(matches, resamples=60)["AP"]
    assert level.high - level.low < (alone.high - alone.low) / 3
    back = compare_matches(worse, matches, resamples=60)["AP"]
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-down.difference, -down.high, -down.low)
    )


def test_the_interval_is_that_of_theory_where_theory_knows_it() -> None:
    # One object an image, found for certain or not at all: AP is the recall (by steps of
    # 1/101), and the spread of a proportion p of n images is sqrt(p (1 - p) / n).
    rng = np.random.default_rng(2)
    n, p = 400, 0.6
    detected = rng.random(n) < p
    matches = one_class(
        *((1, [(1 - i * 1e-6, True)] if hit else []) for i, hit in enumerate(detected))
    )
    got = intervals(matches, resamples=600)["AP"]
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert got.value == pytest.approx(detected.mean(), abs=0.01)
    assert (got.low, got.high) == pytest.approx((got.value - half, got.value + half), abs=0.012)
    narrower = intervals(matches, resamples=600, confidence=0.5)["AP"]
    assert (narrower.high - narrower.low) == pytest.approx(2 * 0.6745 * half / 1.96, abs=0.012)


def test_the_seed_settles_the_answer() -> None:
    matches = dev_val()[2]
    first, again, other = (intervals(matches, resamples=20, seed=s) for s in (1, 1, 2))
    assert first == again and first != other


def test_bad_arguments() -> None:
    dataset, results, matches = dev_val()
    for wrong, named in (
        ({"resamples": 5}, "resamples is 5, expected at least 10"),
        ({"confidence": 95}, "confidence is 95, expected between 0 and 1"),
    ):
        with pytest.raises(InputError, match=named):
            intervals(matches, **wrong)
    with pytest.raises(InputError, match="not over the same images"):
        compare_matches(matches, one_class((1, [])))
    with pytest.raises(InputError, match="no object to score"):
        intervals(one_class((0, [(0.5, False)])))
    with pytest.raises(InputError, match="entry 0: no 'score'"):
        paired_bootstrap(dataset, results, [{"image_id": 785, "category_id": 1, "bbox": [1] * 4}])
