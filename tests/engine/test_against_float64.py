"""Strange networks and sizes: the engine's float32 against the torch model in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from helpers.engine import (
    ISAS,
    Tensors,
    as_batch,
    deviation,
    small,
    synthetic_image,
    torch_reference,
)
from helpers.parts import EngineParts
from numpy.typing import NDArray

from sparsedet.engine import Engine
from sparsedet.model.config import ModelConfig
from sparsedet.testing import calibrated_random_tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]

TOLERANCE = 1e-4
"""Relative to the largest value; the same as of ordinary networks."""


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The torch model computes parts in float32 whatever it is given; here they are doubles."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def narrow(x: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(x.to(torch.float32))


def classes(count: int) -> dict[str, Any]:
    names = tuple(f"class {n}" for n in range(count))
    return {"class_names": names, "category_ids": tuple(range(1, count + 1))}


SIZES: dict[str, dict[str, Any]] = {
    "one proposal": {"proposals": 1},
    "1,000 proposals": {"proposals": 1000, "rpn_pre_nms": 2000},
    "one class": classes(1),
    "1,000 classes": classes(1000),
    "as small as it gets": {"input_height": 16, "input_width": 16},
    "4,000 columns": {"input_height": 16, "input_width": 4000},
}


def zero(tensors: Tensors) -> None:
    tensors["res3.0.conv2.weight"][:] = 0


def no_zero(tensors: Tensors) -> None:
    for name, values in tensors.items():
        if name.endswith("weight"):
            values[values == 0] = 0.01 * np.abs(values).max()
            assert values.all()


def denormal(tensors: Tensors) -> None:
    """All weights of a layer are denormal numbers; its bias is what it was."""
    weight = tensors["res3.0.conv2.weight"]
    weight *= np.float32(1e-40) / np.abs(weight).max()
    assert 0 < np.abs(weight).max() < np.finfo(np.float32).tiny


def huge(tensors: Tensors) -> None:
    """Values between two layers are 2^60 times as large: a ReLU keeps that, and so do sums."""
    for name, factor in (("conv1", 2.0**60), ("conv2", 2.0**-60)):
        tensors[f"res3.0.{name}.weight"] *= np.float32(factor)
    tensors["res3.0.conv1.bias"] *= np.float32(2.0**60)


def check(config: ModelConfig, tensors: Tensors, isa: str) -> None:
    image = synthetic_image(config.input_height, config.input_width)
    engine = Engine(config, tensors, threads=2, precision="f32", isa=isa)
    ours, model = EngineParts(engine), torch_reference(config, tensors).double()
    features = model.features(as_batch(image).double())
    assert deviation(ours.features(image), features[0]) < TOLERANCE
    flat = narrow(features[0])
    logits, deltas = (t[0] for t in model.rpn_outputs(features))
    for got, expected in zip(ours.rpn(flat), (logits, deltas), strict=True):
        assert deviation(got, expected) < TOLERANCE
    rois = ours.proposals(narrow(logits), narrow(deltas))
    assert 0 < len(rois) <= config.proposals
    aligned = model.roi_features(features, [torch.from_numpy(rois).double()])
    for got, expected in zip(ours.roi_head(flat, rois), model.head(aligned), strict=True):
        assert deviation(got, expected) < TOLERANCE
    rows = engine.run(image)
    assert np.isfinite(rows).all() and len(rows) <= config.max_detections


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("change", [zero, no_zero, denormal, huge])
def test_strange_weights(change: Any, isa: str) -> None:
    config = small("r50half-c4")
    image = synthetic_image(config.input_height, config.input_width)
    tensors = {n: np.array(v) for n, v in calibrated_random_tensors(config, 0.5, image).items()}
    change(tensors)
    check(config, tensors, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", list(SIZES))
def test_strange_sizes(name: str, isa: str) -> None:
    changes = SIZES[name]
    # Weights are made for an image of ordinary size: a map of one cell has no variance.
    ordinary = small("r50half-c4", **{k: v for k, v in changes.items() if "input" not in k})
    image = synthetic_image(ordinary.input_height, ordinary.input_width)
    # Predictors are not pruned, and those of 1,000 classes are most of the weights.
    tensors = dict(calibrated_random_tensors(ordinary, 0.1, image))
    check(small("r50half-c4", **changes), tensors, isa)
