"""The core executes any graph: hand-made ones, without a detector, and refuses what does not fit.

An operation is added as the dictionary that `engine.lower` makes. What is wrong with one is a
ValueError of one line that names the operation, and the graph is as before.
"""

from __future__ import annotations

import gc
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet._native import NativeEngine, available_isas, has_bfloat16, has_int8

F32 = NDArray[np.float32]
Fields = dict[str, Any]
ISAS = available_isas()


def engine(
    isa: str = "", threads: int = 1, precision: str = "f32", size: tuple[int, int] = (20, 24)
) -> NativeEngine:
    return NativeEngine(isa, threads, False, precision, size)


def normalise(name: str = "n", **changes: Any) -> Fields:
    fields = {"name": name, "kind": "normalise", "inputs": ["image"], "type": "f32"}
    return {**fields, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **changes}


def conv(name: str, inputs: list[str], ins: int, out: int, **changes: Any) -> Fields:
    return {
        "name": name,
        "kind": "conv",
        "inputs": inputs,
        "in_channels": ins,
        "out_channels": out,
        "kernel": (3, 3),
        "padding": (1, 1, 1, 1),
        "stride": 1,
        "dilation": 1,
        "groups": 1,
        "activation": "none",
        "type": "f32",
        **changes,
    }


def pool(name: str, inputs: list[str], **changes: Any) -> Fields:
    fields = {"name": name, "kind": "max_pool", "inputs": inputs, "kernel": 3, "stride": 2}
    padding = {"padding": (1, 1, 1, 1), "type": "f32"}
    return {**fields, **padding, **changes}


def channels(name: str, inputs: list[str], first: int, count: int) -> Fields:
    return {"name": name, "kind": "slice", "inputs": inputs, "first": first, "channels": count}


def proposals(name: str, inputs: list[str], **changes: Any) -> Fields:
    return {
        "name": name,
        "kind": "proposals",
        "inputs": inputs,
        "cell_anchors": [[(-8.0, -8.0, 8.0, 8.0)]],
        "strides": [2],
        "box_weights": (1.0, 1.0, 1.0, 1.0),
        "delta_clamp": 4.0,
        "pre_nms": 90,
        "count": 40,
        "nms_threshold": 0.6,
        "remove_empty": False,
        "min_size": 0.0,
        "inclusive": False,
        "score_threshold": 0.0,
        **changes,
    }


def roi_align(name: str, inputs: list[str], **changes: Any) -> Fields:
    return {
        "name": name,
        "kind": "roi_align",
        "inputs": inputs,
        "scales": [0.5],
        "size": 4,
        "sampling_ratio": 2,
        "sampling": "aligned",
        "step": 1,
        "canonical_size": 224.0,
        "canonical_level": 4,
        "first_level": 2,
        "activation": "none",
        "type": "f32",
        **changes,
    }


def detections(name: str, inputs: list[str], **changes: Any) -> Fields:
    return {
        "name": name,
        "kind": "detections",
        "inputs": inputs,
        "num_classes": 3,
        "background": "first",
        "background_deltas": False,
        "box_weights": (1.0, 1.0, 1.0, 1.0),
        "delta_clamp": 4.0,
        "score_threshold": 0.0,
        "nms_threshold": 0.5,
        "max_detections": 50,
        "min_size": 0.0,
        **changes,
    }


def mean(name: str, inputs: list[str]) -> Fields:
    return {"name": name, "kind": "mean", "inputs": inputs}


def group_norm(name: str, inputs: list[str]) -> Fields:
    fields = {"name": name, "kind": "group_norm", "inputs": inputs, "groups": 2}
    return {**fields, "eps": 1e-5, "activation": "none"}


def weights(fields: Fields, seed: int = 0, sparsity: float = 0.5) -> tuple[F32, F32]:
    """Small integers, so that sums are exact."""
    rng = np.random.default_rng(seed)
    shape = (fields["out_channels"], fields["in_channels"], *fields["kernel"])
    weight = rng.integers(-3, 4, shape) * (rng.random(shape) >= sparsity)
    return weight.astype(np.float32), rng.integers(-9, 10, shape[0]).astype(np.float32)


def add(native: NativeEngine, fields: Fields, seed: int = 0, **options: Any) -> None:
    """With random weights if it is a convolution; a group norm is one of six channels."""
    if fields["kind"] == "conv":
        weight, bias = weights(fields, seed)
        options = {"weight": weight, "bias": bias, **options}
    if fields["kind"] == "group_norm":
        options = {"weight": np.ones(6, np.float32), "bias": np.zeros(6, np.float32), **options}
    native.add(fields, **options)


