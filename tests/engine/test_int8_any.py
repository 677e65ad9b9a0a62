"""int8 of any network: SiLU, HardSwish, squeeze and excitation, joins, pyramids, RoIs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.any_network import KINDS, file_of, photograph
from helpers.exports import small_network
from numpy.typing import NDArray

from sparsedet import Model
from sparsedet._native import available_isas, has_bfloat16, has_int8
from sparsedet.engine import Engine
from sparsedet.engine.calibrate import calibrate, measure, network_input_of
from sparsedet.engine.formats import Planned, plan_formats
from sparsedet.engine.lower import lowered
from sparsedet.engine.quantization import Quantization, quantization_of, symmetric
from sparsedet.errors import InputError
from sparsedet.importers import load_trained
from sparsedet.model.file import AnyFile, NetworkFile, load_file, save_model
from sparsedet.model.graph import (
    Add,
    Attention,
    Concat,
    Conv,
    Graph,
    MaxPool,
    Normalise,
    Operation,
    Resize,
    Shape,
    Shuffle,
    Slice,
)
from sparsedet.model.int8_ranges import ClippingThreshold
from sparsedet.model.network import graph_of

F32 = NDArray[np.float32]
ISAS = [isa for isa in available_isas() if has_int8(isa)]
BF16 = has_bfloat16("")
PLAIN = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def quantised(file: AnyFile) -> AnyFile:
    inputs = [network_input_of(photograph(seed), file.config) for seed in range(3)]
    return replace(file, **asdict(measure(file.config, file.tensors, inputs)))


def engine(file: AnyFile, precision: Any, isa: str = "", threads: int = 2) -> Engine:
    config: Any = file.config
    return Engine(
        config,
        file.tensors,
        threads=threads,
        isa=isa,
        precision=precision,
        graph=lowered(graph_of(config)),
        clipping_thresholds=file.clipping_thresholds,
        int8_biases=file.int8_biases,
    )


def inner_maps(graph: Graph) -> list[str]:
    """Values of convolutions and what detections read."""
    maps = [name for name, shape in graph.shapes.items() if shape.domain == "map"]
    return [name for name in maps if not isinstance(graph.by_name[name].attributes, Normalise)]


@pytest.mark.parametrize("kind", KINDS)
def test_networks_from_onnx_are_near_float32(kind: str, tmp_path: Path) -> None:
    """All values, on a photograph that was not calibrated on."""
    file = quantised(load_trained(file_of(kind, tmp_path), raw=kind in ("raw", "sigmoids"))[0])
    exact, fast = engine(file, "f32"), engine(file, "int8")
    names = inner_maps(exact.graph)
    photo = network_input_of(photograph(7), file.config)
    a, b = exact.values(photo, names), fast.values(photo, names)
    for name in names:
        spread = np.abs(a[name]).max()
        assert np.abs(a[name] - b[name]).mean() < 0.03 * spread, name
    assert any(np.any(a[name] != b[name]) for name in names)
    runs = plan_formats(exact.graph, "int8", file.clipping_thresholds or {})
    assert sum(p.type == "int8" for p in runs) >= 3  # the test would pass in float32, too


@pytest.mark.parametrize("kind", ["picodet", "raw"])
def test_operations_on_bytes_give_equal_bits(kind: str, tmp_path: Path) -> None:
    """Of all instruction sets and threads, from the same values."""
    file = quantised(load_trained(file_of(kind, tmp_path), raw=kind == "raw")[0])
    engines = [engine(file, "int8", isa, threads) for isa in ISAS for threads in (1, 2)]
    photo = network_input_of(photograph(7), file.config)
    graph = engines[0].graph
    values = engines[0].values(photo, inner_maps(graph))
    checked = 0
    for planned in plan_formats(graph, "int8", file.clipping_thresholds or {}):
        operation = planned.operation
        inputs = graph.by_name.get(operation.name, operation).inputs
        if planned.type != "int8" or planned.conversion or not set(inputs) <= set(values):
            continue
        given = [values[name] for name in inputs]
        got = [e.native.run_operation(operation.name, given) for e in engines]
        assert all(np.array_equal(got[0], other) for other in got), operation.name
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("family", ["faster-rcnn", "mask-rcnn", "retinanet", "fcos"])
def test_pyramids(family: str) -> None:
    """RoIs of maps below zero, heads that run on several levels, group norm."""
    network = small_network(family)
    found = measure(network.config, network.tensors, [network.image], threads=1)
    options: dict[str, Any] = {"precision": "int8", "threads": 1, **asdict(found)}
    fast = Engine(network.config, network.tensors, **options)
    exact = Engine(network.config, network.tensors, threads=1)
    names = [n for n in inner_maps(exact.graph) if exact.graph.shapes[n].height > 3]
    a, b = exact.values(network.image, names), fast.values(network.image, names)
    for name in names:
        assert np.corrcoef(a[name].ravel(), b[name].ravel())[0, 1] > 0.98, name
    rows, expected = fast.run(network.image), exact.run(network.image)
    assert len(rows) > len(expected) / 2 > 0


def test_a_file_keeps_ranges_and_runs(tmp_path: Path) -> None:
    file = quantised(load_trained(file_of("classifier", tmp_path))[0])
    assert isinstance(file, NetworkFile)
    path = tmp_path / "int8.safetensors"
    save_model(
        path,
        file.config,
        file.tensors,
        {},
        dtype="float32",
        clipping_thresholds=file.clipping_thresholds,
        int8_biases=file.int8_biases,
    )
    again = load_file(path)
    assert again.clipping_thresholds == file.clipping_thresholds
    assert isinstance(again, NetworkFile) and again.int8_biases and file.int8_biases
    assert all(np.array_equal(again.int8_biases[n], file.int8_biases[n]) for n in file.int8_biases)
    array = np.random.default_rng(0).normal(size=(2, 3, 24, 24)).astype(np.float32)
    exact, fast = Model.load(path), Model.load(path, precision="int8")
    assert fast.engine.conversions and not exact.engine.conversions
    (a,), (b,) = exact(array).values(), fast(array).values()
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


# ------------------------------------------------------------------------------ the plan


def conv(name: str, source: str, channels: int, added: str = "", **changes: Any) -> Operation:
    inputs = (source, added) if added else (source,)
    fields: dict[str, Any] = {"kernel": (1, 1), "layers": (name,), "activation": "silu"}
    return Operation(name, inputs, Conv(channels, **{**fields, **changes}))


def planned(
    *operations: Operation, precision: Any = "int8", **ranges: ClippingThreshold
) -> dict[str, Planned]:
    """The plan of a small network, by name; values without a range get [-0.3, 4]."""
    stem = conv("stem", "n", 8, stride=2)
    graph = Graph(Shape("image", 3, 32, 32), (Operation("n", ("image",), PLAIN), stem, *operations))
    known: dict[str, ClippingThreshold] = {
        o.name: (-0.3, 4.0) for o in graph.operations if isinstance(o.attributes, Conv | Add)
    }
    return {p.operation.name: p for p in plan_formats(graph, precision, {**known, **ranges})}


@pytest.mark.parametrize("most", [0.0, 1e-46, 1e-38])
def test_a_range_too_narrow_for_a_step_holds_zero_alone(most: float) -> None:
    assert quantization_of(0.0, most) == quantization_of(-most, 0.0) == Quantization(1.0, 0)
    assert symmetric(most) == Quantization(1.0, 128)


def test_a_long_chain_of_moved_values_is_planned() -> None:
    """Each of them has the range of the one before; their images, too, are found in one pass."""
    image = [Operation(f"i{i}", (f"i{i - 1}" if i else "n",), Slice(0, 3)) for i in range(2000)]
    moved = [Operation(f"m{i}", (f"m{i - 1}" if i else "stem",), Slice(0, 8)) for i in range(2000)]
    plan = planned(*image, conv("a", "i1999", 8), *moved, conv("b", "m1999", 8), conv("c", "b", 4))
    assert (plan["i1999"].type, plan["a"].reads) == ("f32", "f32")
    assert (plan["m1999"].type, plan["b"].reads) == ("int8", "int8")
    assert plan["m0"].quantization == plan["m1999"].quantization == quantization_of(-0.3, 4.0)


def test_values_that_meet_in_a_join_share_the_union_of_their_ranges() -> None:
    plan = planned(
        conv("a", "stem", 8),
        conv("b", "stem", 4),
        Operation("half", ("a",), Slice(4, 4)),
        Operation("pool", ("b",), MaxPool(5, 1, (2, 2, 2, 2))),
        Operation("join", ("a", "pool", "half"), Concat()),
        conv("c", "join", 8),
        conv("out", "c", 4),
        a=(-0.1, 2.0),
        b=(-1.0, 1.0),
    )
    shared = quantization_of(-1.0, 2.0)
    for name in ("a", "b", "half", "pool", "join"):
        assert plan[name].type == "int8" and plan[name].quantization == shared
    assert plan["c"].quantization == quantization_of(-0.3, 4.0)
    assert [p.operation.name for p in plan.values() if p.conversion] == ["stem as int8"]
    assert (plan["n"].type, plan["stem"].type, plan["out"].type) == ("f32", "f32", "f32")


def test_a_join_with_a_range_of_its_own_is_requantised_by_copies() -> None:
    """As a quantised file has it."""
    plan = planned(
        conv("a", "stem", 8),
        conv("b", "stem", 4),
        Operation("join", ("a", "b"), Concat()),
        conv("c", "join", 8),
        conv("d", "a", 8),
        conv("e", "c", 8, added="d"),
        conv("out", "e", 4),
        a=(-0.1, 2.0),
        b=(-1.0, 3.0),
        join=(-1.0, 3.0),
    )
    assert plan["a"].quantization == quantization_of(-0.1, 2.0)
    assert plan["join"].operation.inputs == ("a as int8", "b")
    assert plan["a as int8"].quantization == plan["b"].quantization == plan["join"].quantization


def test_what_has_no_form_on_bytes_runs_in_float32_between_conversions() -> None:
    plan = planned(
        conv("a", "stem", 8),
        conv("deep", "a", 8, groups=8),
        conv("b", "deep", 8),
        Operation("up", ("b",), Resize(factor=2)),
        Operation("back", ("up",), MaxPool(2, 2, (0, 0, 0, 0))),
        Operation("sum", ("back", "a"), Add("relu")),
        conv("c", "sum", 8),
        conv("out", "c", 4),
    )
    assert plan["a"].type == plan["deep"].type == "f32"  # `a` is written as float32 at once
    assert plan["b"].operation.inputs == ("deep as int8",)
    assert plan["c"].operation.inputs == ("sum as int8",)
    names = [p.operation.name for p in plan.values() if p.conversion]
    assert len(names) == len(set(names)) and "stem as int8" in names


@pytest.mark.parametrize(("precision", "size"), [("bf16", 2), ("int8", 4)])
def test_parts_that_begin_inside_an_element_are_copied(precision: Any, size: int) -> None:
    plan = planned(
        conv("a", "stem", 8),
        Operation("whole", ("a",), Slice(size, 2)),
        Operation("part", ("a",), Slice(size - 1, 3)),
        conv("b", "part", 3),
        conv("c", "whole", 4),
        Operation("join", ("b", "c"), Concat()),
        conv("d", "join", 8),
        conv("out", "d", 4),
        precision=precision,
    )
    assert not plan["whole"].conversion and plan["part"].conversion
    assert plan["join"].type == "f32" and plan[f"join as {precision}"].conversion


def test_a_value_without_a_range_stays_float32() -> None:
    graph = Graph(
        Shape("image", 3, 32, 32),
        (
            Operation("n", ("image",), PLAIN),
            conv("stem", "n", 8, stride=2),
            conv("a", "stem", 8),
            conv("b", "a", 8),
            conv("out", "b", 4),
        ),
    )
    plan = {p.operation.name: p for p in plan_formats(graph, "int8", {"a": (-0.3, 4.0)})}
    assert plan["b"].operation.inputs == ("a as int8",) or plan["a"].type == "int8"
    assert plan["b"].type == "f32" and plan["out"].operation.inputs == ("b",)


def test_numbers_that_are_no_finite_are_refused(tmp_path: Path) -> None:
    file = load_trained(file_of("raw", tmp_path), raw=True)[0]
    tensors = {name: np.array(tensor) for name, tensor in file.tensors.items()}
    tensors["b.weight"] = tensors["b.weight"] * np.float32(1e38)
    photo = network_input_of(photograph(1), file.config)
    with pytest.raises(InputError, match="is NaN or infinite on a calibration image"):
        calibrate(file.config, tensors, [photo])


# ------------------------------------------------------------------------------ bfloat16


@pytest.mark.skipif(not BF16, reason="this CPU has no kernels of bfloat16")
def test_bf16_runs_attention_odd_parts_and_a_stem_of_stride_one() -> None:
    """Between conversions; near float32 as bfloat16 is."""
    operations = (
        Operation("n", ("image",), PLAIN),
        conv("stem", "n", 9, kernel=(3, 3), padding=(1, 1, 1, 1)),
        conv("down", "stem", 12, kernel=(3, 3), stride=2, padding=(1, 1, 1, 1)),
        Operation("a", ("down",), Slice(3, 5)),
        Operation("b", ("down",), Slice(0, 7)),
        conv("c", "a", 5),
        Operation("join", ("c", "b"), Concat()),
        conv("d", "join", 16, activation="none"),
        Operation("attention", ("d",), Attention(2, 3, 0.6)),
        Operation("shuffle", ("attention",), Shuffle(2)),
        conv("out", "shuffle", 6),
    )
    graph = Graph(Shape("image", 3, 24, 32), operations)
    rng = np.random.default_rng(0)
    tensors: dict[str, F32] = {}
    for layer in graph.layers:
        scale = (2 / np.prod(layer.weight_shape[1:])) ** 0.5
        tensors[f"{layer.name}.weight"] = (rng.normal(size=layer.weight_shape) * scale).astype("f4")
        tensors[f"{layer.name}.bias"] = (rng.normal(size=layer.out_channels) / 4).astype("f4")
    photo = (rng.normal(size=(24, 32, 3))).astype(np.float32)
    name: Any = None  # an engine with a graph of its own reads no more than a name, and that late
    exact = Engine(name, tensors, graph=graph, precision="f32", threads=2)
    low = Engine(name, tensors, graph=graph, precision="bf16", threads=2)
    assert {"a", "b"} & set(low.conversions) and "d" not in low.conversions
    wanted = ["join", "attention", "out"]
    a, b = exact.values(photo, wanted), low.values(photo, wanted)
    for value in wanted:
        assert 0 < np.abs(a[value] - b[value]).max() < 0.05 * np.abs(a[value]).max(), value
