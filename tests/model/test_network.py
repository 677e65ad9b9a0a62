"""Networks without detections: their tails, their files, and what a reader refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet import Detector, InputError, Model, load_model, save_model
from sparsedet.model import safetensors
from sparsedet.model.file import load_network
from sparsedet.model.graph import Conv, Graph, Normalise, Operation, Shape
from sparsedet.model.network import NetworkConfig
from sparsedet.model.tail import (
    TailStep,
    run_tail,
    steps_from_json,
    steps_to_json,
    tail_shapes,
)

F32 = NDArray[np.float32]


def network(**changes: Any) -> NetworkConfig:
    """One convolution, whose map [1, 4, 16, 20] becomes rows of 4 plus a constant."""
    graph = Graph(
        Shape("image", 3, 16, 20),
        (
            Operation("input", ("image",), Normalise((0.0,) * 3, (1.0,) * 3, rgb=True)),
            Operation("c", ("input",), Conv(4, (3, 3), ("c",), padding=(1, 1, 1, 1))),
        ),
    )
    steps = (
        TailStep("reshape", "flat", ("c",), (1, 4, 320)),
        TailStep("transpose", "rows", ("flat",), (0, 2, 1)),
        TailStep("constant", "four", (), (1, 1, 4)),
        TailStep("add", "sum", ("rows", "four")),
    )
    given: dict[str, Any] = {"name": "n", "graph": graph, "steps": steps}
    return NetworkConfig(**{**given, "outputs": (("y", "sum"), ("map", "c")), **changes})


def tensors() -> dict[str, F32]:
    numbers = np.random.default_rng(0)
    return {
        "c.weight": numbers.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "c.bias": np.arange(4, dtype=np.float32),
        "four": np.full((1, 1, 4), 4, np.float32),
    }


def saved(path: Path, **changes: Any) -> Path:
    save_model(path, network(**changes), tensors(), {"from": "test"}, dtype="float32")
    return path


def test_a_file_gives_the_same_network(tmp_path: Path) -> None:
    loaded = load_network(saved(tmp_path / "m.safetensors"))
    assert loaded.config == network() and loaded.provenance == {"from": "test"}
    assert all(np.array_equal(loaded.tensors[k], v) for k, v in tensors().items())
    again = tmp_path / "again.safetensors"
    save_model(again, loaded.config, loaded.tensors, loaded.provenance, dtype="float32")
    assert again.read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_a_call_gives_all_outputs_of_a_batch(tmp_path: Path) -> None:
    model = Model.load(saved(tmp_path / "m.safetensors"), threads=1)
    batch = np.random.default_rng(1).normal(size=(3, 3, 16, 20)).astype(np.float32)
    found = model(batch)
    assert {name: value.shape for name, value in found.items()} == {
        "y": (3, 320, 4),
        "map": (3, 4, 16, 20),
    }
    assert np.array_equal(found["y"], found["map"].reshape(3, 4, 320).transpose(0, 2, 1) + 4)
    red = np.zeros((1, 3, 16, 20), np.float32)
    red[0, 0] = 1  # the first channel that the network reads is its first weight's
    inside = model(red)["map"][0, :, 8, 8] - tensors()["c.bias"]
    assert np.allclose(inside, tensors()["c.weight"][:, 0].sum((1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 16, 20)),
        np.zeros((1, 3, 20, 16)),
        np.zeros((0, 3, 16, 20)),
        [1],
        np.zeros((1, 3, 16, 20), complex),
        np.zeros((1, 3, 16, 20), "U1"),
    ],
)
def test_a_call_refuses_other_arrays(tmp_path: Path, array: Any) -> None:
    model = Model.load(saved(tmp_path / "m.safetensors"), threads=1)
    with pytest.raises(InputError, match="the input is"):
        model(array)


def test_a_network_is_no_detector_and_a_detector_no_network(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"m.safetensors: is a network without detections"):
        load_model(path)
    with pytest.raises(InputError, match="is a network without detections"):
        Detector.load(path)
    from sparsedet.detector import embedded_model

    with pytest.raises(InputError, match="is a detector: load it with"):
        Model.load(embedded_model("r50half-c4"))
    with pytest.raises(InputError, match="n is no classifier"):
        Model.load(path).classify(np.zeros((9, 9, 3), np.uint8))


def classifier() -> NetworkConfig:
    graph = Graph(
        Shape("image", 3, 16, 16),
        (
            Operation("input", ("image",), Normalise((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), rgb=True)),
            Operation("c", ("input",), Conv(3, (16, 16), ("c",), linear=True)),
        ),
    )
    steps = (TailStep("reshape", "flat", ("c",), (1, 3)),)
    return NetworkConfig(
        name="n",
        graph=graph,
        steps=steps,
        outputs=(("y", "flat"),),
        resize="crop",
        class_names=("red", "green", "blue"),
    )


def test_a_classifier_names_the_likeliest_classes(tmp_path: Path) -> None:
    weight = np.zeros((3, 3, 256), np.float32)
    for channel in range(3):
        weight[channel, channel] = 1 / 2560
    given = {"c.weight": weight.reshape(3, -1), "c.bias": np.zeros(3, np.float32)}
    path = tmp_path / "m.safetensors"
    save_model(path, classifier(), given, {}, dtype="float32")
    model = Model.load(path)
    image = np.zeros((40, 30, 3), np.uint8)
    image[..., 2] = 200  # BGR: red
    found = model.classify(image)
    assert [name for name, _ in found] == ["red", "blue", "green"]
    logits = [(p - m) / s / 10 for p, m, s in ((200, 3, 6), (0, 1, 4), (0, 2, 5))]
    powers = np.exp(logits)
    assert np.allclose([score for _, score in found], powers / powers.sum(), atol=1e-4)
    assert len(model.classify(image, 1)) == 1
    for top in (0, 1.5):
        with pytest.raises(InputError, match="top is"):
            model.classify(image, top)  # type: ignore[arg-type]


# ------------------------------------------------------------------------ files that lie


def rewritten(path: Path, **metadata: Any) -> Path:
    """The file with other metadata."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= {key: json.dumps(value) for key, value in metadata.items()}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def step(*entries: Any) -> dict[str, Any]:
    return {"steps": [[*entry] for entry in entries]}