def detector(native: NativeEngine, boxes: str = "boxes", count: int = 40) -> None:
    """An RPN on a map m of 6 channels at half size, then RoIs and rows."""
    add(native, normalise())
    add(native, conv("m", ["n"], 3, 6, stride=2, activation="relu"))
    add(native, conv("l", ["m"], 6, 1))
    add(native, conv("d", ["m"], 6, 4, kernel=(1, 1), padding=(0, 0, 0, 0)))
    add(native, proposals(boxes, ["l", "d", "image"], count=count))
    add(native, roi_align("r", ["m", boxes]))
    add(native, conv("h", ["r"], 6, 5, activation="relu"))
    add(native, mean("p", ["h"]))
    add(native, conv("c", ["p"], 5, 4, kernel=(1, 1), padding=(0, 0, 0, 0)))
    add(native, conv("b", ["p"], 5, 12, kernel=(1, 1), padding=(0, 0, 0, 0)))


def whole_detector(**options: Any) -> NativeEngine:
    native = engine(**options)
    detector(native)
    add(native, detections("rows", ["c", "b", "boxes", "image"]))
    return native


def image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# ------------------------------------------------------------------------ numpy's operations


def by_numpy(fields: Fields, weight: F32, bias: F32, x: F32, residual: F32 | None = None) -> F32:
    """A convolution of maps [B, C, H, W], tap by tap."""
    top, left, bottom, right = fields["padding"]
    (kh, kw), stride, step = fields["kernel"], fields["stride"], fields["dilation"]
    x = x[:, :, : x.shape[2] + min(bottom, 0), : x.shape[3] + min(right, 0)]
    whole = np.pad(x, ((0, 0), (0, 0), (top, max(bottom, 0)), (left, max(right, 0))))
    height = (whole.shape[2] - (kh - 1) * step - 1) // stride + 1
    width = (whole.shape[3] - (kw - 1) * step - 1) // stride + 1
    last = (height - 1) * stride + 1, (width - 1) * stride + 1
    out = np.zeros((len(x), len(weight), height, width)) + bias[:, None, None]
    for i, j in itertools.product(range(kh), range(kw)):
        window = whole[:, :, i * step :, j * step :][:, :, : last[0] : stride, : last[1] : stride]
        out += np.einsum("oc,bchw->bohw", weight[:, :, i, j], window)
    out = out if residual is None else out + residual
    return (np.maximum(out, 0) if fields["activation"] == "relu" else out).astype(np.float32)


