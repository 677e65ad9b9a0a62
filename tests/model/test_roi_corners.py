"""`roi_sampling="corners"`: samples from one corner of a box to the other, in every runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.small import SMALL

from sparsedet.engine import Engine
from sparsedet.errors import InputError
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.graph import RoiAlign
from sparsedet.testing import random_tensors

CORNERS = replace(SMALL, roi_sampling="corners", input_height=80, input_width=112)
BOXES = np.array(
    [[0, 0, 112, 80], [3, 5, 60, 40], [50.5, 20.25, 111, 79], [10, 10, 10, 30], [90, 60, 112, 80]],
    dtype=np.float32,
)


def crop_and_resize(
    features: np.ndarray, boxes: np.ndarray, size: int, input_size: tuple[int, int]
) -> np.ndarray:
    """TensorFlow's definition, sample by sample: corners of normalised boxes on cell centres."""
    channels, rows, columns = features.shape
    out = np.zeros((len(boxes), channels, size, size))
    for r, (x0, y0, x1, y1) in enumerate(boxes / np.array(input_size[::-1] * 2)):
        for i in range(size):
            y = y0 * (rows - 1) + i * (y1 - y0) * (rows - 1) / (size - 1)
            for j in range(size):
                x = x0 * (columns - 1) + j * (x1 - x0) * (columns - 1) / (size - 1)
                top, left = int(np.floor(y)), int(np.floor(x))
                down, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
                v, u = y - top, x - left
                out[r, :, i, j] = (1 - v) * (
                    (1 - u) * features[:, top, left] + u * features[:, top, right]
                ) + v * ((1 - u) * features[:, down, left] + u * features[:, down, right])
    return out


def expected(config: ModelConfig, features: np.ndarray) -> np.ndarray:
    """With `roi_sampling_ratio` samples a bin and axis, averaged."""
    ratio, bins = config.roi_sampling_ratio, config.roi_size
    samples = crop_and_resize(
        features, BOXES, ratio * bins, (config.input_height, config.input_width)
    )
    by_bin = samples.reshape(*samples.shape[:2], bins, ratio, bins, ratio)
    return np.asarray(by_bin.mean(axis=(3, 5)))


def features(config: ModelConfig) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((config.stage_channels[2], 5, 7)).astype(np.float32)


@pytest.mark.parametrize("ratio", [1, 2])
def test_engine_is_crop_and_resize(ratio: int) -> None:
    config = replace(CORNERS, roi_sampling_ratio=ratio)

    def aligned(config: ModelConfig) -> np.ndarray:
        """All bins, also those that no layer reads."""
        graph = build_graph(config)
        engine = Engine(config, random_tensors(config, 0.0), graph=graph, threads=1).native
        engine.plan(config.input_height, config.input_width)
        align = graph.only(RoiAlign)[0]
        given = dict(zip(align.inputs, (features(config), BOXES), strict=True))
        return engine.run_between(given, [align.name])[0]

    x = features(config)
    np.testing.assert_allclose(aligned(config), expected(config, x), atol=2e-5)
    other = replace(config, roi_sampling="aligned")
    assert abs(aligned(other) - expected(config, x)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("operator", [True, False])
def test_torch_is_crop_and_resize(operator: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from torchvision import ops

    from sparsedet.torch_model import operations

    if operator:  # which it takes for large maps

        def by_operator(x, rois, size, scale, ratio, step):  # type: ignore[no-untyped-def]
            return ops.roi_align(x, rois, size, scale, ratio, True)[:, :, ::step, ::step]

        monkeypatch.setattr(operations, "roi_align_matmul", by_operator)
    align = build_graph(CORNERS).only(RoiAlign)[1]  # all bins, also those that no layer reads
    x = features(CORNERS)
    got = operations.roi_align(align, [torch.from_numpy(x)[None]], [torch.from_numpy(BOXES)])
    np.testing.assert_allclose(got.numpy(), expected(CORNERS, x), atol=2e-5)


def test_needs_a_number_of_samples() -> None:
    with pytest.raises(InputError, match="roi_sampling_ratio is 0"):
        replace(CORNERS, roi_sampling_ratio=0)
    with pytest.raises(InputError, match="roi_sampling is 'edges'"):
        replace(CORNERS, roi_sampling="edges")  # type: ignore[arg-type]
