"""Anchors, deltas and RoIAlign against torchvision, plain formulas and the torch copies."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sparsedet.model import boxes
from sparsedet.model.presets import PRESETS, preset

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]
CLAMP = math.log(1000 / 16)


def random_boxes(rng: np.random.Generator, n: int, extent: float = 300.0) -> boxes.F32:
    low = rng.uniform(-20, extent, (n, 2))
    return np.concatenate([low, low + rng.uniform(0.5, extent / 2, (n, 2))], 1).astype(np.float32)


# ------------------------------------------------------------------------ anchors


@pytest.mark.parametrize("name", PRESETS)
def test_cell_anchors_have_the_area_ratio_and_order_asked_for(name: str) -> None:
    config = preset(name)
    cells = boxes.cell_anchors(config).astype(np.float64)
    assert cells.shape == (config.anchors_per_cell, 4)
    width, height = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
    sizes = np.repeat(config.anchor_sizes, len(config.anchor_ratios))
    np.testing.assert_allclose(np.sqrt(width * height), sizes, rtol=1e-6)
    np.testing.assert_allclose(height / width, np.tile(config.anchor_ratios, 5), rtol=1e-6)
    np.testing.assert_allclose(cells[:, :2], -cells[:, 2:])  # centred on the cell's corner


def test_cell_anchors_offset_and_override() -> None:
    config = preset("r101-c4")
    moved = boxes.cell_anchors(replace(config, anchor_offset=0.5))
    np.testing.assert_allclose(moved - boxes.cell_anchors(config), 8.0, atol=1e-4)
    own = ((-1.0, -2.0, 3.0, 4.0), (0.0, 0.0, 5.0, 6.0))
    assert np.array_equal(boxes.cell_anchors(replace(config, cell_anchors=own)), np.array(own))


@pytest.mark.slow
def test_anchors_equal_torchvision() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    config = preset("r101-c4")
    generator = AnchorGenerator((config.anchor_sizes,), (config.anchor_ratios,))
    # torchvision rounds to whole pixels and has ratios as the outer loop.
    cells = boxes.cell_anchors(config)
    ratio_major = np.round(cells).reshape(5, 3, 4).transpose(1, 0, 2).reshape(15, 4)
    assert np.array_equal(ratio_major, generator.cell_anchors[0].numpy())
    generator.cell_anchors = [torch.from_numpy(cells)]
    strides = [[torch.tensor(16), torch.tensor(16)]]
    (expected,) = generator.grid_anchors([[7, 11]], strides)
    assert np.array_equal(boxes.grid_anchors(cells, (7, 11), 16), expected.numpy())


def test_legacy_anchors_equal_the_well_known_table() -> None:
    # py-faster-rcnn's table is one-based and inclusive: x1 - 1 and y1 - 1 make it zero-based,
    # and x2 - 1 + 1 leaves the far corner as it is.
    table = np.array(
        [
            [-83, -39, 100, 56],
            [-175, -87, 192, 104],
            [-359, -183, 376, 200],
            [-55, -55, 72, 72],
            [-119, -119, 136, 136],
            [-247, -247, 264, 264],
            [-35, -79, 52, 96],
            [-79, -167, 96, 184],
            [-167, -343, 184, 360],
        ]
    )
    found = boxes.legacy_cell_anchors((128, 256, 512))
    assert np.array_equal(found, table - [1, 1, 0, 0])
    assert boxes.legacy_cell_anchors().shape == (15, 4)


# ------------------------------------------------------------------- deltas, overlap


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_equals_the_formula(weights: tuple[float, float, float, float]) -> None:
    rng = np.random.default_rng(1)
    source = random_boxes(rng, 50)
    deltas = rng.normal(0, 3, (50, 4)).astype(np.float32)
    deltas[0, 2:] = 1000.0  # far above the clamp
    found = boxes.decode(deltas, source, weights, CLAMP)
    for delta, box, got in zip(deltas.tolist(), source.tolist(), found, strict=True):
        dx, dy, dw, dh = (d / w for d, w in zip(delta, weights, strict=True))
        width, height = box[2] - box[0], box[3] - box[1]
        x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
        w, h = width * math.exp(min(dw, CLAMP)), height * math.exp(min(dh, CLAMP))
        expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-3)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_inverts_encode(weights: tuple[float, float, float, float]) -> None:
    rng = np.random.default_rng(2)
    source, target = random_boxes(rng, 500), random_boxes(rng, 500)
    deltas = boxes.encode(source, target, weights)
    assert deltas.dtype == np.float32
    # The clamp does not bind: sizes are 0.5..150.
    np.testing.assert_allclose(boxes.decode(deltas, source, weights, 10.0), target, atol=2e-3)
    assert not boxes.encode(source, source, weights).any()


def test_decode_by_class_equals_one_at_a_time() -> None:
    rng = np.random.default_rng(3)
    source = random_boxes(rng, 6)
    deltas = rng.normal(0, 1, (6, 5, 4)).astype(np.float32)
    found = boxes.decode(deltas, source, WEIGHTS[1], CLAMP)
    for k in range(5):
        one = boxes.decode(deltas[:, k], source, WEIGHTS[1], CLAMP)
        assert np.array_equal(found[:, k], one)


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
def test_torch_copies_equal_numpy(weights: tuple[float, float, float, float]) -> None:
    torch = pytest.importorskip("torch")
    from sparsedet import torch_model as reference

    rng = np.random.default_rng(4)
    source, target = random_boxes(rng, 200), random_boxes(rng, 200)
    deltas = rng.normal(0, 3, (200, 7, 4)).astype(np.float32)
    t_source, t_target, t_deltas = map(torch.from_numpy, (source, target, deltas))
    np.testing.assert_allclose(
        reference.decode(t_deltas, t_source[:, None], weights, CLAMP),
        boxes.decode(deltas, source, weights, CLAMP),
        rtol=1e-5,
        atol=1e-3,
    )
    np.testing.assert_allclose(
        reference.encode(t_source, t_target, weights),
        boxes.encode(source, target, weights),
        rtol=1e-5,
        atol=1e-5,
    )
    assert np.array_equal(reference.clip(t_source, 90, 120), boxes.clip(source, 90, 120))


def test_clip_and_area() -> None:
    inside = np.array([[1, 2, 30, 40]], np.float32)
    assert np.array_equal(boxes.clip(inside, 50, 60), inside)
    outside = np.array([[-5, -6, 70, 80], [-9, -9, -3, -3]], np.float32)
    assert boxes.clip(outside, 50, 60).tolist() == [[0, 0, 60, 50], [0, 0, 0, 0]]
    assert boxes.area(np.array([[0, 0, 2, 3], [2, 0, 0, 3]], np.float32)).tolist() == [6, 0]


@pytest.mark.slow
def test_iou_equals_torchvision() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(5)
    a, b = random_boxes(rng, 60), random_boxes(rng, 40)
    found = boxes.iou(a, b)
    expected = ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.diag(boxes.iou(a, a)), 1.0, rtol=1e-6)


def test_iou_of_empty_boxes_is_zero() -> None:
    empty = np.array([[5, 5, 5, 5], [9, 9, 3, 3]], np.float32)
    assert not boxes.iou(empty, empty).any()
    assert boxes.iou(empty[:0], empty).shape == (0, 2)


# ------------------------------------------------------------------------ RoIAlign


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_roi_align_matmul_equals_torchvision(ratio: int, step: int) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    from sparsedet import torch_model as reference

    generator = torch.Generator().manual_seed(6)
    features = torch.randn(2, 5, 9, 13, generator=generator)  # network input 144 x 208
    rois = [
        torch.tensor(
            [
                [10.0, 12.0, 90.5, 70.25],
                [0.0, 0.0, 208.0, 144.0],  # the whole map
                [-60.0, -30.0, 100.0, 80.0],  # partly outside
                [150.0, 100.0, 300.0, 400.0],
                [500.0, 500.0, 600.0, 700.0],  # fully outside
                [-400.0, 20.0, -300.0, 90.0],
                [33.0, 44.0, 33.0, 44.0],  # empty
                [40.0, 40.0, 42.0, 43.0],  # less than a cell
                [-16.0, -16.0, 0.0, 0.0],  # at the edge's one-cell rim
                [200.0, 136.0, 224.0, 160.0],
            ]
        ),
        torch.tensor([[3.0, 5.0, 160.0, 66.0]]),
    ]
    expected = ops.roi_align(features, rois, 14, 1 / 16, ratio, aligned=True)[:, :, ::step, ::step]
    found = reference.roi_align_matmul(features, rois, 14, 1 / 16, ratio, step)
    assert not expected[4].any() and not expected[5].any() and expected[8].any()
    # A coordinate is good to 1e-6 cells, and neighbours differ by up to 5.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_roi_align_matmul_without_regions() -> None:
    torch = pytest.importorskip("torch")
    from sparsedet import torch_model as reference

    found = reference.roi_align_matmul(
        torch.zeros(1, 3, 4, 4), [torch.zeros(0, 4)], 14, 1 / 16, 2, 2
    )
    assert found.shape == (0, 3, 7, 7)