def pooled(x: F32) -> F32:
    """3x3 max pooling of stride 2 with one row and column of zeros on each side."""
    whole = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = (x.shape[2] - 1) // 2 + 1, (x.shape[3] - 1) // 2 + 1
    taps = [
        whole[:, :, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        for i, j in itertools.product(range(3), range(3))
    ]
    return np.asarray(np.max(taps, axis=0))


# --------------------------------------------------------------------- a graph of no detector

FIRST = conv("first", ["n"], 3, 10, stride=2, activation="relu")
SECOND = conv("second", ["part"], 5, 9, kernel=(1, 1), padding=(0, 0, 0, 0), activation="relu")
THIRD = conv("third", ["pool", "pool"], 9, 9, activation="relu")


def three_convolutions(isa: str, threads: int, algorithm: str) -> NativeEngine:
    """Three convolutions, a slice and a pooling; the last adds its own input."""
    native = engine(isa, threads)
    add(native, normalise(mean=(3.0, 2.0, 1.0), std=(1.0, 2.0, 4.0)))
    add(native, FIRST, 1, algorithm=algorithm)
    add(native, channels("part", ["first"], 3, 5))
    add(native, SECOND, 2, algorithm=algorithm)
    add(native, pool("pool", ["second"]))
    add(native, THIRD, 3, algorithm=algorithm)
    return native


def expected_of_three(pixels: NDArray[np.uint8]) -> dict[str, F32]:
    x = ((pixels - np.array([3.0, 2, 1])) / np.array([1.0, 2, 4])).astype(np.float32)
    values = {"n": x.transpose(2, 0, 1)[None]}
    values["first"] = by_numpy(FIRST, *weights(FIRST, 1), values["n"])
    values["part"] = values["first"][:, 3:8]
    values["second"] = by_numpy(SECOND, *weights(SECOND, 2), values["part"])
    values["pool"] = pooled(values["second"])
    values["third"] = by_numpy(THIRD, *weights(THIRD, 3), values["pool"], values["pool"])
    return values


@pytest.mark.parametrize("algorithm", ["sparse", "dense"])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("isa", ISAS)
def test_a_graph_without_a_detector(isa: str, threads: int, algorithm: str) -> None:
    native = three_convolutions(isa, threads, algorithm)
    sizes = [(20, 24), (5, 5), (16, 17), (33, 70), (4, 129), (20, 24)]
    for size in sizes:
        native.plan(*size)
        pixels = image(*size)
        expected = expected_of_three(pixels)
        given = {"image": pixels.astype(np.float32)}
        for wanted in (["third"], list(expected)):  # also what lies between, before it dies
            for name, got in zip(wanted, native.run_between(given, wanted), strict=True):
                assert got.shape == expected[name].shape[1:]
                # Pixels are fractions here: thirds of sums may round.
                np.testing.assert_allclose(got, expected[name][0], rtol=2e-6, atol=1e-3)
        part = expected["part"][0]
        (got,) = native.run_between({"part": part}, ["pool"])
        np.testing.assert_allclose(got, expected["pool"][0], rtol=2e-6, atol=1e-3)
    with pytest.raises(ValueError, match="the graph does not end in detections"):
        native.run(image(20, 24))


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel": (1, 5), "padding": (0, 2, 0, 2)},
    {"kernel": (5, 1), "padding": (2, 0, 2, 0)},
    {"kernel": (2, 4), "padding": (1, 0, 0, 3), "stride": 2},
    {"kernel": (3, 3), "padding": (2, 2, 2, 2), "dilation": 2},
    {"kernel": (3, 2), "padding": (0, 3, 3, 1), "dilation": 3, "activation": "relu"},
    {"kernel": (1, 1), "padding": (0, 0, -1, -2), "stride": 2},
    {"kernel": (7, 7), "padding": (3, 6, 2, 1), "stride": 2},
]
IN_THE_PADDING: list[dict[str, Any]] = [
    {"kernel": (2, 4), "padding": (1, 0, 2, 3), "stride": 2},
    {"kernel": (3, 2), "padding": (0, 5, 3, 1), "dilation": 3, "activation": "relu"},
    {"kernel": (2, 2), "padding": (2, 0, 0, 0)},
]
"""Some windows read zeros only: maps have them."""


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("changes", GEOMETRIES + IN_THE_PADDING, ids=str)
def test_filters_of_any_shape(changes: dict[str, Any], isa: str) -> None:
    native, fields = engine(isa, 2), conv("x", ["n"], 3, 7, **changes)
    add(native, normalise())
    add(native, fields)
    for size in ((20, 24), (11, 16), (17, 47)):
        native.plan(*size)
        pixels = image(*size)
        (got,) = native.run_between({"image": pixels.astype(np.float32)}, ["x"])
        x = pixels.transpose(2, 0, 1)[None].astype(np.float32)
        assert np.array_equal(got, by_numpy(fields, *weights(fields), x)[0])
    rng = np.random.default_rng(1)  # on RoIs, which only skip the taps in the padding
    native, fields = engine(isa, 2), conv("x", ["big"], 6, 7, **changes)
    detector(native)
    add(native, roi_align("big", ["m", "boxes"], size=15))
    if changes in IN_THE_PADDING:
        said = refused(native, fields)
        assert said == "x: on RoIs, no window may lie in the padding as a whole"
        return
    add(native, fields)
    x = rng.integers(-4, 5, (37, 6, 15, 15)).astype(np.float32)
    got = native.run_operation("x", [x])
    assert np.array_equal(got, by_numpy(fields, *weights(fields), x))


# ------------------------------------------------------------------------ loops over RoIs


def two_loops(native: NativeEngine) -> None:
    """Two sets of proposals, each with RoIs and rows of its own; the second one wins."""
    detector(native)
    add(native, detections("rows", ["c", "b", "boxes", "image"]))
    add(native, conv("l2", ["m"], 6, 1), 11)
    many = {"count": 170, "pre_nms": 170, "nms_threshold": 1.0}
    add(native, proposals("boxes2", ["l2", "d", "image"], **many))
    add(native, roi_align("r2", ["m", "boxes2"], size=3, sampling_ratio=0))
    add(native, conv("h2", ["r2"], 6, 5), 12)
    add(native, mean("p2", ["h2"]))
    add(native, conv("c2", ["p2"], 5, 4, kernel=(1, 1), padding=(0, 0, 0, 0)), 13)
    add(native, conv("b2", ["p2"], 5, 12, kernel=(1, 1), padding=(0, 0, 0, 0)), 14)
    add(native, detections("rows2", ["c2", "b2", "boxes2", "image"]))


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("isa", ISAS)
def test_two_loops_over_rois_of_different_boxes(isa: str, threads: int) -> None:
    native, alone = engine(isa, threads), whole_detector(isa=isa, threads=threads)
    two_loops(native)
    for size in ((20, 24), (33, 50), (20, 24)):
        given = {"image": image(*size).astype(np.float32)}
        for each in (native, alone):
            each.plan(*size)
        names = ["boxes", "r", "h", "c", "rows"]
        first = native.run_between(given, names)
        for got, expected in zip(first, alone.run_between(given, names), strict=True):
            assert np.array_equal(got, expected) and len(got)
        boxes, boxes2, m, h2 = native.run_between(given, ["boxes", "boxes2", "m", "h2"])
        assert len(boxes) != len(boxes2) and len(boxes2) == len(h2) > 100
        # The second loop by itself, and from boxes that are given.
        fields = conv("h2", ["r2"], 6, 5)
        (r2,) = native.run_between({"m": m, "boxes2": boxes2}, ["r2"])
        np.testing.assert_allclose(
            h2, by_numpy(fields, *weights(fields, 12), r2), rtol=1e-5, atol=1e-2
        )
        (rows2,) = native.run_between(given, ["rows2"])
        assert len(rows2) and np.array_equal(native.run(image(*size)), rows2)
        # RoIs that are given say how many there are in their own loop alone.
        few, c = native.run_between({**given, "h2": h2[:3]}, ["p2", "c"])
        assert np.array_equal(c, first[3]) and len(few) == 3
        np.testing.assert_allclose(few[:, :, 0, 0], h2[:3].mean(axis=(2, 3)), rtol=1e-5, atol=1e-3)


