"""Pairing two sets of detections. The rules before timing are tested with the benchmarks."""

from __future__ import annotations

import numpy as np

from sparsedet.detections import Detections
from sparsedet.evaluation.agreement import distances, pair, unpaired
from sparsedet.images.letterbox import fit_letterbox


def test_pairs_are_one_to_one_and_the_first_cost_decides() -> None:
    every = np.ones((2, 3), np.bool_)
    assert pair(every).tolist() == [0, 1]
    first = np.array([[2, 1, 1], [0, 0, 1]])
    second = np.array([[0, 5, 4], [0, 0, 0]])
    assert pair(every, first).tolist() == [1, 0]
    assert pair(every, first, second).tolist() == [2, 0]
    assert pair(every, first, order=[1, 0]).tolist() == [1, 0]
    assert pair(np.array([[False, True, False]] * 2)).tolist() == [1, -1]
    assert unpaired(np.array([2, -1]), 3).tolist() == [0, 1]


def test_pairs_of_nothing() -> None:
    assert pair(np.zeros((0, 3), np.bool_)).tolist() == []
    assert pair(np.zeros((2, 0), np.bool_), np.zeros((2, 0))).tolist() == [-1, -1]
    assert unpaired(np.array([], np.int64), 2).tolist() == [0, 1]


def test_distances_of_another_programs_detections() -> None:
    boxes = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7], np.float32), np.array([1, 2, 1])
    ours = Detections(
        boxes, scores, labels, ("traffic light", "dog"), (10, 18), fit_letterbox(100, 100, 100, 100)
    )
    theirs = np.array([[0, 0, 50, 52], [60, 0, 90, 90]])
    pairs, others = distances(ours, ["traffic_light", "dog"], np.array([0.75, 0.8]), theirs)
    np.testing.assert_allclose(pairs, [(0.15, 2)], atol=1e-6)
    assert others == 3
    assert distances(ours, [], np.zeros(0), np.zeros(0)) == ([], 3)
