"""Operations on maps, one by one, against torch: in both types, on awkward sizes, with any threads.

Operands are small integers where a sum is involved, so that sums are exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet._native import NativeEngine, available_isas, has_bfloat16, has_int8

torch = pytest.importorskip("torch")
F = torch.nn.functional

F32 = NDArray[np.float32]
Fields = dict[str, Any]
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}
CHANNELS = (1, 3, 16, 20)
SIZES = ((1, 1), (3, 7), (2, 16), (5, 17), (4, 33))
KINDS = [
    (isa, precision)
    for isa in available_isas()
    for precision in ("f32", "bf16")
    if precision == "f32" or has_bfloat16(isa)
]
kinds = pytest.mark.parametrize(("isa", "precision"), KINDS)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def conv(name: str, inputs: list[str], ins: int, out: int, **changes: Any) -> Fields:
    fields: Fields = {"name": name, "kind": "conv", "inputs": inputs, "in_channels": ins}
    fields |= {"out_channels": out, "kernel": (1, 1), "padding": (0, 0, 0, 0), "stride": 1}
    fields |= {"dilation": 1, "groups": 1, "activation": "none", "type": "f32"}
    return {**fields, "clipping_threshold": 0.0, **changes}


def with_map(isa: str, precision: str, channels: int, threads: int = 1) -> NativeEngine:
    """A graph that makes a map `m` of the image."""
    native = NativeEngine(isa, threads, False, precision, (20, 24))
    normalise = {"name": "n", "kind": "normalise", "inputs": ["image"], "type": precision}
    native.add({**normalise, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    weight, bias = np.zeros((channels, 3, 1, 1), np.float32), np.zeros(channels, np.float32)
    native.add(conv("m", ["n"], 3, channels, stride=2, type=precision), weight, bias)
    return native


def integers(*shape: int, seed: int = 0, limit: int = 4) -> F32:
    rng = np.random.default_rng(seed)
    return rng.integers(-limit, limit + 1, shape).astype(np.float32)


def close(got: F32, expected: Any, precision: str, tolerance: float = 2e-6) -> bool:
    """Whether values agree up to the rounding of the result."""
    expected = expected.numpy()
    tolerance = tolerance if precision == "f32" else 2.0**-8
    assert got.shape == expected.shape and np.isfinite(got).all()
    return bool(np.all(np.abs(got - expected) <= tolerance * np.maximum(np.abs(expected), 0.5)))


def maps(channels: int) -> Iterator[F32]:
    for seed, size in enumerate(SIZES):
        yield integers(1, channels, *size, seed=seed)


# ------------------------------------------------------------------------------ convolutions


@activations
@kinds
def test_activations_of_convolutions(isa: str, precision: str, activation: str) -> None:
    """After the bias and a residual, also of a float32 output."""
    for channels, residual, output in itertools.product(
        CHANNELS, (False, True), {"f32", precision}
    ):
        if residual and output != precision:
            continue  # another type than the map that is added
        inputs = ["m", "m"] if residual else ["m"]
        fields = conv("x", inputs, channels, channels, activation=activation, type=output)
        weight, bias = integers(channels, channels, 1, 1, seed=1), integers(channels, seed=2)
        results = []
        for threads in (1, 2, 3):
            native = with_map(isa, precision, channels, threads)
            native.add(fields, weight / 4, bias / 4)
            results.append(
                [native.run_operation("x", [x, x][: 1 + residual]) for x in maps(channels)]
            )
        for x, *got in zip(maps(channels), *results, strict=True):
            y = torch.from_numpy(x)
            expected = F.conv2d(y, torch.from_numpy(weight / 4), torch.from_numpy(bias / 4))
            expected = ACTIVATIONS[activation](expected + y if residual else expected)
            assert close(got[0], expected, output)
            assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])


@activations
def test_activations_are_equal_to_the_bit_on_all_instruction_sets(activation: str) -> None:
    fields = conv("x", ["m"], 20, 20, activation=activation)
    results = []
    for isa in available_isas():
        native = with_map(isa, "f32", 20)
        native.add(fields, integers(20, 20, 1, 1, seed=1) / 8, integers(20, seed=2) / 8)
        results.append([native.run_operation("x", [x]) for x in maps(20)])
    for first, *others in zip(*results, strict=True):
        assert all(np.array_equal(first, other) for other in others)


@pytest.mark.skipif(not has_int8(), reason="no int8 here")
@pytest.mark.parametrize("activation", ["hardswish", "hardsigmoid"])
def test_int8_takes_no_other_activation_than_relu(activation: str) -> None:
    native = with_map("", "f32", 4)
    pool = {"name": "q", "kind": "max_pool", "inputs": ["m"], "kernel": 3, "stride": 2}
    native.add({**pool, "padding": (1, 1, 1, 1), "type": "int8", "clipping_threshold": 9.0})
    weight = integers(4, 4, 1, 1)
    for output in ("int8", "f32"):
        fields = conv("x", ["q"], 4, 4, activation=activation, type=output)
        with pytest.raises(ValueError, match="x: reads int8: its activation can only be a ReLU"):
            native.add(fields, weight)
