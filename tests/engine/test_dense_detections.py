"""Detections of one-stage detectors in the core: as torch makes them of the same maps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from sparsedet._native import NativeEngine, has_bfloat16  # noqa: E402
from sparsedet.engine import Engine  # noqa: E402
from sparsedet.model.graph import (  # noqa: E402
    IMAGE,
    Conv,
    FcosOutput,
    Graph,
    Normalise,
    Operation,
    RetinaNetOutput,
    Shape,
)
from sparsedet.torch_model.detections import (  # noqa: E402
    fcos_detections,
    retinanet_detections,
    to_rows,
)

F32 = NDArray[np.float32]
Output = RetinaNetOutput | FcosOutput
SIZE = (72, 104)
ANCHORS = (
    (-8.0, -8.0, 8.0, 8.0),
    (-12.0, -6.0, 12.0, 6.0),
    (-3.5, -9.0, 4.0, 9.5),
)


def retinanet(levels: int = 1, anchors: int = 3, classes: int = 5, **changes: Any) -> Output:
    """Anchors are smaller on lower levels; strides of the first level follow from the sizes."""
    cells = np.array(ANCHORS[:anchors])
    fields: dict[str, Any] = {
        "num_classes": classes,
        "cell_anchors": tuple(tuple(map(tuple, cells * 2.0**i)) for i in range(levels)),
        "strides": (0, *(2 << i for i in range(1, levels))),
        "box_weights": (1.0, 2.0, 1.5, 1.0),
        "delta_clamp": 2.0,
        "pre_nms": 200,
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
        "max_detections": 60,
    }
    return RetinaNetOutput(**{**fields, **changes})


def fcos(levels: int = 1, classes: int = 5, **changes: Any) -> Output:
    fields: dict[str, Any] = {
        "num_classes": classes,
        "sizes": tuple(4.0 * 2**i for i in range(levels)),
        "strides": (0, *(2 << i for i in range(1, levels))),
        "pre_nms": 200,
        "score_threshold": 0.2,
        "nms_threshold": 0.6,
        "max_detections": 60,
    }
    return FcosOutput(**{**fields, **changes})


def channels(output: Output, level: int) -> list[int]:
    """Channels of the maps of one level, kind after kind."""
    if isinstance(output, FcosOutput):
        return [output.num_classes, 4, 1]
    anchors = len(output.cell_anchors[level])
    return [anchors * output.num_classes, 4 * anchors]


def graph_of(output: Output) -> Graph:
    """Levels of half the size each; every map is a convolution of 1x1 of its level."""
    operations = [Operation("n", (IMAGE,), Normalise((120.0,) * 3, (60.0,) * 3))]
    levels = len(output.strides)
    for i in range(levels):
        conv = Conv(6, (3, 3), (f"f{i}",), stride=2, padding=(1, 1, 1, 1), activation="relu")
        operations.append(Operation(f"f{i}", (f"f{i - 1}" if i else "n",), conv))
    maps: list[list[str]] = [[] for _ in channels(output, 0)]
    for i in range(levels):
        for kind, count in enumerate(channels(output, i)):
            name = f"m{kind}.{i}"
            operations.append(Operation(name, (f"f{i}",), Conv(count, (1, 1), (name,))))
            maps[kind].append(name)
    inputs = (*itertools.chain(*maps), IMAGE)
    return Graph(Shape("image", 3, *SIZE), (*operations, Operation("rows", inputs, output)))


def engine_of(output: Output, threads: int = 1) -> Engine:
    graph = graph_of(output)
    config = cast(Any, SimpleNamespace(name="x", graph=graph))
    tensors = {}
    rng = np.random.default_rng(3)
    for layer in graph.layers:
        weight = rng.normal(size=layer.weight_shape).astype(np.float32)
        tensors[f"{layer.name}.weight"] = weight / np.sqrt(np.float32(weight[0].size))
        tensors[f"{layer.name}.bias"] = rng.normal(size=len(weight)).astype(np.float32)
    return Engine(config, tensors, threads=threads)


def random_maps(output: Output, seed: int = 0, low: float = -6, high: float = 4) -> dict[str, F32]:
    """Logits are multiples of 1/2: many are equal, no two scores are nearly so."""
    rng = np.random.default_rng(seed)
    shapes = graph_of(output).shapes
    found = {}
    for name in graph_of(output).operations[-1].inputs[:-1]:
        shape = shapes[name].channels, *shapes[name].size
        values: NDArray[Any]
        if name.startswith("m1"):
            values = rng.normal(size=shape)
            values = np.abs(values) if isinstance(output, FcosOutput) else values
        elif name.startswith("m0"):
            values = rng.integers(round(2 * low), round(2 * high) + 1, shape) / 2
        else:
            values = rng.integers(-1, 2, shape) * 2.0
        found[name] = values.astype(np.float32)
    return found


def expected_rows(
    output: Output, maps: Mapping[str, F32], size: tuple[int, int], content: tuple[int, int]
) -> F32:
    names = graph_of(output).operations[-1].inputs[:-1]
    tensors = [torch.from_numpy(maps[name])[None] for name in names]
    if isinstance(output, FcosOutput):
        found = fcos_detections(output, tensors, size, content)
    else:
        found = retinanet_detections(output, tensors, size, content)
    rows = to_rows(found, output.max_detections, torch.zeros(1, 3, *size))[0]
    return rows[rows[:, 0] >= 0].numpy()


def rows_of(engine: Engine, maps: Mapping[str, F32]) -> F32:
    """The rows of maps that are given; the content is the whole image."""
    engine.native.plan(*SIZE)
    image = np.zeros((*SIZE, 3), np.float32)
    (rows,) = engine.native.run_between({**maps, IMAGE: image}, ["rows"])
    return np.asarray(rows)


def check(got: F32, expected: F32) -> None:
    assert got.shape == expected.shape
    assert np.array_equal(got[:, :2], expected[:, :2])  # also the order
    np.testing.assert_allclose(got[:, 2:], expected[:, 2:], rtol=1e-5, atol=1e-6)


CASES: list[Output] = [
    retinanet(),
    retinanet(5),
    retinanet(5, score_threshold=0.0, pre_nms=50),
    retinanet(3, score_threshold=0.0, pre_nms=1 << 20, max_detections=400),
    retinanet(5, clip_first=False),
    retinanet(2, anchors=1, classes=1),
    retinanet(2, anchors=1, classes=40, pre_nms=1),
    retinanet(1, score_threshold=0.5),  # of a logit that occurs: such a score is not above it
    retinanet(1, score_threshold=0.97, nms_threshold=1.0),
    fcos(),
    fcos(5),
    fcos(5, score_threshold=0.0, pre_nms=50),
    fcos(3, score_threshold=0.0, pre_nms=1 << 20, max_detections=400),
    fcos(2, classes=1),
    fcos(2, classes=40, pre_nms=1),
    fcos(1, score_threshold=0.9, nms_threshold=1.0),
]


@pytest.mark.parametrize("output", CASES, ids=lambda output: f"{output.kind}-{CASES.index(output)}")
def test_rows_are_those_of_torch_for_any_number_of_threads(output: Output) -> None:
    maps = random_maps(output)
    first = rows_of(engine_of(output), maps)
    expected = expected_rows(output, maps, SIZE, SIZE)
    assert len(expected) > min(5, output.pre_nms)
    check(first, expected)
    for threads in (2, 3):
        assert np.array_equal(rows_of(engine_of(output, threads), maps), first)


@pytest.mark.parametrize("output", [retinanet(5), fcos(5)], ids=["retinanet", "fcos"])
def test_there_may_be_no_candidate(output: Output) -> None:
    engine = engine_of(output, 2)
    for low, high in ((-9, -5), (-200, -100)):
        assert rows_of(engine, random_maps(output, low=low, high=high)).shape == (0, 7)
    assert len(rows_of(engine, random_maps(output)))  # and what was found before is forgotten
    assert rows_of(engine, random_maps(output, low=-9, high=-5)).shape == (0, 7)


@pytest.mark.parametrize("threshold", [1.0, 0.9999999, 1e-30])
@pytest.mark.parametrize("make", [retinanet, fcos])
def test_scores_at_the_ends_of_their_range(make: Any, threshold: float) -> None:
    output = make(2, score_threshold=threshold)
    maps = random_maps(output)
    for name in maps:
        if not name.startswith("m1"):  # scores are 1, 1/2 or what underflows
            maps[name] = np.sign(maps[name]) * np.float32(120)
    got = rows_of(engine_of(output, 2), maps)
    check(got, expected_rows(output, maps, SIZE, SIZE))
    assert bool(len(got)) == (threshold < 1)


@pytest.mark.parametrize("output", [retinanet(5), fcos(5)], ids=["retinanet", "fcos"])
def test_equal_scores_are_in_the_order_of_cells_then_anchors_then_classes(output: Output) -> None:
    maps = {name: np.zeros_like(values) for name, values in random_maps(output).items()}
    rng = np.random.default_rng(0)
    for name in maps:
        if name.startswith("m1"):
            maps[name] = rng.normal(size=maps[name].shape).astype(np.float32) * 2
    first = rows_of(engine_of(output), maps)
    assert len(first) == output.max_detections
    check(first, expected_rows(output, maps, SIZE, SIZE))
    assert np.array_equal(rows_of(engine_of(output, 3), maps), first)


@pytest.mark.parametrize("make", [retinanet, fcos])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_what_is_no_number_is_no_candidate_and_does_no_harm(make: Any, threshold: float) -> None:
    output = make(3, score_threshold=threshold, pre_nms=30)
    rng = np.random.default_rng(5)
    clean = random_maps(output)
    for kinds in (("m0",), ("m1",), ("m2",), ("m0", "m1", "m2")):
        for value in (np.nan, np.inf, -np.inf):
            maps = {name: values.copy() for name, values in clean.items()}
            for name, values in maps.items():
                if name.startswith(kinds):
                    values[rng.random(values.shape) < 0.3] = value
            first = rows_of(engine_of(output), maps)
            assert not np.isnan(first[:, :3]).any() and len(first) <= output.max_detections
            assert np.array_equal(rows_of(engine_of(output, 2), maps), first, equal_nan=True)
            if kinds == ("m0",):
                check(first, expected_rows(output, maps, SIZE, SIZE))
    all_nan = {name: np.full_like(values, np.nan) for name, values in clean.items()}
    assert rows_of(engine_of(output), all_nan).shape == (0, 7)


@pytest.mark.parametrize("output", [retinanet(4, pre_nms=80), fcos(4, pre_nms=80)], ids=["r", "f"])
def test_boxes_end_where_the_content_ends(output: Output) -> None:
    """A whole run, also at a size whose maps are no whole fractions of it."""
    engine = engine_of(output, 2)
    names = list(graph_of(output).operations[-1].inputs[:-1])
    for size, content in ((SIZE, (50, 77)), ((71, 101), (71, 60))):
        image = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
        got = engine.run(image, content)
        given = {IMAGE: image.astype(np.float32)}
        arrays = engine.native.run_between(given, names)
        maps = {name: np.asarray(a) for name, a in zip(names, arrays, strict=True)}
        expected = expected_rows(output, maps, size, content)
        assert len(got) == output.max_detections
        close_rows(got, expected)
        assert got[:, 5].max() <= content[1] / size[1] and got[:, 6].max() <= content[0] / size[0]
        ends = np.float32(content[1]) / np.float32(size[1]), np.float32(content[0]) / size[0]
        assert (got[:, 5] == ends[0]).any() and (got[:, 6] == np.float32(ends[1])).any()


def close_rows(got: F32, expected: F32) -> None:
    """Nearly the same rows; those of nearly the same score may change places."""
    assert got.shape == expected.shape
    np.testing.assert_allclose(got[:, 2], expected[:, 2], atol=1e-6)
    for row in got:
        assert np.abs(expected - row).max(axis=1).min() < 1e-5


BAD: list[tuple[Output, dict[str, Any], str]] = [
    (retinanet(2), {"strides": (2,)}, "cell_anchors and strides differ in length"),
    (retinanet(2), {"strides": (2, -1)}, "strides are out of range"),
    (retinanet(2), {"cell_anchors": (ANCHORS, ((1.0, 2.0),))}, "a box has four numbers"),
    (retinanet(2), {"num_classes": 4}, "the maps do not fit each other, the anchors or classes"),
    (
        retinanet(2),
        {"num_classes": 1 << 24},
        "the maps do not fit each other, the anchors or classes",
    ),
    (retinanet(2), {"pre_nms": 0}, "pre_nms is 0, expected 1..16777216"),
    (retinanet(2), {"count": 3}, "unknown field 'count'"),
    (retinanet(2), {"score_threshold": None}, "score_threshold is missing or has the wrong type"),
    (retinanet(2), {"cell_anchors": (), "strides": (), "inputs": ["image"]}, "there are no levels"),
    (retinanet(2), {"inputs": ["m0.0", "m0.1", "m1.0", "m1.1"]}, "has 4 inputs, expected 5"),
    (
        retinanet(2),
        {"inputs": ["m0.0", "m0.1", "m1.0", "image", "m1.1"]},
        "an input is missing, or of the wrong domain",
    ),
    (
        retinanet(2),
        {"inputs": ["m0.0", "m0.1", "m1.1", "m1.0", "image"]},
        "the maps do not fit each other, the anchors or classes",
    ),
    (fcos(2), {"sizes": (1.0,)}, "sizes and strides differ in length"),
    (fcos(2), {"strides": (2, 1 << 12)}, "strides are out of range"),
    (fcos(2), {"max_detections": 0}, "max_detections is 0, expected 1..16777216"),
    (fcos(2), {"box_weights": (1.0,) * 4}, "unknown field 'box_weights'"),
    (fcos(2), {"num_classes": 4}, "the maps do not fit each other, the anchors or classes"),
]


@pytest.mark.parametrize(("output", "changes", "said"), BAD, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_refused(output: Output, changes: dict[str, Any], said: str) -> None:
    native = engine_of(output).native
    inputs = list(graph_of(output).operations[-1].inputs)
    fields = {"name": "again", "kind": output.kind, "inputs": inputs, **asdict(output)}
    native.add(fields)
    with pytest.raises(ValueError) as caught:
        native.add({**fields, "name": "bad", **changes})
    assert str(caught.value) == f"bad: {said}"


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no kernels of bfloat16")
def test_maps_that_are_not_float32_are_refused() -> None:
    output = retinanet(1, anchors=1, classes=4)
    native = NativeEngine("", 1, False, "bf16", SIZE)
    of_engine = {operation.name: operation for operation in graph_of(output).operations}
    native.add(
        {"name": "n", "kind": "normalise", "inputs": ["image"], "type": "bf16"}
        | asdict(of_engine["n"].attributes)
    )
    conv = {"kernel": (1, 1), "stride": 2, "padding": (0,) * 4, "dilation": 1, "groups": 1}
    conv |= {"kind": "conv", "activation": "none", "type": "bf16"}
    weight = np.ones((4, 3, 1, 1), np.float32)
    native.add({**conv, "name": "m", "inputs": ["n"], "in_channels": 3, "out_channels": 4}, weight)
    fields = {"name": "rows", "kind": output.kind, "inputs": ["m", "m", "image"], **asdict(output)}
    with pytest.raises(ValueError, match=r"rows: it reads values that are not float32"):
        native.add(fields)
