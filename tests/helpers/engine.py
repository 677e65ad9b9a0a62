"""Small networks, lively weights, and the comparison of an engine's stages with the torch model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet.engine import Engine, available_isas
from sparsedet.model.config import COCO_NAMES, ModelConfig
from sparsedet.model.graph import Layer
from sparsedet.model.presets import preset
from sparsedet.testing import calibrated_random_tensors, outlines_on_blobs

try:
    import torch

    from sparsedet.torch_model import FasterRCNN
except ImportError:
    pytest.skip("needs torch", allow_module_level=True)

ISAS = available_isas()

# Odd channel counts everywhere, a network input that 16 does not divide.
SMALL: dict[str, Any] = dict(
    input_height=97,
    input_width=131,
    blocks=(1, 2, 2, 2),
    stem_channels=13,
    bottleneck_channels=(7, 13, 18, 21),
    stage_channels=(20, 35, 52, 61),
    rpn_channels=33,
    class_names=COCO_NAMES[:20],
    category_ids=tuple(range(1, 21)),
    anchor_sizes=(16.0, 32.0, 64.0),
    proposals=80,
    rpn_pre_nms=400,
)
# The two families of weights, and the small default: stride in the first 1x1 or in the 3x3,
# padding on both sides or mostly before, background first or last, with deltas or without,
# adaptive RoI sampling or not, empty proposals removed or not.
FAMILIES = ("r101-c4", "r101-c4-detectron2", "r50half-c4")
families = pytest.mark.parametrize("family", FAMILIES)


def small(family: str, **changes: Any) -> ModelConfig:
    return replace(preset(family), **{**SMALL, **changes})


synthetic_image = outlines_on_blobs

Tensors = dict[str, NDArray[Any]]


@functools.cache
def lively(family: str, sparsity: float = 0.5) -> Tensors:
    config = small(family)
    return calibrated_random_tensors(
        config, sparsity, synthetic_image(config.input_height, config.input_width)
    )


def torch_reference(config: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> FasterRCNN:
    model = FasterRCNN(config)
    model.load_tensors(tensors)
    return model.requires_grad_(False)


def as_batch(network_input: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(network_input.transpose(2, 0, 1)[None]))


def deviation(got: NDArray[Any], expected: NDArray[Any] | torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    if not expected.size:
        return 0.0
    assert np.isfinite(got).all()
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))


def own_size(layer: Layer) -> list[tuple[int, ...]]:
    """Sizes (batch, rows, columns) to run a layer on: its own and small ones, or some RoIs."""
    if layer.component == "roi":
        return [(batch, *layer.in_size) for batch in (1, 3, 64, 67)]
    return [(1, *size) for size in (layer.in_size, (2, 2), (5, 16), (16, 5), (9, 33))]


def check_stages(
    engine: Engine, model: FasterRCNN, network_input: NDArray[np.uint8], tolerance: float
) -> None:
    """Compare each stage with the torch model, on the torch model's input of that stage."""
    native, (height, width) = engine.native, network_input.shape[:2]
    native.plan_memory(height, width)
    features = model.features(as_batch(network_input))
    assert deviation(native.features(network_input), features[0]) < tolerance
    flat = np.ascontiguousarray(features[0])

    logits, deltas = (t[0] for t in model.rpn_outputs(features))
    our_logits, our_deltas = native.rpn(flat)
    assert deviation(our_logits, logits) < tolerance and deviation(our_deltas, deltas) < tolerance

    proposals = model.proposals(logits, deltas, model.anchors(features), height, width)
    ours = native.proposals(logits.numpy(), deltas.numpy())
    assert ours.shape == proposals.shape and len(ours) > 0
    assert np.abs(ours - proposals.numpy()).max() < 1e-3

    aligned = model.roi_features(features, [proposals])
    rois = proposals.numpy()
    assert deviation(native.roi_features(flat, rois), aligned) < tolerance

    class_logits, box_deltas = model.head(aligned)
    our_logits, our_deltas = native.roi_head(flat, rois)
    assert deviation(our_logits, class_logits) < tolerance
    assert deviation(our_deltas, box_deltas) < tolerance

    scale = np.array([width, height] * 2, np.float32)
    boxes, scores, labels = model.detect(class_logits, box_deltas, proposals, height, width)
    rows = native.detect(class_logits.numpy(), box_deltas.numpy(), rois)
    assert np.array_equal(rows[:, 1], labels) and (rows[:, 0] == 0).all()
    assert np.abs(rows[:, 2] - scores.numpy()).max(initial=0) < 1e-6
    assert np.abs(rows[:, 3:] * scale - boxes.numpy()).max(initial=0) < 1e-3