def test_a_loop_that_reads_another_loop_is_refused() -> None:
    native = engine()
    two_loops(native)
    add(native, roi_align("r3", ["m", "boxes"]))
    add(native, conv("mixed", ["h", "r3"], 5, 6))
    with pytest.raises(ValueError, match=r"^mixed: reads RoIs that an earlier loop over RoIs made"):
        native.plan(20, 24)
    native = engine()
    two_loops(native)
    add(native, detections("mixed", ["c2", "b2", "boxes", "image"]))
    with pytest.raises(ValueError, match=r"^mixed: reads RoIs of other boxes$"):
        native.run(image(20, 24))


def test_boxes_of_rows_are_boxes() -> None:
    """As a second stage reads the first one's detections."""
    native = whole_detector()
    add(native, roi_align("again", ["m", "rows"]))
    native.plan(20, 24)
    given = {"image": image(20, 24).astype(np.float32)}
    rows, again, m = native.run_between(given, ["rows", "again", "m"])
    assert 0 < len(rows) == len(again) <= 50
    boxes = np.ascontiguousarray(rows[:, 3:] * np.array([24, 20, 24, 20], np.float32))
    (expected,) = native.run_between({"m": m, "boxes": boxes}, ["r"])
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-2)


# ------------------------------------------------------------------------- shared weights


@pytest.mark.parametrize("algorithm", ["sparse", "dense"])
@pytest.mark.parametrize("isa", ISAS)
def test_shared_weights_give_the_same_as_separate_ones(isa: str, algorithm: str) -> None:
    """As a head that runs on several levels."""
    separate, shared = engine(isa, 2), engine(isa, 2)
    head = conv("head", ["m"], 6, 6, activation="relu")
    for native in (separate, shared):
        add(native, normalise())
        add(native, conv("m", ["n"], 3, 6, stride=2, activation="relu"))
        add(native, conv("half", ["m"], 6, 6, stride=2, activation="relu"))
        add(native, head, 5, algorithm=algorithm)
        before = native.weight_bytes
        other = {**head, "name": "other", "inputs": ["half"]}
        if native is separate:
            add(native, other, 5, algorithm=algorithm)
        else:
            native.add(other, weights_of="head")
        add(native, {**head, "name": "third", "inputs": ["other"]}, 6, algorithm=algorithm)
    assert shared.weight_bytes - before >= 0 and shared.nonzero_weights == separate.nonzero_weights
    for size in ((20, 24), (33, 47)):
        results = []
        for native in (separate, shared):
            native.plan(*size)
            given = {"image": image(*size).astype(np.float32)}
            results.append(native.run_between(given, ["head", "other", "third"]))
        for a, b in zip(*results, strict=True):
            assert np.array_equal(a, b) and np.abs(a).max() > 1
    assert [row[:2] for row in shared.convolutions] == [row[:2] for row in separate.convolutions]


def test_weights_of_another_problem_are_packed_again() -> None:
    native, head = engine(), conv("head", ["m"], 6, 6)
    add(native, normalise())
    add(native, conv("m", ["n"], 3, 6))
    add(native, head, 5)
    strided = {**head, "name": "other", "stride": 2}
    with pytest.raises(ValueError, match=r"^other: a convolution has no weights of its own$"):
        native.add(strided, weights_of="head")
    add(native, strided, 5, weights_of="head")
    native.plan(20, 24)
    given = {"image": image(20, 24).astype(np.float32)}
    head_, other = native.run_between(given, ["head", "other"])
    assert np.array_equal(head_[:, ::2, ::2], other)
    with pytest.raises(ValueError, match=r"^x: no operation 'nobody'$"):
        native.add({**head, "name": "x"}, weights_of="nobody")