GOOD = steps_to_json(network().steps)


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        ([], "the tail is not a JSON object"),
        ({}, "the tail is not"),
        ({"steps": 1}, "the tail is no list of steps"),
        (step(["reshape", "a"]), "is not .kind, name, inputs, numbers."),
        (step(["reshape", "a", ["c"], [1.5]]), "numbers that are out of range"),
        (step(["reshape", "a", ["c"], [-1]]), "numbers that are out of range"),
        (step(["reshape", "a", ["c"], [True]]), "numbers that are out of range"),
        (step(["reshape", "a", ["c"], [1] * 33]), "numbers that are out of range"),
        (step(["reshape", "\x1b", ["c"], [1]]), "has no name"),
        (step(["eval", "a", ["c"], []]), "unknown kind 'eval'"),
        (step(["reshape", "a", ["c"], [2, 640]], *GOOD[1:]), "reads 'flat', which no earlier"),
        (step(["reshape", "a", ["c"], [7]]), "another number of elements"),
        (step(["reshape", "c", ["c"], [1280]]), "two values 'c'"),
        (step(["transpose", "a", ["c"], [0, 0, 1, 2]]), "an order that its axes do not fit"),
        (step(["slice", "a", ["c"], [1, 0, 9, 1]]), "reaches beyond its input"),
        (step(["slice", "a", ["c"], [9, 0, 1, 1]]), "has axis 9 of an array of 4 axes"),
        (step(["concat", "a", [], [0]]), "has no inputs"),
        (step(["matmul", "a", ["c", "c"], []]), "matrices that do not fit"),
        (step(["add", "a", ["c"], []]), "has 1 inputs"),
        (step(["mean", "a", ["c"], [1]]), "has no axes"),
        (step(["constant", "c.weight", [], [1]], *GOOD), "the name of a layer's tensor"),
        (step(["constant", "a", [], [2**20, 2**20]]), "1,099,511,627,776 elements"),
        (step(*GOOD[:3]), "output 'y' is 'sum', which no operation makes"),
        (step(*GOOD, ["constant", "more", [], [5]]), "tensor 'more' is missing"),
    ],
)
def test_tails_that_lie_are_refused(tmp_path: Path, tail: Any, text: str) -> None:
    path = rewritten(saved(tmp_path / "m.safetensors"), tail=tail)
    with pytest.raises(InputError, match=text) as error:
        load_network(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"outputs": []}, "no names of their own"),
        ({"outputs": [["y", "sum"], ["y", "c"]]}, "no names of their own"),
        ({"outputs": [["\n", "sum"]]}, "no printable name"),
        ({"resize": "letterbox"}, "expected 'stretch' or 'crop'"),
        ({"crop": 0.0}, "crop is 0.0, expected 0.1..1"),
        ({"class_names": ["a"]}, "class_names has 1 names"),
        ({"other": 1}, "configuration key 'other'"),
    ],
)
def test_configurations_that_lie_are_refused(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    path = saved(tmp_path / "m.safetensors")
    config = {**network().to_stored(), **changes}
    with pytest.raises(InputError, match=text):
        load_network(rewritten(path, config=config))


def test_a_huge_value_of_the_tail_is_refused_before_it_is_made() -> None:
    steps = [
        TailStep("constant", "a", (), (2**14, 1)),
        TailStep("constant", "b", (), (1, 2**14)),
        TailStep("add", "sum", ("a", "b")),
    ]
    with pytest.raises(InputError, match="value 'sum' would have 268,435,456 elements"):
        tail_shapes(steps, {})


def test_every_kind_of_step_makes_what_its_shape_says() -> None:
    x = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
    cases: list[tuple[str, tuple[int, ...], Any]] = [
        ("reshape", (6, 4), x.reshape(6, 4)),
        ("transpose", (2, 0, 1), x.transpose(2, 0, 1)),
        ("slice", (2, 1, 4, 2), x[:, :, 1:4:2]),
        ("softmax", (1,), np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        ("mean", (1, 0, 2), x.mean((0, 2), keepdims=True)),
        ("sum", (0, 1), x.sum(1)),
        ("max", (0, 1), x.max(1)),
        ("exp", (), np.exp(x)),
        ("log", (), np.log(x)),
        ("sqrt", (), np.sqrt(x)),
        ("negative", (), -x),
        ("absolute", (), np.abs(x)),
        ("tanh", (), np.tanh(x)),
        ("relu", (), np.maximum(x, 0)),
        ("sigmoid", (), 1 / (1 + np.exp(-x))),
    ]
    for kind, numbers, expected in cases:
        steps = steps_from_json(steps_to_json([TailStep(kind, "y", ("x",), numbers)]))
        shape = tail_shapes(steps, {"x": x.shape})["y"]
        (got,) = run_tail(steps, {"x": x}, {}, ["y"])
        assert shape == got.shape and got.dtype == np.float32, kind
        assert np.allclose(got, expected, atol=1e-6), kind
    for kind, function in (
        ("add", np.add),
        ("subtract", np.subtract),
        ("multiply", np.multiply),
        ("divide", np.divide),
        ("power", np.power),
        ("maximum", np.maximum),
        ("minimum", np.minimum),
    ):
        (got,) = run_tail([TailStep(kind, "y", ("x", "z"))], {"x": x, "z": x[:1, :, :1]}, {}, ["y"])
        assert np.allclose(got, function(x, x[:1, :, :1]), atol=1e-6), kind
    (got,) = run_tail([TailStep("matmul", "y", ("x", "z"))], {"x": x, "z": x[0].T}, {}, ["y"])
    assert np.allclose(got, x @ x[0].T, atol=1e-5)


def test_the_container_is_ordinary_safetensors(tmp_path: Path) -> None:
    with open(saved(tmp_path / "m.safetensors"), "rb") as file:
        metadata, entries = safetensors.read_header(
            file, (tmp_path / "m.safetensors").stat().st_size
        )
    assert metadata["format_version"] == "2" and "tail" in metadata
    assert set(entries) == {"c.weight", "c.bias", "four"}
