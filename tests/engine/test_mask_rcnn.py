"""Mask R-CNN's second stage in the core: a loop over the RoIs of rows, and masks of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from sparsedet._native import NativeEngine, available_isas, has_bfloat16, has_int8  # noqa: E402
from sparsedet.engine import Engine  # noqa: E402
from sparsedet.engine.interpreter import NativeInterpreter  # noqa: E402
from sparsedet.errors import InputError  # noqa: E402
from sparsedet.model.graph import (  # noqa: E402
    IMAGE,
    Conv,
    DepthToSpace,
    DetectionOutput,
    Graph,
    MaskOutput,
    Mean,
    Normalise,
    Operation,
    Proposals,
    RoiAlign,
    Shape,
)
from sparsedet.torch_model import GraphModule  # noqa: E402

F32 = NDArray[np.float32]
SIZE = (64, 96)
CLASSES = 3
PAD = (1, 1, 1, 1)


def mask_rcnn(background: bool = True, threshold: float = 0.05, rows: int = 250) -> Graph:
    """A small Mask R-CNN: boxes from an RPN, rows, then RoIs and masks of the rows."""
    relu: dict[str, Any] = {"padding": PAD, "activation": "relu"}
    one = (1, 1)
    anchors = ((-8.0, -8.0, 8.0, 8.0), (-16.0, -9.0, 16.0, 9.0))
    boxes = Proposals((anchors,), (4,), (1.0,) * 4, 4.0, 300, 90, 0.7, False, False)
    found = DetectionOutput(
        CLASSES, "first", True, (10.0, 10.0, 5.0, 5.0), 4.0, threshold, 0.5, rows
    )
    channels = CLASSES + background
    operations = [
        Operation("n", (IMAGE,), Normalise((120.0,) * 3, (60.0,) * 3)),
        Operation("f", ("n",), Conv(12, (3, 3), ("f",), stride=2, **relu)),
        Operation("m", ("f",), Conv(16, (3, 3), ("m",), stride=2, **relu)),
        Operation("rpn.logits", ("m",), Conv(2, one, ("rpn.logits",))),
        Operation("rpn.deltas", ("m",), Conv(8, one, ("rpn.deltas",))),
        Operation("boxes", ("rpn.logits", "rpn.deltas", IMAGE), boxes),
        Operation("r", ("m", "boxes"), RoiAlign((0.25,), 5, 2, "aligned")),
        Operation("h", ("r",), Conv(16, (3, 3), ("h",), **relu)),
        Operation("p", ("h",), Mean()),
        Operation("head.logits", ("p",), Conv(CLASSES + 1, one, ("head.logits",))),
        Operation("head.deltas", ("p",), Conv(4 * CLASSES + 4, one, ("head.deltas",))),
        Operation("rows", ("head.logits", "head.deltas", "boxes", IMAGE), found),
        Operation("r2", ("m", "rows"), RoiAlign((0.25,), 6, 0, "legacy")),
        Operation("h2", ("r2",), Conv(16, (3, 3), ("h2",), **relu)),
        Operation("up", ("h2",), Conv(32, one, ("up",), activation="relu")),
        Operation("wide", ("up",), DepthToSpace(2)),
        Operation("logits", ("wide",), Conv(channels, one, ("logits",))),
        Operation("masks", ("logits", "rows"), MaskOutput(background)),
    ]
    return Graph(Shape("image", 3, *SIZE), tuple(operations))


def tensors_of(graph: Graph) -> dict[str, F32]:
    rng = np.random.default_rng(7)
    tensors = {}
    for layer in graph.layers:
        weight = rng.normal(size=layer.weight_shape).astype(np.float32)
        tensors[f"{layer.name}.weight"] = weight * np.float32(1.8 / np.sqrt(weight[0].size))
        tensors[f"{layer.name}.bias"] = rng.normal(size=len(weight)).astype(np.float32) * 0.1
    for name in ("rpn.deltas", "head.logits", "head.deltas"):  # boxes differ, and labels
        tensors[f"{name}.weight"] *= 0.2
    if "logits.weight" in tensors:  # masks of all values
        tensors["logits.weight"] *= 3
    return tensors


def engine_of(graph: Graph, **options: Any) -> Engine:
    config = cast(Any, SimpleNamespace(name="x", graph=graph))
    return Engine(config, tensors_of(graph), **{"threads": 2, **options})


def picture(size: tuple[int, int] = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured squares."""
    blocks = np.random.default_rng(seed).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    return np.ascontiguousarray(np.kron(blocks, np.ones((9, 9, 1), np.uint8))[: size[0], : size[1]])


