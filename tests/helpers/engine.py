"""Small networks, lively weights, and the comparison of an engine with torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.parts import EngineParts
from sparsedet.engine import Engine, available_isas
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import COCO_NAMES, ModelConfig
from sparsedet.model.graph import Conv, Graph, MaxPool, Operation, Shape
from sparsedet.model.presets import preset
from sparsedet.model.rewrite import merge_predictors
from sparsedet.testing import calibrated_random_tensors, outlines_on_blobs

try:
    import torch
    from torch.nn import functional as F

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


# --------------------------------------------------------------------------- one operation


def unhoisted(config: ModelConfig) -> Graph:
    """The graph with every operation of the engine: whole RoIs, their strides, merged predictors.

    `lowered` would skip the bins of RoIAlign that nobody reads, and strides on RoIs with them.
    """
    return merge_predictors(build_graph(config))


def windows(graph: Graph) -> Iterator[tuple[Operation, Conv | MaxPool]]:
    """Convolutions, fully connected layers and pooling with their attributes."""
    for operation in graph.operations:
        if isinstance(operation.attributes, Conv | MaxPool):
            yield operation, operation.attributes


def by_torch(
    operation: Operation,
    tensors: Mapping[str, NDArray[Any]],
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The value of an operation of `windows`, by torch's own functions, in the precision of x."""
    attributes = operation.attributes
    assert isinstance(attributes, Conv | MaxPool)
    top, left, bottom, right = attributes.padding
    x = F.pad(x, (left, right, top, bottom))
    if isinstance(attributes, MaxPool):
        return F.max_pool2d(x, attributes.kernel, attributes.stride)

    def of_layers(part: str) -> torch.Tensor:
        parts = [np.asarray(tensors[f"{layer}.{part}"]) for layer in attributes.layers]
        return torch.from_numpy(np.concatenate(parts)).to(x.dtype)

    weight = of_layers("weight")
    weight = weight.view(*weight.shape[:2], *attributes.kernel)
    out = F.conv2d(x, weight, of_layers("bias"), attributes.stride, 0, attributes.dilation)
    if residual is not None:
        out = out + residual
    return F.relu(out) if attributes.activation == "relu" else out


def own_size(shape: Shape) -> list[tuple[int, ...]]:
    """Sizes (batch, rows, columns) to run an operation on whose input has this shape: its own and
    small ones, or some RoIs."""
    if shape.domain == "rois":
        return [(batch, *shape.size) for batch in (1, 3, 64, 67)]
    return [(1, *size) for size in (shape.size, (2, 2), (5, 16), (16, 5), (9, 33))]


# ------------------------------------------------------------------------------ all stages


def check_stages(
    engine: Engine, model: FasterRCNN, network_input: NDArray[np.uint8], tolerance: float
) -> None:
    """Compare each stage with the torch model, on the torch model's input of that stage."""
    ours, (height, width) = EngineParts(engine), network_input.shape[:2]
    features = model.features(as_batch(network_input))
    assert deviation(ours.features(network_input), features[0]) < tolerance
    flat = features[0].numpy()

    logits, deltas = (t[0] for t in model.rpn_outputs(features))
    our_logits, our_deltas = ours.rpn(flat)
    assert deviation(our_logits, logits) < tolerance and deviation(our_deltas, deltas) < tolerance

    proposals = model.proposals(logits, deltas, model.anchors(features), height, width)
    boxes = ours.proposals(logits.numpy(), deltas.numpy())
    assert boxes.shape == proposals.shape and len(boxes) > 0
    assert np.abs(boxes - proposals.numpy()).max() < 1e-3

    aligned, rois = model.roi_features(features, [proposals]), proposals.numpy()
    if ours.hoisted:  # each RoIAlign ends a layer
        layers = [ours.layer_of(name) for name in ours.aligned]
        theirs = model.run({model.rois: aligned}, layers)
        values = ours.between({ours.feature_map: flat, ours.boxes: rois}, *ours.aligned)
        for got, expected in zip(values, theirs, strict=True):
            assert deviation(got, expected) < tolerance
    else:
        assert deviation(ours.roi_features(flat, rois), aligned) < tolerance

    class_logits, box_deltas = model.head(aligned)
    our_logits, our_deltas = ours.roi_head(flat, rois)
    assert deviation(our_logits, class_logits) < tolerance
    assert deviation(our_deltas, box_deltas) < tolerance

    scale = np.array([width, height] * 2, np.float32)
    found, scores, labels = model.detect(class_logits, box_deltas, proposals, height, width)
    rows = ours.detect(class_logits.numpy(), box_deltas.numpy(), rois)
    assert np.array_equal(rows[:, 1], labels) and (rows[:, 0] == 0).all()
    assert np.abs(rows[:, 2] - scores.numpy()).max(initial=0) < 1e-6
    assert np.abs(rows[:, 3:] * scale - found.numpy()).max(initial=0) < 1e-3