@pytest.mark.parametrize("sizes", [(8, 3), (3, 8)])
@pytest.mark.parametrize("isa", ISAS)
def test_shared_weights_on_rois_of_two_sizes(isa: str, sizes: tuple[int, int]) -> None:
    """An algorithm may be chosen for one size, and serve the other."""
    first, second = sizes
    native = engine(isa)
    detector(native)
    add(native, roi_align("one", ["m", "boxes"], size=first))
    add(native, roi_align("two", ["m", "boxes"], size=second))
    fields = conv("x", ["one"], 6, 40)
    weight, bias = weights(fields, 3, 0.0)
    native.add(fields, weight=weight, bias=bias)
    native.add({**fields, "name": "y", "inputs": ["two"]}, weight, bias, weights_of="x")
    native.plan(20, 24)
    given = {"image": image(20, 24).astype(np.float32)}
    for source, name in (("one", "x"), ("two", "y")):
        rois, got = native.run_between(given, [source, name])
        expected = by_numpy(fields, weight, bias, rois)
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


# --------------------------------------------------------------------------- what is refused

GOOD: dict[str, Fields] = {
    "normalise": normalise("x"),
    "conv": conv("x", ["m"], 6, 4),
    "max_pool": pool("x", ["m"]),
    "group_norm": group_norm("x", ["m"]),
    "activate": {"name": "x", "kind": "activate", "inputs": ["m"], "activation": "hardswish"},
    "mean": mean("x", ["h"]),
    "slice": channels("x", ["m"], 2, 3),
    "proposals": proposals("x", ["l", "d", "image"]),
    "roi_align": roi_align("x", ["m", "boxes"]),
    "detections": detections("x", ["c", "b", "boxes", "image"]),
}
kinds = pytest.mark.parametrize("kind", GOOD)


def refused(native: NativeEngine, fields: Any, **options: Any) -> str:
    """The one line of an operation that is refused; the graph is as before."""
    before = native.convolutions
    with pytest.raises(ValueError) as error:
        add(native, fields, **options) if "weight" not in options else native.add(fields, **options)
    message = str(error.value)
    assert message and "\n" not in message
    assert native.convolutions == before
    return message


def started() -> NativeEngine:
    native = engine()
    detector(native)
    return native


@kinds
def test_a_good_operation_of_each_kind_is_taken(kind: str) -> None:
    native = started()
    add(native, GOOD[kind])
    native.plan(20, 24)


@kinds
def test_a_field_that_is_unknown_or_missing_is_named(kind: str) -> None:
    native = started()
    message = refused(native, {**GOOD[kind], "extra": 1})
    assert message == "x: unknown field 'extra'"
    for field in GOOD[kind].keys() - {"name"}:
        less = {key: value for key, value in GOOD[kind].items() if key != field}
        weight = weights(GOOD["conv"])[0] if kind == "conv" else None
        assert refused(native, less, weight=weight).startswith(f"x: {field} is missing")
    add(native, GOOD[kind])  # nothing of it was kept


@kinds
def test_a_field_of_a_wrong_type_is_named(kind: str) -> None:
    native = started()
    weight = weights(GOOD["conv"])[0] if kind == "conv" else None
    for field, value in GOOD[kind].items():
        wrong: list[Any] = [object(), {1: 2}, [[["?"]]], b"\xff"]
        wrong += [] if value is None else [None]
        wrong += [] if isinstance(value, str) else ["?"]
        wrong += ["?"] if field in ("background", "activation", "sampling", "type") else []
        wrong += [1.5, 2**40, -(2**70)] if isinstance(value, int) else []
        wrong += [value[:-1], [*value, value[0]]] if isinstance(value, tuple) else []
        for bad in wrong:
            message = refused(native, {**GOOD[kind], field: bad}, weight=weight)
            named = message.startswith(("x: ", "name is missing")) and field in message
            assert named or "a box has four numbers" in message, (field, bad, message)


def test_no_dictionary_at_all() -> None:
    native: Any = engine()
    not_one: list[Any] = [None, [], "conv", 3]
    for wrong in not_one:
        with pytest.raises(TypeError):
            native.add(wrong)
    assert refused(native, {"kind": "conv"}, weight=None) == "name is missing or has the wrong type"
    assert refused(native, {**normalise(), 5: 6}) == "n: unknown field ''"
    assert refused(native, {**normalise("x"), "kind": "fft"}) == "x: unknown kind 'fft'"


NAMES: list[tuple[str, str]] = [
    ("m", "there are two operations 'm'"),
    ("boxes", "there are two operations 'boxes'"),
    ("image", "an operation cannot be named 'image'"),
    ("", "an operation cannot be named ''"),
]


@pytest.mark.parametrize(("name", "said"), NAMES)
def test_names(name: str, said: str) -> None:
    for fields in (conv(name, ["m"], 6, 4), mean(name, ["h"])):
        assert refused(started(), fields) == f"{name}: {said}"