def by_torch(graph: Graph, image: NDArray[np.uint8], content: tuple[int, int]) -> tuple[F32, F32]:
    module = GraphModule("x", graph).eval()
    module.load_tensors(tensors_of(graph))
    batch = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        rows, masks = module.run({IMAGE: batch}, ["rows", "masks"], content)
    return rows[0][rows[0, :, 0] >= 0].numpy(), masks.numpy()


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("isa", available_isas())
def test_rows_and_masks_are_those_of_torch(isa: str, background: bool) -> None:
    graph = mask_rcnn(background)
    engine = engine_of(graph, isa=isa)
    for size, content in ((SIZE, SIZE), (SIZE, (50, 70)), ((100, 75), (100, 75))):
        rows, masks = engine.run_with_masks(picture(size), content)
        expected_rows, expected = by_torch(graph.resized(*size), picture(size), content)
        assert len(rows) > 20 and len(set(rows[:, 1])) == CLASSES
        assert masks.shape == (len(rows), 12, 12) and masks.dtype == np.float32
        np.testing.assert_allclose(rows, expected_rows, atol=1e-4)
        np.testing.assert_allclose(masks, expected, atol=1e-3)
        assert masks.std() > 0.1
        assert np.array_equal(engine.run(picture(size), content), rows)


def test_results_do_not_depend_on_the_threads_nor_on_earlier_runs() -> None:
    graph = mask_rcnn()
    engines = [engine_of(graph, threads=n) for n in (1, 2, 3, 7)]
    engines += [engines[0].fork(2)]
    first = {size: engines[0].run_with_masks(picture(size)) for size in (SIZE, (90, 70))}
    for engine in engines:
        for size in (SIZE, (90, 70), SIZE):
            for got, expected in zip(
                engine.run_with_masks(picture(size)), first[size], strict=True
            ):
                assert np.array_equal(got, expected)


def test_masks_belong_to_their_rows_when_threads_share_an_engine() -> None:
    engine = engine_of(mask_rcnn(threshold=0.3))
    expected = [engine.run_with_masks(picture(seed=seed)) for seed in range(6)]
    assert len({len(rows) for rows, _ in expected}) > 1
    with ThreadPoolExecutor(4) as pool:
        seeds = [seed for seed in range(6) for _ in range(5)]
        found = list(pool.map(lambda seed: engine.run_with_masks(picture(seed=seed)), seeds))
    for seed, got in zip(seeds, found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(got, expected[seed], strict=True))


def test_there_may_be_no_rows() -> None:
    engine = engine_of(mask_rcnn(threshold=1.0))
    rows, masks = engine.run_with_masks(picture())
    assert rows.shape == (0, 7) and masks.shape == (0, 12, 12)
    values = dict(NativeInterpreter(engine, picture()).values(["masks"]))
    assert values["h2"].shape == (0, 16, 6, 6) and values["masks"].shape == (0, 12, 12)


def test_masks_are_forgotten_with_their_rows() -> None:
    engine = engine_of(mask_rcnn())
    assert engine.native.masks().shape == (0, 12, 12)
    assert len(engine.run_with_masks(picture())[1])
    engine.native.plan(80, 80)
    assert engine.native.masks().shape == (0, 12, 12)


