"""Every geometry that the configuration accepts, on every instruction set, against torch.

A feature map has zeros beside its rows and above them; a filter that reaches further than they do
reads its neighbours' values, or memory of nobody. What depends on the geometry is therefore tried
with every padding, with sizes that nothing divides, and down to the smallest network input.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsedet import _native
from sparsedet.engine import Engine
from sparsedet.engine.calibrate import calibrate
from sparsedet.errors import InputError
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.presets import preset
from sparsedet.testing import calibrated_random_tensors

torch = pytest.importorskip("torch")

from helpers.engine import (  # noqa: E402
    ISAS,
    Tensors,
    as_batch,
    check_stages,
    deviation,
    synthetic_image,
    torch_reference,
)
from helpers.parts import EngineParts  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = replace(
    preset("r50half-c4"),
    name="tiny",
    input_height=33,
    input_width=45,
    blocks=(1, 1, 1, 1),
    stem_channels=5,
    bottleneck_channels=(3, 4, 5, 6),
    stage_channels=(7, 9, 10, 11),
    rpn_channels=6,
    anchor_sizes=(16.0, 32.0),
    class_names=("cat", "dog"),
    category_ids=(1, 2),
    proposals=30,
    rpn_pre_nms=60,
)
PADDINGS = [(before, after) for before in range(7) for after in range(7)]
"""Every `stem_padding` that the configuration accepts."""
SIZES = [(16, 16), (33, 45), (17, 82), (50, 19)]


@functools.cache
def tensors() -> Tensors:
    """Of `TINY` and of whatever differs from it in paddings, strides and sizes only."""
    return calibrated_random_tensors(TINY, 0.3, synthetic_image(33, 45))


def runs(config: ModelConfig, size: tuple[int, int]) -> bool:
    """Whether the network has an output for a network input of this size."""
    try:
        build_graph(config, size)
    except InputError:
        return False
    return True


def test_the_paddings_tried_are_all_there_are() -> None:
    outside: list[tuple[int, int]] = [(-1, 0), (0, -1), (7, 0), (0, 7)]
    for padding in outside:
        with pytest.raises(InputError, match="stem_padding"):
            replace(TINY, stem_padding=padding)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_every_padding_of_the_stem(padding: tuple[int, int], isa: str) -> None:
    config = replace(TINY, stem_padding=padding)
    model, engine = (
        torch_reference(config, tensors()),
        Engine(config, tensors(), threads=1, isa=isa, hoist=False),
    )
    for size in [size for size in SIZES if runs(config, size)]:
        image = synthetic_image(*size)
        expected = model.features(as_batch(image))[0]
        assert deviation(EngineParts(engine).features(image), expected) < 1e-4, size
        x = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
        got = engine.native.run_operation("stem.conv", [x])
        assert deviation(got, model.layers["stem.conv"](torch.from_numpy(x))) < 1e-5, size


PRECISIONS = [("bf16", isa) for isa in ISAS if _native.has_bfloat16(isa)] + [
    ("int8", isa) for isa in ISAS if _native.has_int8(isa)
]


@pytest.mark.parametrize(("precision", "isa"), PRECISIONS)
def test_every_padding_of_the_stem_in_low_precision(precision: Any, isa: str) -> None:
    """Pixels are stored in pairs in bf16. A wrong column at an edge is far from any rounding."""
    for padding in PADDINGS:
        config = replace(TINY, stem_padding=padding)
        image = synthetic_image(33, 45)
        thresholds = (
            calibrate(config, tensors(), [image], threads=1) if precision == "int8" else None
        )
        engine = Engine(
            config,
            tensors(),
            threads=1,
            isa=isa,
            precision=precision,
            clipping_thresholds=thresholds,
        )
        expected = torch_reference(config, tensors()).features(as_batch(image))[0]
        assert deviation(EngineParts(engine).features(image), expected) < 0.1, padding
        if precision == "bf16":  # whole numbers that bfloat16 holds: the sums are exact
            rng = np.random.default_rng(1)
            x = rng.integers(-8, 9, (1, 3, 18, 45)).astype(np.float32)
            whole = {k: np.round(v * 8).clip(-8, 8) for k, v in tensors().items()}
            exact = Engine(config, whole, threads=1, isa=isa, precision="bf16").native
            sums = torch_reference(config, whole).layers["stem.conv"](torch.from_numpy(x))
            got = exact.run_operation("stem.conv", [x])
            assert np.array_equal(got, sums.to(torch.bfloat16).float().numpy()), padding


def downsamplings() -> Iterator[dict[str, Any]]:
    """Every padding of the pooling and of the stride's convolutions."""
    for pool in itertools.product(range(3), repeat=2):
        yield {"pool_padding": pool}
    for stride_in, last in itertools.product(("conv1", "conv2"), (-1, 0)):
        for before in range(3 + last):
            yield {
                "stride_in": stride_in,
                "stride_conv1_padding": (0, last),
                "stride_conv2_padding": (before, 2 + last - before),
            }


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "changes", list(downsamplings()), ids=lambda c: " ".join(map(str, c.values()))
)
def test_every_padding_of_pooling_and_strides(changes: dict[str, Any], isa: str) -> None:
    config = replace(TINY, **changes)
    model = torch_reference(config, tensors())
    for hoist in (True, False):
        engine = Engine(config, tensors(), threads=1, isa=isa, hoist=hoist)
        for size in [size for size in SIZES if runs(config, size)]:
            check_stages(engine, model, synthetic_image(*size), 1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("roi_size", [2, 4, 6, 8, 14, 18, 34, 64])
def test_sizes_of_a_region(roi_size: int, isa: str) -> None:
    variants: list[dict[str, Any]] = [{}, {"stride_in": "conv2"}, {"roi_sampling": "corners"}]
    for changes in variants:
        config = replace(TINY, **{"stride_in": "conv1", "roi_size": roi_size, **changes})
        model = torch_reference(config, tensors())
        for hoist, algorithms in ((True, {}), (False, {"res5.0.conv2": "dense"})):
            engine = Engine(
                config, tensors(), threads=1, isa=isa, hoist=hoist, algorithms=algorithms
            )
            check_stages(engine, model, synthetic_image(33, 45), 1e-4)


def drawn(seed: int) -> tuple[ModelConfig, tuple[int, int]]:
    """A configuration that differs from `TINY` in all that shapes memory, and a size for it."""
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int, count: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(low, high + 1, count)))

    last = int(rng.integers(-1, 1))
    before = int(rng.integers(0, 3 + last))
    changes: dict[str, Any] = {
        "stem_padding": draw(0, 6, 2),
        "pool_padding": draw(0, 2, 2),
        "stride_in": ("conv1", "conv2")[rng.integers(2)],
        "stride_conv1_padding": (0, last),
        "stride_conv2_padding": (before, 2 + last - before),
        "stem_channels": draw(1, 40, 1)[0],
        "bottleneck_channels": draw(1, 40, 4),
        "stage_channels": draw(1, 80, 4),
        "rpn_channels": draw(1, 40, 1)[0],
        "blocks": draw(1, 2, 4),
        "roi_size": 2 * draw(1, 10, 1)[0],
        "roi_sampling_ratio": draw(1, 3, 1)[0],
        "roi_sampling": ("aligned", "corners")[rng.integers(2)],
        "proposals": draw(1, 150, 1)[0],
        "anchor_stride": (8, 16, 32)[rng.integers(3)],
    }
    config = replace(TINY, **changes)
    while True:
        size = draw(16, 120, 2)
        if runs(config, (size[0], size[1])):
            return config, (size[0], size[1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_drawn_geometries(seed: int) -> None:
    config, size = drawn(seed)
    image = synthetic_image(*size, seed=seed)
    tensors = calibrated_random_tensors(
        replace(config, input_height=97, input_width=131), 0.5, synthetic_image(97, 131)
    )
    model = torch_reference(config, tensors)
    for isa in ISAS:
        for hoist in (True, False):
            engine = Engine(config, tensors, threads=2, isa=isa, hoist=hoist)
            check_stages(engine, model, image, 2e-4)
            expected = Engine(config, tensors, threads=1, isa=isa, hoist=hoist).run(image)
            assert np.array_equal(engine.run(image), expected)
