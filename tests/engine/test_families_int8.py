"""int8 of networks that run layers twice, or on several levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.exports import small_network

from sparsedet._native import has_int8
from sparsedet.engine import Engine
from sparsedet.engine.calibrate import calibrate


@pytest.mark.skipif(not has_int8(), reason="this CPU has no kernels of int8")
def test_a_mask_rcnn_c4_runs_res5_twice() -> None:
    """With the clipping thresholds of its first run in both: they belong to a layer."""
    network = small_network("mask-rcnn-c4")
    thresholds = calibrate(network.config, network.tensors, [network.image], threads=1)
    options: dict[str, Any] = {"precision": "int8", "clipping_thresholds": thresholds, "threads": 1}
    engine = Engine(network.config, network.tensors, **options)
    rows, expected = network.outputs()
    assert expected is not None and expected.std() > 0.1
    engine.native.plan(*network.image.shape[:2])
    given = {"detections": rows, "image": network.image.astype(np.float32)}
    (masks,) = engine.native.run_between(given, ["masks"])
    assert abs(masks - expected).mean() < 0.03
    own_rows, own_masks = engine.run_with_masks(network.image)
    assert len(own_rows) == len(own_masks) > 20


def test_clipping_thresholds_change_nothing_in_float32() -> None:
    """Layers that run on several levels share their weights, whatever the thresholds."""
    network = small_network("retinanet")
    thresholds = {"class.conv0": 1.0, "class.conv0.p3": 2.0}
    engine = Engine(network.config, network.tensors, threads=1, clipping_thresholds=thresholds)
    assert np.array_equal(engine.run(network.image), network.outputs()[0])
