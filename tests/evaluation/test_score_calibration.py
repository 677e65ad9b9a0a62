"""Scores that mean how often a detection is right: fitted, and folded into a detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sparsedet
from sparsedet.detector import embedded_model
from sparsedet.errors import InputError
from sparsedet.evaluation import score_calibration
from sparsedet.evaluation.average_precision import IOU_THRESHOLDS, ClassMatches, Matches
from sparsedet.evaluation.score_calibration import (
    ScoreCalibration,
    at_score,
    fit_scores,
    reliability,
    with_calibrated_scores,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "beach.jpg"
NAMES = ("cat", "dog", "fox")


def drawn(truth: ScoreCalibration, counts: tuple[int, ...], seed: int = 0) -> Matches:
    """Detections that are right as often as `truth` says; classes in another order than `NAMES`."""
    generator = np.random.default_rng(seed)
    classes = []
    for index in reversed(range(len(counts))):
        scores = np.sort(generator.uniform(0.02, 0.98, counts[index]))[::-1]
        share = truth(scores, np.full(len(scores), index))
        right = generator.random(len(scores)) < share
        thresholds = len(IOU_THRESHOLDS)
        image = np.zeros(len(scores), np.int64)
        classes.append(
            ClassMatches(
                NAMES[index],
                index,
                image,
                scores,
                np.tile(right, (thresholds, 1)),
                np.zeros((thresholds, len(scores)), np.bool_),
                np.array([right.sum()]),
            )
        )
    return Matches(IOU_THRESHOLDS, (1,), tuple(classes))


def test_a_fit_finds_what_detections_were_drawn_from() -> None:
    truth = ScoreCalibration(2.0, np.array([0.5, -0.5, 0.0]))
    found = fit_scores(drawn(truth, (40000, 40000, 40000)), NAMES)
    assert found.slope == pytest.approx(truth.slope, abs=0.05)
    assert found.offsets == pytest.approx(truth.offsets, abs=0.06)


def test_calibrated_scores_are_reliable_on_other_detections() -> None:
    truth = ScoreCalibration(3.0, np.array([1.0, 0.0, 0.5]))
    found = fit_scores(drawn(truth, (20000, 20000, 20000)), NAMES)
    fresh = drawn(truth, (20000, 20000, 20000), seed=1)
    mapped = tuple(
        replace(e, scores=found(e.scores, np.full(len(e.scores), NAMES.index(e.name))))
        for e in fresh.classes
    )
    assert reliability(fresh).error > 0.1
    precision, recall = at_score(fresh, 0.5)
    scores = np.concatenate([e.scores for e in fresh.classes])
    right = np.concatenate([e.true_positive[0] for e in fresh.classes])
    assert precision == right[scores >= 0.5].mean()
    assert recall == right[scores >= 0.5].sum() / right.sum()
    assert reliability(replace(fresh, classes=mapped)).error < 0.02


def test_an_offset_of_few_detections_stays_near_the_mean() -> None:
    truth = ScoreCalibration(1.0, np.array([0.0, 0.0, 4.0]))
    found = fit_scores(drawn(truth, (5000, 5000, 3)), NAMES)
    assert abs(found.offsets[2]) < 1.5
    without = fit_scores(drawn(truth, (5000, 5000, 0)), NAMES)
    assert without.offsets[2] == pytest.approx(without.offsets[:2].mean(), abs=0.1)


def test_too_few_detections_are_refused() -> None:
    truth = ScoreCalibration(1.0, np.zeros(3))
    with pytest.raises(InputError, match="scores need at least 200 right"):
        fit_scores(drawn(truth, (100, 100, 100)), NAMES)


def test_folded_into_a_detector(tmp_path: Path) -> None:
    model = sparsedet.load_model(embedded_model("picodet-s"))
    offsets = np.linspace(-0.5, 0.5, len(model.config.class_names))
    calibration = ScoreCalibration(1.7, offsets)
    changed = with_calibrated_scores(model, calibration)
    path = tmp_path / "calibrated.safetensors"
    sparsedet.save_model(path, changed.config, changed.tensors, {}, dtype="float32")
    image = sparsedet.read_image(EXAMPLE)
    before = sparsedet.Detector.load("picodet-s", threads=1)(image, 0.02)
    after = sparsedet.Detector.load(path, threads=1)(image, 0.0)
    assert 20 < len(before) < 60  # all of them stay among the 100 that are kept
    expected = calibration(before.scores.astype(np.float64), before.labels.astype(np.int64) - 1)
    found = 0
    for box, label, score in zip(before.boxes, before.labels, expected, strict=True):
        same = (after.labels == label) & (np.abs(after.boxes - box).max(axis=1) < 0.01)
        found += bool(np.any(np.abs(after.scores[same] - score) < 1e-4))
    assert found == len(before)
    # A detection that was just kept is kept, and its class' lowest score is not cut.
    kept = np.full(len(offsets), model.config.score_threshold)
    assert changed.config.score_threshold == pytest.approx(
        calibration(kept, np.arange(len(offsets))).min()
    )


def test_other_detectors_are_refused() -> None:
    model = sparsedet.load_model(embedded_model("r50half-c4"))
    with pytest.raises(InputError, match="not sigmoids of one class logit"):
        with_calibrated_scores(
            replace(model, clipping_thresholds=None), ScoreCalibration(1, np.zeros(80))
        )
    pico = sparsedet.load_model(embedded_model("picodet-s"))
    with pytest.raises(InputError, match="has 80 classes, expected 3"):
        with_calibrated_scores(pico, ScoreCalibration(1.0, np.zeros(3)))
    with pytest.raises(InputError, match="then quantize the result"):
        with_calibrated_scores(
            replace(pico, clipping_thresholds={}), ScoreCalibration(1.0, np.zeros(80))
        )


def test_eval_writes_a_calibrated_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    import json

    from sparsedet.cli import main

    monkeypatch.setattr(score_calibration, "LEAST_DETECTIONS", 2)
    image = sparsedet.read_image(EXAMPLE)
    found = sparsedet.Detector.load("picodet-s", threads=1)(image, 0.4)
    assert len(found) > 4
    truth = {
        "images": [
            {"id": 1, "file_name": EXAMPLE.name, "width": image.shape[1], "height": image.shape[0]}
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "surfboard"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": [*box[:2], *(box[2:] - box[:2])]}
            for i, box in enumerate(found.boxes.astype(float)[found.labels == 1][::2], 1)
        ],
    }
    for entry in truth["annotations"]:
        entry["bbox"] = [float(v) for v in entry["bbox"]]
    annotations, out = tmp_path / "truth.json", tmp_path / "out.safetensors"
    annotations.write_text(json.dumps(truth))
    arguments = ["eval", "--model", "picodet-s", "--annotations", annotations]
    arguments += ["--images", EXAMPLE.parent, "--calibrated", out]
    assert main([str(a) for a in arguments]) == 0
    assert "Scores calibrated on 1 images: logits times" in capsys.readouterr().out
    learnt = sparsedet.load_model(out).provenance["scores_calibrated"]
    assert learnt == {"annotations": "truth.json", "images": 1}