def test_a_network_without_masks_says_so() -> None:
    whole = mask_rcnn()
    end = [operation.name for operation in whole.operations].index("rows")
    engine = engine_of(Graph(whole.image, whole.operations[: end + 1]))
    assert len(engine.run(picture()))
    with pytest.raises(InputError, match="x makes no masks"):
        engine.run_with_masks(picture())
    with pytest.raises(ValueError, match="the graph does not end in masks"):
        engine.native.masks()


@pytest.mark.parametrize("size", [SIZE, (75, 100)])
def test_every_value_is_what_torch_makes_of_the_same_inputs(size: tuple[int, int]) -> None:
    graph = mask_rcnn()
    engine = engine_of(graph)
    module = GraphModule("x", graph).eval()
    module.load_tensors(tensors_of(graph))
    native = NativeInterpreter(engine, picture(size))
    values = {IMAGE: picture(size).astype(np.float32)}
    for name, value in native.values(["masks"]):
        values[name] = value
    assert list(values)[1:] == [operation.name for operation in engine.graph.operations]
    for name in ("r", "h", "r2", "h2", "up", "wide", "logits", "masks"):
        operation = engine.graph.by_name[name]
        inputs: list[Any] = [torch.from_numpy(values[i]) for i in operation.inputs]
        interpreter = module.interpreter()
        interpreter.image_size = size
        domain = engine.graph.shapes[operation.inputs[-1]].domain
        if domain == "boxes":
            inputs[-1] = [inputs[-1]]
        elif domain == "rows":
            inputs[-1] = inputs[-1][None]
        with torch.no_grad():
            expected = getattr(interpreter, operation.kind)(operation, *inputs).numpy()
        np.testing.assert_allclose(values[name], expected, rtol=1e-5, atol=2e-5, err_msg=name)
    given = {name: values[name] for name in ("logits", "rows")}
    for names in (["masks"], ["rows", "masks"], ["masks", "rows"]):  # what is given comes back
        wanted = engine.native.run_between(given, names)
        for name, got in zip(names, wanted, strict=True):
            np.testing.assert_allclose(got, values[name], rtol=1e-6)
    given = {"masks": values["masks"], "rows": values["rows"]}
    (masks,) = engine.native.run_between(given, ["masks"])
    assert np.array_equal(masks, values["masks"])


def test_proposals_may_be_fewer_for_calibration() -> None:
    native = NativeInterpreter(engine_of(mask_rcnn()), picture())
    values = dict(native.values(["masks"], rois=20))
    assert len(values["boxes"]) == len(values["h"]) == 20
    assert len(values["rows"]) == len(values["h2"]) == len(values["masks"]) > 0


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no kernels of bfloat16")
@pytest.mark.parametrize("background", [True, False])
def test_bfloat16(background: bool) -> None:
    check_precision(mask_rcnn(background), precision="bf16")


@pytest.mark.skipif(not has_int8(), reason="this CPU has no kernels of int8")
def test_int8() -> None:
    graph = mask_rcnn()
    values = dict(NativeInterpreter(engine_of(graph, hoist=False), picture()).values(["masks"]))
    thresholds = {
        operation.name: float(np.abs(values[operation.name]).max())
        for operation, _ in graph.of_kind(Conv)
        if operation.name in values
    }
    check_precision(graph, precision="int8", clipping_thresholds=thresholds)


def check_precision(graph: Graph, **options: Any) -> None:
    """Masks of the same rows are nearly those of float32, for any number of threads."""
    exact, engine = engine_of(graph), engine_of(graph, **options)
    rows, expected = exact.run_with_masks(picture())
    given = {"rows": rows, IMAGE: picture().astype(np.float32)}
    engine.native.plan(*SIZE)
    (masks,) = engine.native.run_between(given, ["masks"])
    assert np.abs(masks - expected).mean() < 0.02 and np.abs(masks - expected).max() < 0.3
    rows, masks = engine.run_with_masks(picture())
    assert masks.shape == (len(rows), 12, 12) and len(rows) > 20
    again, same = engine_of(graph, **options, threads=3).run_with_masks(picture())
    assert np.array_equal(rows, again) and np.array_equal(masks, same)


