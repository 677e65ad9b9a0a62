"""int8 with zero points: convolutions of values below zero, borders, activations, copies.

With powers of two as scales and integers as weights, sums are exact: results equal torch's in
float64 to the bit where no activation bends them, and to one step else. All instruction sets give
equal bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet._native import NativeEngine, available_isas, has_int8

torch = pytest.importorskip("torch")
F = torch.nn.functional

F32 = NDArray[np.float32]
Fields = dict[str, Any]
ISAS = [isa for isa in available_isas() if has_int8(isa)]
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
}
SIZES = ((1, 1), (3, 7), (2, 16), (5, 17), (20, 20), (4, 33))
IN, OUT, ADDED = (1 / 16, 77), (1 / 8, 101), (1 / 4, 30)
"""Scale and zero point of the input, the output, and what is added."""


def conv(name: str, inputs: list[str], ins: int, out: int, **changes: Any) -> Fields:
    fields: Fields = {"name": name, "kind": "conv", "inputs": inputs, "in_channels": ins}
    fields |= {"out_channels": out, "kernel": (1, 1), "padding": (0, 0, 0, 0), "stride": 1}
    fields |= {"dilation": 1, "groups": 1, "activation": "none", "type": "int8"}
    return {**fields, **changes}


def with_bytes(isa: str, channels: int, threads: int = 2) -> NativeEngine:
    """A graph with the maps `q`, of the input's format, and `r`, of what is added."""
    native = NativeEngine(isa, threads, False, "int8", (20, 24))
    normalise = {"name": "n", "kind": "normalise", "inputs": ["image"], "type": "f32"}
    native.add({**normalise, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    weight, bias = np.zeros((channels, 3, 1, 1), np.float32), np.zeros(channels, np.float32)
    native.add(conv("m", ["n"], 3, channels, type="f32"), weight, bias)
    for name, quantization in (("q", IN), ("r", ADDED)):
        convert = {"name": name, "kind": "convert", "inputs": ["m"], "type": "int8"}
        native.add({**convert, "quantization": quantization})
    return native


def steps(quantization: tuple[float, int], *shape: int, seed: int) -> F32:
    """Values that a format holds exactly."""
    scale, zero = quantization
    bytes_ = np.random.default_rng(seed).integers(0, 256, shape)
    return ((bytes_ - zero) * scale).astype(np.float32)


def whole_weights(out: int, *rest: int) -> F32:
    """Multiples of 1/256 that int8 keeps: the largest of each row is 127 of them."""
    rng = np.random.default_rng(5)
    weight = rng.integers(-126, 127, (out, *rest)) * (rng.random((out, *rest)) < 0.5)
    weight.reshape(out, -1)[:, 0] = 127
    return (weight / 256).astype(np.float32)


def rounded(value: Any, quantization: tuple[float, int]) -> Any:
    """As bytes hold it."""
    scale, zero = quantization
    return ((value / scale + zero).round().clamp(0, 255) - zero) * scale


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", ["", "first", "last"])
@pytest.mark.usefixtures("one_torch_thread")
def test_convolutions_of_values_below_zero(activation: str, residual: str) -> None:
    """With borders, whose value is zero; the residual before or after the activation."""
    if residual == "last" and activation not in ("relu", "silu", "gelu"):
        return
    channels = 7
    weight = whole_weights(channels, channels, 3, 3)
    bias = (np.arange(channels) / 8).astype(np.float32)
    for stride, padding in ((1, (1, 1, 1, 1)), (1, (2, 0, 0, 2)), (2, (0, 2, 1, 0))):
        if residual and stride > 1:
            continue
        inputs = ["q", "r"] if residual else ["q"]
        fields = conv("x", inputs, channels, channels, activation=activation)
        fields |= {"kernel": (3, 3), "padding": padding, "stride": stride, "quantization": OUT}
        fields["residual_last"] = residual == "last"
        engines = [with_bytes(isa, channels, 1 + i % 3) for i, isa in enumerate(ISAS)]
        for native in engines:
            native.add(fields, weight, bias)
        for seed, size in enumerate(SIZES):
            x = steps(IN, 1, channels, *size, seed=seed)
            top, left, bottom, right = padding
            if min(size[0] + top + bottom, size[1] + left + right) < 3:
                continue
            y = F.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
            sums = F.conv2d(y, torch.from_numpy(weight).double(), torch.from_numpy(bias).double())
            sums = sums[:, :, ::stride, ::stride]
            given = [x]
            if residual:
                given.append(steps(ADDED, *sums.shape, seed=seed + 9))
                added = torch.from_numpy(given[1]).double()
                sums = sums + added if residual == "first" else sums
            expected = ACTIVATIONS[activation](sums)
            if residual == "last":
                expected = expected + added
            expected = rounded(expected, OUT).numpy()
            got = [native.run_operation("x", given) for native in engines]
            assert all(np.array_equal(got[0], other) for other in got)
            exact = activation in ("none", "relu")
            assert np.abs(got[0] - expected).max() <= (0 if exact else OUT[0])
            assert np.mean(got[0] != expected) < 0.02


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_results_of_bytes(activation: str) -> None:
    weight = whole_weights(20, 12, 1, 1)
    results = []
    for isa in ISAS:
        native = with_bytes(isa, 12)
        native.add(conv("x", ["q"], 12, 20, activation=activation, type="f32"), weight)
        results.append(
            [native.run_operation("x", [steps(IN, 1, 12, *size, seed=3)]) for size in SIZES]
        )
    for size, *got in zip(SIZES, *results, strict=True):
        assert all(np.array_equal(got[0], other) for other in got)
        y = torch.from_numpy(steps(IN, 1, 12, *size, seed=3)).double()
        expected = ACTIVATIONS[activation](F.conv2d(y, torch.from_numpy(weight).double()))
        assert np.abs(got[0] - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("isa", ISAS)
def test_borders_hold_the_zero_point_in_a_graph(isa: str) -> None:
    """Also where memory was used by another map before, and where lanes of a row are left over."""
    halved = (whole_weights(8, 8, 3, 3) / 2).astype(np.float32)
    same = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    native = with_bytes(isa, 8)
    for name, source, quantization in (("a", "q", OUT), ("b", "a", ADDED), ("c", "b", IN)):
        native.add(conv(name, [source], 8, 8, quantization=quantization, **same), halved)
    native.plan(20, 24)
    x = steps(IN, 8, 20, 24, seed=1)
    (whole,) = native.run_between({"q": x}, ["c"])
    by_one: F32 = x[None]
    for name in "abc":
        by_one = native.run_operation(name, [by_one])
    assert np.array_equal(whole, by_one[0]) and len(np.unique(whole)) > 20


@pytest.mark.parametrize("kernel", [2, 3, 5, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_pools_of_bytes(kernel: int, stride: int) -> None:
    padding = kernel // 2
    for isa in ISAS:
        native = with_bytes(isa, 6)
        pool = {"name": "x", "kind": "max_pool", "inputs": ["q"], "kernel": kernel, "type": "int8"}
        native.add({**pool, "stride": stride, "padding": (padding,) * 4, "negative": True})
        for size in SIZES:
            if min(size) + 2 * padding >= kernel:
                x = steps(IN, 1, 6, *size, seed=2)
                expected = F.max_pool2d(torch.from_numpy(x), kernel, stride, padding)
                assert np.array_equal(native.run_operation("x", [x]), expected.numpy())


@pytest.mark.parametrize("isa", ISAS)
def test_operations_that_move_bytes(isa: str) -> None:
    native = with_bytes(isa, 12)
    native.add({"name": "s", "kind": "shuffle", "inputs": ["q"], "groups": 3})
    native.add({"name": "u", "kind": "resize", "inputs": ["q"], "factor": 2})
    native.add({"name": "p", "kind": "slice", "inputs": ["q"], "first": 4, "channels": 5})
    for size in SIZES:
        x = steps(IN, 1, 12, *size, seed=4)
        y = torch.from_numpy(x)
        shuffled = F.channel_shuffle(y, 3).numpy()
        assert np.array_equal(native.run_operation("s", [x]), shuffled)
        doubled = F.interpolate(y, scale_factor=2).numpy()
        assert np.array_equal(native.run_operation("u", [x]), doubled)
        assert np.array_equal(native.run_operation("p", [x]), x[:, 4:9])


def test_conversions_are_copies_that_round_once() -> None:
    """Between all formats, of all channels or some from any one on, on maps and on RoIs."""
    formats: list[tuple[str, tuple[float, int] | None]] = [
        ("f32", None),
        ("int8", IN),
        ("int8", OUT),
    ]
    for first, channels in ((0, 11), (4, 7), (1, 6), (3, 8)):
        results: dict[Any, list[F32]] = {}
        for isa in ISAS:
            native = with_bytes(isa, 11)
            for source in ("m", "q"):
                for i, (kind, quantization) in enumerate(formats):
                    fields: Fields = {"name": f"{source}{i}", "kind": "convert"}
                    fields["inputs"] = [source]
                    fields |= {"first": first, "channels": channels, "type": kind}
                    native.add(
                        fields if quantization is None else {**fields, "quantization": quantization}
                    )
                    for size in SIZES:
                        x = steps(IN, 1, 11, *size, seed=6)
                        x = x if source == "q" else x + np.float32(0.01)
                        got = native.run_operation(fields["name"], [x])
                        results.setdefault((source, i, size), []).append(got)
                        part = torch.from_numpy(x[:, first : first + channels]).double()
                        expected = part if quantization is None else rounded(part, quantization)
                        assert np.array_equal(got, expected.float().numpy())
        for got_all in results.values():
            assert all(np.array_equal(got_all[0], other) for other in got_all)


@pytest.mark.parametrize("isa", ISAS[:1])
def test_refusals(isa: str) -> None:
    native = with_bytes(isa, 8)
    square = np.zeros((8, 8, 1, 1), np.float32)
    cases: list[tuple[Fields, list[F32], str]] = [
        (conv("x", ["q", "m"], 8, 8), [square], "another type than the output"),
        (conv("x", ["q", "m"], 8, 8, type="f32"), [square], "nothing is added to a float32"),
        ({"name": "x", "kind": "slice", "inputs": ["q"], "first": 2, "channels": 4}, [], "inside"),
        (
            {"name": "x", "kind": "convert", "inputs": ["q"], "type": "f32", "first": 8},
            [],
            "beyond",
        ),
        ({"name": "x", "kind": "convert", "inputs": ["image"], "type": "f32"}, [], "feature map"),
    ]
    for bad in ((0.0, 0), (-1.0, 3), (1.0, 256), (1.0, -1), (float("nan"), 0)):
        fields = {"name": "x", "kind": "convert", "inputs": ["m"], "type": "int8"}
        cases.append(({**fields, "quantization": bad}, [], "out of range"))
    for fields, given, said in cases:
        with pytest.raises(ValueError, match=f"^x: .*{said}"):
            native.add(fields, given[0] if given else None)