@kinds
def test_inputs_that_no_earlier_operation_makes(kind: str) -> None:
    native = started()
    for place in range(len(GOOD[kind]["inputs"])):
        for unknown in ("nobody", "x", ""):
            inputs = list(GOOD[kind]["inputs"])
            inputs[place] = unknown
            said = refused(native, {**GOOD[kind], "inputs": inputs})
            assert said == f"x: no operation '{unknown}'"


@kinds
def test_every_wrong_input_and_number_of_inputs(kind: str) -> None:
    """One input exchanged for a value of another domain or shape, one too few, one too many."""
    good = GOOD[kind]["inputs"]
    values = ["image", "n", "m", "l", "d", "boxes", "r", "h", "p", "c", "b"]
    for place, other in itertools.product(range(len(good)), values):
        inputs = [*good[:place], other, *good[place + 1 :]]
        fits = {
            "slice": other in ("m", "r", "h", "p"),
            "mean": other in ("n", "m", "l", "d", "r", "h", "p", "c", "b"),
            "activate": other in ("n", "m", "l", "d"),
            "max_pool": other in ("n", "m", "l", "d"),
            "conv": other in ("m", "r"),
            "roi_align": place == 0 and other in ("n", "m", "l", "d"),
        }
        if other == good[place] or fits.get(kind):
            continue
        if kind == "slice" and other in ("c", "b", "d"):
            continue
        assert refused(started(), {**GOOD[kind], "inputs": inputs}).startswith("x: ")
    native = started()
    for inputs in ([], good[:-1], [*good, good[-1]], [*good, "image"], [*good, *good, *good]):
        if kind == "conv" and inputs == ["m", "m"]:
            continue  # refused below: another number of channels
        assert refused(native, {**GOOD[kind], "inputs": inputs}).startswith("x: ")
    add(native, GOOD[kind])