# ------------------------------------------------------------------------- what is refused


def whole(**options: Any) -> tuple[NativeEngine, dict[str, F32]]:
    engine = engine_of(mask_rcnn(**options))
    return engine.native, dict(NativeInterpreter(engine, picture()).values(["masks"]))


ROI_ALIGN = {
    "kind": "roi_align",
    "scales": [0.25],
    "size": 6,
    "sampling_ratio": 2,
    "sampling": "aligned",
    "step": 1,
    "canonical_size": 224.0,
    "canonical_level": 4,
    "first_level": 2,
    "activation": "none",
    "type": "f32",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block": 0}, "block is 0, expected 1..64"),
        ({"block": 3}, "the channels are not divisible by 9"),
        ({"step": 3}, "unknown field 'step'"),
        ({"inputs": ["boxes"]}, "channels of a feature map or RoIs become cells"),
        ({"inputs": []}, "has 0 inputs, expected 1"),
        ({"kind": "masks"}, "background is missing or has the wrong type"),
        ({"kind": "masks", "background": True}, "has 1 inputs, expected 2"),
        (
            {"kind": "masks", "background": True, "inputs": ["h2", "boxes"]},
            "an input is missing, or of the wrong domain",
        ),
        (
            {"kind": "masks", "background": True, "inputs": ["h", "rows"]},
            "there are not as many RoIs as rows",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    native, _ = whole()
    fields = {"name": "bad", "kind": "depth_to_space", "inputs": ["h2"], "block": 2, **changes}
    if fields["kind"] == "masks":
        del fields["block"]
    with pytest.raises(ValueError) as caught:
        native.add(fields)
    assert str(caught.value) == f"bad: {said}"


def test_masks_of_the_rois_of_other_boxes_are_refused() -> None:
    native, _ = whole(rows=90)  # as many as boxes
    native.add({"name": "bad", "kind": "masks", "inputs": ["h", "rows"], "background": True})
    with pytest.raises(ValueError, match="bad: reads RoIs of other boxes"):
        native.plan(*SIZE)


def set_label(rows: F32, label: float) -> None:
    rows[3, 1] = label


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: set_label(rows, 4), "masks: no channel is that of label 4"),
        (lambda rows: set_label(rows, 0), "rows: a row has no label"),
        (lambda rows: set_label(rows, 1.5), "rows: a row has no label"),
        (lambda rows: set_label(rows, np.nan), "rows: a row has no label"),
        (lambda rows: set_label(rows, 1e30), "rows: a row has no label"),
    ],
)
def test_rows_that_are_given_are_checked(change: Callable[[F32], None], said: str) -> None:
    native, values = whole()
    rows = values["rows"].copy()
    change(rows)
    with pytest.raises(ValueError, match=said):
        native.run_between({"rows": rows, "logits": values["logits"]}, ["masks"])
    with pytest.raises(ValueError, match="RoIs are given, expected"):
        native.run_between({"rows": rows[:3] * 0 + 1, "logits": values["logits"]}, ["masks"])
    with pytest.raises(ValueError, match="rows: the array has the wrong shape"):
        native.run_between({"rows": rows[:, :6].copy()}, ["r2"])


def test_boxes_that_are_no_numbers_do_no_harm() -> None:
    native, values = whole()
    for value in (np.nan, np.inf, -np.inf, 1e30):
        rows = values["rows"].copy()
        rows[::2, 3:] = value
        (r2,) = native.run_between({"rows": rows, "m": values["m"][0]}, ["r2"])
        np.testing.assert_allclose(r2[1::2], values["r2"][1::2], rtol=1e-4, atol=1e-5)
