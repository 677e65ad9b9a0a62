"""Other ways to the same numbers: bfloat16, dense and Winograd convolutions, shared weights.

With integers as operands every sum is exact in float32: bfloat16 results equal torch's, rounded
once, to the bit.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
from helpers.engine import (
    ISAS,
    as_batch,
    by_torch,
    check_stages,
    deviation,
    families,
    lively,
    own_size,
    small,
    synthetic_image,
    torch_reference,
    unhoisted,
    windows,
)
from helpers.parts import EngineParts
from numpy.typing import NDArray

from sparsedet import _native
from sparsedet.engine import PRECISIONS, Engine, choose_precision, explain_precision
from sparsedet.engine.cpus import cpu_name
from sparsedet.engine.lower import lowered
from sparsedet.engine.precision import ChosenPrecision
from sparsedet.errors import InputError
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.graph import Conv, Shape
from sparsedet.model.rewrite import is_predictor
from sparsedet.testing import random_tensors

torch = pytest.importorskip("torch")

BF16_ISAS = [isa for isa in ISAS if _native.has_bfloat16(isa)]


def whole_numbers(config: ModelConfig) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(3)
    return {
        name: np.where(tensor != 0, rng.integers(-4, 5, tensor.shape), 0).astype(np.float32)
        for name, tensor in random_tensors(config, 0.6).items()
    }


def rounded(values: Any) -> Any:
    return values.to(torch.bfloat16).float()


def check_exact(config: ModelConfig, isa: str, sizes: Any) -> None:
    """Every operation in bfloat16 against torch, to the bit."""
    tensors, graph = whole_numbers(config), unhoisted(config)
    engine = Engine(config, tensors, threads=1, isa=isa, graph=graph, precision="bf16").native
    rng = np.random.default_rng(1)
    for operation, attributes in windows(graph):
        name, of_input = operation.name, graph.shapes[operation.inputs[0]]
        for batch, height, width in sizes(of_input):
            shape = (batch, of_input.channels, height, width)
            x = rng.integers(-4, 5, shape).astype(np.float32)
            if not isinstance(attributes, Conv):  # reads what left a ReLU
                x = np.abs(x) + rng.random(shape, dtype=np.float32)
                x = rounded(torch.from_numpy(x)).numpy()
                expected = by_torch(operation, tensors, torch.from_numpy(x))
                assert np.array_equal(engine.run_operation(name, [x]), expected), name
                continue
            expected = by_torch(operation, tensors, torch.from_numpy(x))
            expected = expected if is_predictor(graph, name) else rounded(expected)
            assert np.array_equal(engine.run_operation(name, [x]), expected), (name, shape)
            if operation.inputs[1:]:
                y = rng.integers(-9, 10, expected.shape).astype(np.float32)
                given = torch.from_numpy(x), torch.from_numpy(y)
                expected = rounded(by_torch(operation, tensors, *given))
                assert np.array_equal(engine.run_operation(name, [x, y]), expected), (name, shape)


@pytest.mark.parametrize("isa", BF16_ISAS)
@families
def test_bfloat16_operations(family: str, isa: str) -> None:
    check_exact(small(family), isa, own_size)


@pytest.mark.parametrize("isa", BF16_ISAS)
def test_bfloat16_with_several_blocks_of_columns_and_chunks_of_rows(isa: str) -> None:
    config = small(
        "r101-c4",
        blocks=(1, 1, 1, 1),
        bottleneck_channels=(150, 20, 20, 150),
        stage_channels=(421, 20, 600, 421),
    )

    def size(shape: Shape) -> list[tuple[int, ...]]:
        batch = 3 if shape.domain == "rois" else 1
        return [(batch, 1, 1) if shape.size == (1, 1) else (batch, 7, 9)]

    check_exact(config, isa, size)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("hoist", [True, False])
@families
def test_bfloat16_stages_are_near(family: str, hoist: bool, isa: str) -> None:
    """Rounded after each layer, so within some units of 2^-8 of the largest value."""
    config, tensors = small(family), lively(family)
    network_input = synthetic_image(97, 131)
    engine = EngineParts(Engine(config, tensors, threads=2, isa=isa, hoist=hoist, precision="bf16"))
    model = torch_reference(config, tensors)
    features = np.asarray(model.features(as_batch(network_input))[0])
    assert deviation(engine.features(network_input), features) < 0.04
    boxes = np.array([[3, 5, 60, 70], [0, 0, 131, 97], [40, 20, 44, 90]], dtype=np.float32)
    exact = EngineParts(Engine(config, tensors, threads=2, isa=isa, hoist=hoist), (97, 131))
    for got, expected in zip(
        engine.roi_head(features, boxes), exact.roi_head(features, boxes), strict=True
    ):
        assert deviation(got, expected) < 0.06


@pytest.mark.parametrize("isa", BF16_ISAS)
def test_bfloat16_repeats_to_the_bit(isa: str) -> None:
    config, tensors, network_input = small("r101-c4"), lively("r101-c4"), synthetic_image(160, 208)
    rows = [
        Engine(config, tensors, threads=n, isa=isa, precision="bf16").run(network_input)
        for n in (1, 2, 3, 7)
    ]
    assert len(rows[0]) and all(np.array_equal(r, rows[0]) for r in rows)


@pytest.mark.parametrize(
    ("vendor", "isa", "close"),
    [
        ("AuthenticAMD", "avx512", "bf16"),
        ("GenuineIntel", "avx512", "f32"),
        ("GenuineIntel", "amx", "bf16"),
        ("AuthenticAMD", "avx2", "f32"),
        ("GenuineIntel", "scalar", "f32"),  # has all formats, but only as specification
        ("GenuineIntel", "avxvnni", "f32"),
        ("GenuineIntel", "avx2", "f32"),
        ("CentaurHauls", "avx2", "f32"),
        ("", "neon_i8mm", "f32"),  # has bf16, of unknown speed
        ("", "neon_dotprod", "f32"),
        ("", "neon", "f32"),
    ],
)
def test_what_promises_become(
    monkeypatch: pytest.MonkeyPatch, vendor: str, isa: str, close: str
) -> None:
    module = "sparsedet.engine.precision"
    monkeypatch.setattr(f"{module}.cpu_vendor", lambda: vendor)
    monkeypatch.setattr(f"{module}.choose_isa", lambda isa: isa)
    rated = isa not in ("scalar", "neon") and vendor != "CentaurHauls"
    for has in (True, False):
        monkeypatch.setattr(f"{module}.has_bfloat16", lambda isa, has=has: has)
        monkeypatch.setattr(f"{module}.has_int8", lambda isa, has=has: has)
        for asked in ("f32", "bf16", "int8"):
            assert explain_precision(asked, isa) == ChosenPrecision(asked)
        full = explain_precision("full", isa, thresholds=True)
        assert full.format == "f32" and full.reason.startswith("full: ")
        near = explain_precision("close", isa, thresholds=True)
        assert near.format == (close if has else "f32") and near.reason.startswith("close: ")
        assert explain_precision("auto", isa, thresholds=True) == near
        fastest = explain_precision("fastest", isa, thresholds=True)
        assert fastest.format == ("int8" if has and rated else "f32")
        assert (vendor or "this CPU") in fastest.reason and isa in fastest.reason
        without = explain_precision("fastest", isa)
        assert without.format == near.format
        assert ("no clipping thresholds" in without.reason) == rated


def test_a_promise_names_what_ran_and_why() -> None:
    config, tensors = small("r101-c4"), lively("r101-c4")
    engine = Engine(config, tensors, threads=1, precision="close")
    assert engine.precision == choose_precision("close")
    assert engine.precision_reason.startswith("close: ")
    assert engine.fork().precision_reason == engine.precision_reason
    plain = Engine(config, tensors, threads=1, precision=engine.precision)
    assert plain.precision_reason == ""
    network_input = np.full((config.input_height, config.input_width, 3), 90, np.uint8)
    assert np.array_equal(engine.run(network_input), plain.run(network_input))


def test_kernels_that_compute_wrongly_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsedet.engine.failed_kernels", lambda: ["avx512 bf16"])
    monkeypatch.setattr("sparsedet.engine._warned", set())
    config, tensors = small("r101-c4"), lively("r101-c4")
    with pytest.warns(RuntimeWarning, match="the kernels avx512 bf16 computed") as told:
        Engine(config, tensors, threads=1)
        Engine(config, tensors, threads=1)
    assert len(told) == 1 and str(told[0].message).startswith(cpu_name())


def test_the_kernels_of_this_cpu_compute_rightly() -> None:
    for isa in ISAS:
        _native.has_bfloat16(isa), _native.has_int8(isa)
    assert _native.failed_kernels() == []


def test_precisions_and_the_vendor_of_this_cpu() -> None:
    for known in PRECISIONS:
        assert choose_precision(known) in ("f32", "bf16", "int8")
    with pytest.raises(InputError, match="precision is 'fp16'"):
        choose_precision("fp16")
    with pytest.raises(InputError, match="instruction set 'sse9'"):
        choose_precision("close", "sse9")
    vendor = _native.cpu_vendor()
    x86 = platform.machine() in ("x86_64", "AMD64")
    assert len(vendor) == 12 and vendor.isprintable() if x86 else vendor == ""


@pytest.mark.skipif("avx2" not in ISAS, reason="needs an instruction set without bfloat16")
def test_bfloat16_where_there_is_none() -> None:
    with pytest.raises(InputError, match="'bf16' is not available with 'avx2'"):
        Engine(small("r101-c4"), lively("r101-c4"), isa="avx2", precision="bf16")


# --------------------------------------------------------------------------- the algorithms


def algorithms(engine: Engine) -> dict[str, str]:
    return {name: algorithm for name, algorithm, *_ in engine.native.convolutions}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", ["sparse", "dense", "rowwise", "winograd"])
def test_algorithms_agree(isa: str, algorithm: str) -> None:
    config, tensors = small("r101-c4"), lively("r101-c4")
    names = [operation.name for operation, _ in lowered(build_graph(config)).of_kind(Conv)]
    if algorithm == "winograd":
        names = [f"res5.{i}.conv2" for i in range(1, config.blocks[3])]
    if algorithm == "rowwise":  # small maps alone
        convolutions = Engine(config, tensors, isa=isa).native.convolutions
        names = [name for name, *_, eligible in convolutions if algorithm in eligible]
        assert (len(names) > 5) == (isa != "scalar")
    engine = Engine(config, tensors, threads=2, isa=isa, algorithms=dict.fromkeys(names, algorithm))
    assert {name for name, used in algorithms(engine).items() if used == algorithm} >= set(names)
    check_stages(engine, torch_reference(config, tensors), synthetic_image(97, 131), 2e-5)


def test_the_cost_model_looks_at_zeros_alone() -> None:
    """Scalar: other instruction sets run small maps row by row."""
    config = small("r101-c4")
    dense = algorithms(Engine(config, random_tensors(config, 0.0), threads=1, isa="scalar"))
    assert dense["res4.1.conv2"] == "dense" and dense["res5.1.conv2"] == "winograd"
    sparse = algorithms(Engine(config, random_tensors(config, 0.6), threads=1, isa="scalar"))
    assert sparse["res4.1.conv2"] == sparse["res5.1.conv2"] == "sparse"
    assert sparse == algorithms(
        Engine(config, random_tensors(config, 0.6), threads=5, isa="scalar")
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"res9.conv1": "dense"}, "res9.conv1"),
        ({"rpn.conv": "winograd"}, "rpn.conv"),
        ({"rpn.conv": "fft"}, "unknown algorithm 'fft'"),
    ],
)
def test_impossible_algorithms(choice: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Engine(small("r101-c4"), lively("r101-c4"), algorithms=choice)


def test_a_fork_shares_weights_and_gives_the_same() -> None:
    engine, network_input = (
        Engine(small("r101-c4"), lively("r101-c4"), threads=2),
        synthetic_image(97, 131),
    )
    fork = engine.fork()
    expected = engine.run(network_input)
    assert fork.threads == 1 and fork.isa == engine.isa
    del engine
    assert len(expected) and np.array_equal(fork.run(network_input), expected)