WRONG: list[Fields] = [
    conv("x", ["m"], 5, 4),
    conv("x", ["m", "m"], 6, 4),
    conv("x", ["m", "d"], 6, 4, kernel=(1, 1)),
    conv("x", ["r", "m"], 6, 6),
    conv("x", ["m"], 6, 4, stride=0),
    conv("x", ["m"], 6, 4, stride=3),
    conv("x", ["m"], 6, 4, dilation=0),
    conv("x", ["m"], 6, 4, dilation=65),
    conv("x", ["m"], 6, 4, kernel=(0, 3)),
    conv("x", ["m"], 6, 4, kernel=(3, 65)),
    conv("x", ["m"], 6, 4, padding=(65, 0, 0, 0)),
    conv("x", ["m"], 6, 4, padding=(0, 0, 0, -65)),
    conv("x", ["m"], 6, 0),
    conv("x", ["m"], 0, 4),
    conv("x", ["m"], 6, -1),
    conv("x", ["m"], 6, 4, activation="tanh"),
    conv("x", ["m"], 6, 4, type="f64"),
    pool("x", ["m"], stride=0),
    pool("x", ["m"], padding=(1, 1, 1, 99)),
    pool("x", ["m"], type="bf16"),
    pool("x", ["r"]),
    channels("x", ["m"], -1, 3),
    channels("x", ["m"], 4, 3),
    channels("x", ["m"], 0, 0),
    channels("x", ["m"], 2**24, 1),
    channels("x", ["image"], 0, 1),
    channels("x", ["boxes"], 0, 1),
    proposals("x", ["l", "d", "image"], strides=[2, 4]),
    proposals("x", ["l", "d", "image"], strides=[]),
    proposals("x", ["l", "d", "image"], cell_anchors=[[]]),
    proposals("x", ["l", "d", "image"], cell_anchors=[[(0.0, 0.0, 1.0)]]),
    proposals("x", ["l", "d", "image"], box_weights=(1.0,)),
    proposals("x", ["l", "d", "image"], count=0),
    proposals("x", ["l", "d", "image"], pre_nms=-3),
    proposals("x", ["d", "l", "image"]),
    roi_align("x", ["m", "boxes"], scales=[]),
    roi_align("x", ["m", "boxes"], scales=[0.5, 0.25]),
    roi_align("x", ["m", "l", "boxes"], scales=[0.5, 0.25]),
    roi_align("x", ["m", "boxes"], size=0),
    roi_align("x", ["m", "boxes"], size=257),
    roi_align("x", ["m", "boxes"], step=0),
    roi_align("x", ["m", "boxes"], sampling_ratio=-1),
    roi_align("x", ["m", "boxes"], sampling="nearest"),
    roi_align("x", ["m", "boxes"], type="bf16"),
    detections("x", ["c", "b", "boxes", "image"], num_classes=4),
    detections("x", ["c", "b", "boxes", "image"], num_classes=0),
    detections("x", ["c", "b", "boxes", "image"], background_deltas=True),
    detections("x", ["c", "b", "boxes", "image"], background="middle"),
    detections("x", ["c", "b", "boxes", "image"], max_detections=0),
    detections("x", ["b", "c", "boxes", "image"]),
    detections("x", ["r", "h", "boxes", "image"]),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_shapes_and_sizes_that_do_not_fit(number: int) -> None:
    fields = WRONG[number]
    options: dict[str, Any] = {}
    if min(fields.get("kernel", (1, 1)) if fields["kind"] == "conv" else (1,)) < 1 or (
        fields.get("out_channels", 1) < 1 or fields.get("in_channels", 1) < 1
    ):
        options["weight"] = np.ones((1, 1, 1, 1), np.float32)
    assert refused(started(), fields, **options).startswith("x: ")


def test_weights_that_do_not_fit() -> None:
    fields, native = GOOD["conv"], started()
    weight, bias = weights(fields)
    wrong: list[Any] = [
        None,
        weight[:3],
        weight[:, :5],
        weight[:, :, :2],
        weight[0],
        weight.astype(np.float64),
        weight.astype(np.int32),
        weight.transpose(0, 1, 3, 2),
        weight.tolist(),
        "weights",
        (1, 2),
        (bias, bias),
        (np.zeros(3, np.uint8), bias, bias),
    ]
    for value in wrong:
        message = refused(native, fields, weight=value, bias=bias)
        assert message.startswith("x: "), (value, message)
    for other in (bias[:3], np.zeros(0, np.float32)):
        assert refused(native, fields, weight=weight, bias=other) == "x: bias has the wrong shape"
    assert "unknown algorithm 'fft'" in refused(native, fields, weight=weight, algorithm="fft")
    assert "cannot run" in refused(native, fields, weight=weight, algorithm="winograd")
    assert refused(native, GOOD["mean"], weight=weight) == "x: has no weights"
    biased = refused(native, GOOD["roi_align"], weight=None, bias=bias)
    assert biased == "x: bias has the wrong shape"
    native.add(fields, weight=weight, bias=bias)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_types_that_an_instruction_set_lacks(isa: str, precision: str) -> None:
    has = {"bf16": has_bfloat16, "int8": has_int8}[precision](isa)
    native = engine(isa)
    add(native, normalise())
    add(native, conv("m", ["n"], 3, 6, activation="relu"))
    fields = normalise("x", type="bf16") if precision == "bf16" else pool("x", ["m"], type="int8")
    if has:
        add(native, fields)
        native.plan(20, 24)
    else:
        said = refused(native, fields)
        assert said == f"x: there are no kernels of that type with '{isa}'"


@pytest.mark.skipif(not has_int8(), reason="no int8 here")
def test_types_that_do_not_fit_each_other() -> None:
    native = engine()
    add(native, normalise())
    add(native, conv("m", ["n"], 3, 4, activation="relu"))
    add(native, pool("q", ["m"], type="int8", quantization=(9 / 255, 0)))
    add(native, pool("f", ["m"]))
    add(native, conv("l", ["f"], 4, 1))
    add(native, conv("d", ["f"], 4, 4))
    add(native, proposals("boxes", ["l", "d", "image"]))
    add(native, conv("s", ["q"], 4, 4, type="int8", quantization=(9 / 127, 128)))
    for fields in (
        conv("x", ["f", "q"], 4, 4),
        conv("x", ["q", "f"], 4, 4, type="int8", quantization=(9 / 255, 0)),
        pool("x", ["q"], type="f32"),
        roi_align("x", ["q", "boxes"], type="f32"),
        roi_align("x", ["q", "f", "boxes"], type="int8", scales=[0.5, 0.5]),
        roi_align("x", ["q", "s", "boxes"], type="int8", scales=[0.5, 0.5]),
        channels("x", ["q"], 1, 2),  # inside of four channels
        proposals("x", ["l", "q", "image"]),
    ):
        assert refused(native, fields).startswith("x: ")
    add(native, roi_align("x", ["q", "boxes"], type="int8"))
    native.plan(20, 24)


def test_network_inputs_that_are_too_small_or_too_large() -> None:
    native = whole_detector()
    for size in ((0, 0), (0, 24), (-1, 24), (24, 2**21), (2**30, 2**30)):
        with pytest.raises(ValueError, match=r"^network input \S+ is out of range$"):
            native.plan(*size)
        with pytest.raises(ValueError, match=r"^network input \S+ is out of range$"):
            engine(size=size)
    for pixels in (np.zeros((0, 0, 3), np.uint8), np.zeros((5, 0, 3), np.float32)):
        with pytest.raises(ValueError, match=r"^network input \S+ is out of range$"):
            native.run(pixels)
    narrow = engine()
    add(narrow, normalise())
    add(narrow, conv("x", ["n"], 3, 4, kernel=(9, 1), padding=(0, 0, 0, 0)))
    with pytest.raises(ValueError, match=r"^network input 8x24 is too small: x would be empty$"):
        narrow.plan(8, 24)
    narrow.plan(9, 1)  # and then it works
    (out,) = narrow.run_between({"image": np.ones((9, 1, 3), np.float32)}, ["x"])
    assert out.shape == (4, 1, 1)
    rois = started()
    add(rois, conv("x", ["r"], 6, 4, kernel=(5, 5), padding=(0, 0, 0, 0)))
    with pytest.raises(ValueError, match="x would be empty"):
        rois.plan(20, 24)


def test_a_graph_of_nothing() -> None:
    native = engine()
    with pytest.raises(ValueError, match="does not end in detections"):
        native.run(image(20, 24))
    native.plan(20, 24)
    assert native.convolutions == [] and native.run_between({}, []) == []
    with pytest.raises(ValueError, match="no operation 'x'"):
        native.run_between({}, ["x"])


def test_what_a_partial_run_refuses() -> None:
    native = whole_detector()
    with pytest.raises(ValueError, match=r"call plan\(\)"):
        native.run_between({}, ["m"])
    native.plan(20, 24)
    pixels = image(20, 24).astype(np.float32)
    m, boxes, h, c, b = native.run_between({"image": pixels}, ["m", "boxes", "h", "c", "b"])
    cases: list[tuple[dict[str, F32], list[str], str]] = [
        ({}, ["m"], "n: the image is needed, and not given"),
        ({"image": pixels[:9]}, ["m"], "image: the array has the wrong shape"),
        ({"m": m[:5]}, ["l"], "m: the array has the wrong shape"),
        ({"m": m[None]}, ["l"], "m: the array has the wrong shape"),
        ({"boxes": boxes[:, :3].copy()}, ["r"], "boxes: the array has the wrong shape"),
        ({"h": h[:, :, :2].copy()}, ["p"], "h: the array has the wrong shape"),
        ({"x": m}, ["l"], "no operation 'x'"),
        ({"m": m}, ["x"], "no operation 'x'"),
        ({"m": m}, ["l", "l"], "l cannot be wanted"),
        ({"image": pixels}, ["image"], "image cannot be wanted"),
        ({"rows": np.ones((2, 6), np.float32)}, ["rows"], "rows: the array has the wrong shape"),
        ({"rows": np.zeros((2, 7), np.float32)}, ["rows"], "rows: a row has no label"),
        # Numbers of boxes and RoIs that contradict each other.
        ({"c": c[:3], "b": b[:2], "boxes": boxes[:3]}, ["rows"], "b: 2 RoIs are given, expected 3"),
        ({"c": c, "b": b, "boxes": boxes[:3]}, ["rows"], f"c: {len(c)} RoIs are given, expected 3"),
        ({"c": c[:3], "b": b[:2]}, ["c", "b"], "b: 2 RoIs are given, expected 3"),
        ({"m": m, "boxes": boxes, "h": h[:2]}, ["r", "p"], "h: 2 RoIs are given, expected"),
        ({"image": pixels, "c": c[:1], "b": b[:1]}, ["rows"], "c: 1 RoIs are given, expected"),
    ]
    for given, wanted, said in cases:
        with pytest.raises(ValueError) as error:
            native.run_between(given, wanted)
        assert str(error.value).startswith(said) and "\n" not in str(error.value)
    none: dict[str, F32] = {"m": m, "boxes": boxes[:0]}
    for name, got in zip("rhcb", native.run_between(none, list("rhcb")), strict=True):
        assert got.shape[0] == 0 and got.ndim == 4, name
    (rows,) = native.run_between({"m": m, "boxes": boxes[:0]}, ["rows"])
    assert rows.shape == (0, 7)
    assert len(native.run(image(20, 24)))


def test_a_slice_run_by_itself_is_a_part_of_its_input() -> None:
    native = started()
    add(native, channels("x", ["m"], 2, 3))
    add(native, channels("y", ["h"], 1, 2))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 9, 7)).astype(np.float32)
    assert np.array_equal(native.run_operation("x", [x]), x[:, 2:5])
    x = rng.standard_normal((40, 5, 4, 4)).astype(np.float32)
    assert np.array_equal(native.run_operation("y", [x]), x[:, 1:3])


def test_operations_that_others_share_do_not_change() -> None:
    native = whole_detector()
    forks = [NativeEngine(native, 2)]
    said = "x: another executor shares the operations: they cannot change"
    for each in (native, *forks):
        assert refused(each, conv("x", ["m"], 6, 4)) == said
    expected = native.run(image(20, 24))
    assert np.array_equal(forks[0].run(image(20, 24)), expected)
    del forks, each
    gc.collect()  # the errors held them
    add(native, conv("x", ["m"], 6, 4))


@pytest.mark.parametrize("precision", ["", "f16", "F32"])
def test_unknown_precisions(precision: str) -> None:
    with pytest.raises(ValueError, match=f"unknown precision '{precision}'"):
        engine(precision=precision)
