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
from sparsedet.engine.formats import plan_formats
from sparsedet.engine.lower import operations
from sparsedet.model.graph import Conv, Graph, Normalise, Operation, Shape
from sparsedet.model.tensors import StoredTensor

torch = pytest.importorskip("torch")
F = torch.nn.functional

F32 = NDArray[np.float32]
Fields = dict[str, Any]
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
    return {**fields, **changes}


def with_map(isa: str, precision: str, channels: int, threads: int = 1) -> NativeEngine:
    """A graph that makes a map `m` of the image."""
    native = NativeEngine(isa, threads, False, precision, (20, 24))
    normalise = {"name": "n", "kind": "normalise", "inputs": ["image"], "type": precision}
    native.add({**normalise, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    weight, bias = np.zeros((channels, 3, 1, 1), np.float32), np.zeros(channels, np.float32)
    native.add(conv("m", ["n"], 3, channels, stride=2, type=precision), weight, bias)
    return native


def integers(*shape: int, seed: int = 0, per: int = 1) -> F32:
    """Integers from -4 to 4, divided by `per`, a power of two."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-4, 5, shape) / per).astype(np.float32)


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
        weight, bias = (
            integers(channels, channels, 1, 1, seed=1, per=4),
            integers(channels, seed=2, per=4),
        )
        results = []
        for threads in (1, 2, 3):
            native = with_map(isa, precision, channels, threads)
            native.add(fields, weight, bias)
            results.append(
                [native.run_operation("x", [x, x][: 1 + residual]) for x in maps(channels)]
            )
        for x, *got in zip(maps(channels), *results, strict=True):
            y = torch.from_numpy(x)
            expected = F.conv2d(y, torch.from_numpy(weight), torch.from_numpy(bias))
            expected = ACTIVATIONS[activation](expected + y if residual else expected)
            assert close(got[0], expected, output)
            assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])


@activations
def test_activations_are_equal_to_the_bit_on_all_instruction_sets(activation: str) -> None:
    fields = conv("x", ["m"], 20, 20, activation=activation)
    results = []
    for isa in available_isas():
        native = with_map(isa, "f32", 20)
        native.add(fields, integers(20, 20, 1, 1, seed=1, per=8), integers(20, seed=2, per=8))
        results.append([native.run_operation("x", [x]) for x in maps(20)])
    for first, *others in zip(*results, strict=True):
        assert all(np.array_equal(first, other) for other in others)


# ------------------------------------------------------------------- depthwise convolutions

WINDOWS: list[Fields] = [
    {"kernel": (3, 3), "padding": (1, 1, 1, 1)},
    {"kernel": (3, 3), "padding": (1, 1, 1, 1), "stride": 2, "activation": "relu"},
    {"kernel": (5, 5), "padding": (2, 2, 2, 2), "activation": "hardswish"},
    {"kernel": (5, 5), "padding": (2, 2, 2, 2), "stride": 2},
    {"kernel": (1, 1), "padding": (0, 0, 0, 0), "activation": "hardsigmoid"},
    {"kernel": (2, 4), "padding": (1, 0, 2, 3), "stride": 2},
    {"kernel": (3, 3), "padding": (0, 1, 1, 0)},
    {"kernel": (3, 3), "padding": (-1, 2, 3, -1)},
    {"kernel": (3, 2), "padding": (2, 2, 2, 2), "dilation": 2, "activation": "relu"},
    {"kernel": (7, 7), "padding": (3, 30, 3, 30)},
]


def depthwise(name: str, channels: int, inputs: list[str], **changes: Any) -> Fields:
    return conv(name, inputs, channels, channels, **{"groups": channels, **changes})


def by_torch(fields: Fields, x: F32, weight: F32, bias: F32, residual: F32 | None = None) -> Any:
    top, left, bottom, right = fields["padding"]
    padded = F.pad(torch.from_numpy(x), (left, right, top, bottom))
    step, groups = fields["dilation"], fields["groups"]
    parts = torch.from_numpy(weight), torch.from_numpy(bias)
    y = F.conv2d(padded, *parts, fields["stride"], 0, step, groups)
    y = y if residual is None else y + torch.from_numpy(residual)
    return ACTIVATIONS[fields["activation"]](y)


def fits(fields: Fields, x: F32) -> bool:
    top, left, bottom, right = fields["padding"]
    reach = [(k - 1) * fields["dilation"] + 1 for k in fields["kernel"]]
    return bool(x.shape[2] + top + bottom >= reach[0] and x.shape[3] + left + right >= reach[1])


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@kinds
def test_depthwise_convolutions(isa: str, precision: str, window: Fields) -> None:
    for channels in (2, 3, 16, 20, 37):
        fields = depthwise("x", channels, ["m"], type=precision, **window)
        weight = integers(channels, 1, *fields["kernel"], seed=1, per=4)
        bias = integers(channels, seed=2, per=4)
        results = []
        for threads in (1, 2, 3):
            native = with_map(isa, precision, channels, threads)
            native.add(fields, weight, bias)
            assert native.convolutions[-1][1] == "depthwise"
            assert native.convolutions[-1][3] == np.count_nonzero(weight)
            xs = [x for x in maps(channels) if fits(fields, x)]
            results.append([native.run_operation("x", [x]) for x in xs])
        for x, *got in zip(xs, *results, strict=True):
            assert close(got[0], by_torch(fields, x, weight, bias), precision)
            assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])


@activations
@kinds
def test_a_depthwise_convolution_adds_a_residual(isa: str, precision: str, activation: str) -> None:
    """Without a bias, and with weights in the form of the model file."""
    native = with_map(isa, precision, 5)
    window: Fields = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "activation": activation}
    fields = depthwise("x", 5, ["m", "m"], type=precision, **window)
    weight = integers(5, 1, 3, 3, seed=1)
    mask = np.packbits(weight.ravel() != 0, bitorder="little")
    native.add(fields, (mask, weight[weight != 0]))
    for x, y in zip(maps(5), maps(5), strict=True):
        y = y[:, ::-1].copy()
        expected = by_torch(fields, x, weight, np.zeros(5, np.float32), y)
        assert close(native.run_operation("x", [x, y]), expected, precision)


@kinds
def test_packed_weights_of_a_depthwise_convolution(isa: str, precision: str) -> None:
    native, other = with_map(isa, precision, 5), with_map(isa, precision, 5)
    fields = depthwise("x", 5, ["m"], type=precision, kernel=(3, 3), padding=(1, 1, 1, 1))
    bias = integers(5)
    native.add(fields, integers(5, 1, 3, 3, seed=1), bias)
    algorithm, nonzero, checksum, pieces = native.packed("x")
    packed = np.frombuffer(b"".join(pieces), np.uint8)
    room = np.empty(len(packed) + 64, np.uint8)
    aligned = room[-room.ctypes.data % 64 :][: len(packed)]
    aligned[:] = packed
    assert len(packed) % 64 == 0 and algorithm == "depthwise"
    with pytest.raises(ValueError, match="its packed weights are damaged"):
        other.add_packed(fields, aligned[:64], bias, algorithm, nonzero, checksum)
    other.add_packed(fields, aligned, bias, algorithm, nonzero, checksum)
    (x,) = itertools.islice(maps(5), 3, 4)
    assert np.array_equal(native.run_operation("x", [x]), other.run_operation("x", [x]))


def test_what_a_depthwise_convolution_refuses() -> None:
    native = with_map("", "f32", 4)
    pool = {"name": "q", "kind": "max_pool", "inputs": ["m"], "kernel": 3, "stride": 2}
    cases: list[tuple[Fields, str, str]] = [
        (conv("x", ["m"], 4, 4, groups=2), "", "has groups, but not as many as channels"),
        (conv("x", ["m"], 4, 8, groups=4), "", "has groups, but not as many as channels"),
        (depthwise("x", 4, ["m"]), "sparse", "algorithm 'sparse' cannot run this operation"),
        (depthwise("x", 4, ["m"]), "winograd", "algorithm 'winograd' cannot run this operation"),
        (conv("x", ["m"], 4, 4), "depthwise", "algorithm 'depthwise' cannot run this operation"),
    ]
    if has_int8():
        native.add({**pool, "padding": (1,) * 4, "type": "int8", "quantization": (9 / 255, 0)})
        said = "a depthwise convolution reads float32 or bfloat16"
        cases.append((depthwise("x", 4, ["q"], type="int8"), "", said))
    for fields, algorithm, said in cases:
        read = fields["in_channels"] // fields["groups"]
        weight = np.ones((fields["out_channels"], read, 1, 1), np.float32)
        with pytest.raises(ValueError, match=f"^x: {said}$"):
            native.add(fields, weight, algorithm=algorithm)
    with pytest.raises(ValueError, match=r"^x: weight has the wrong shape$"):
        native.add(depthwise("x", 4, ["m"]), np.ones((4, 4, 1, 1), np.float32))
    native.add(depthwise("x", 4, ["m"]), np.ones((4, 1, 1, 1), np.float32))


@pytest.mark.parametrize("groups", [2, 3, 6])
@kinds
def test_convolutions_with_groups(isa: str, precision: Any, groups: int) -> None:
    """Those that are no depthwise ones get zeros where an output channel does not read."""
    same = (1, 1, 1, 1)
    graph = Graph(
        Shape("image", 3, 20, 24),
        (
            Operation("n", ("image",), Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
            Operation("a", ("n",), Conv(6, (3, 3), ("a",), 2, same)),
            Operation("b", ("a",), Conv(12, (3, 3), ("b",), 1, same, groups=groups)),
            Operation("c", ("b",), Conv(12, (3, 3), ("c",), 1, same, groups=12)),
        ),
    )
    tensors = {"a.weight": integers(6, 3, 3, 3), "a.bias": integers(6)}
    tensors |= {"b.weight": integers(12, 6 // groups, 3, 3, seed=1), "b.bias": integers(12)}
    tensors |= {"c.weight": integers(12, 1, 3, 3, seed=1), "c.bias": integers(12)}
    native = NativeEngine(isa, 2, False, precision, (20, 24))
    for made in operations(graph, plan_formats(graph, precision, {}), tensors):
        assert not isinstance(made.weight, StoredTensor)
        native.add(made.fields, made.weight, made.bias)
    assert [row[1] for row in native.convolutions][2] == "depthwise"
    native.plan(20, 24)
    x = np.abs(integers(6, 10, 12))
    (b,) = native.run_between({"a": x}, ["b"])
    weight, bias = torch.from_numpy(tensors["b.weight"]), torch.from_numpy(tensors["b.bias"])
    expected = F.conv2d(torch.from_numpy(x), weight, bias, padding=1, groups=groups)
    assert close(b, expected, precision)


# --------------------------------------------- group norm, activation, mean, multiplication


def of_threads(
    isa: str, precision: str, channels: int, fields: Fields, **tensors: F32
) -> list[F32]:
    """Results of an operation on all maps, equal to the bit for any number of threads."""
    results = []
    for threads in (1, 2, 3):
        native = with_map(isa, precision, channels, threads)
        native.add(fields, tensors.get("weight"), tensors.get("bias"))
        results.append([native.run_operation("x", [x]) for x in maps(channels)])
    for first, *others in zip(*results, strict=True):
        assert all(np.array_equal(first, other) for other in others)
    return results[0]


@activations
@kinds
def test_group_norm(isa: str, precision: str, activation: str) -> None:
    for channels, groups in ((1, 1), (3, 1), (3, 3), (16, 4), (20, 4), (21, 7)):
        scale, offset = integers(channels, seed=1, per=4), integers(channels, seed=2, per=4)
        fields = {"name": "x", "kind": "group_norm", "inputs": ["m"], "groups": groups}
        fields |= {"eps": 1e-3, "activation": activation}
        got = of_threads(isa, precision, channels, fields, weight=scale, bias=offset)
        tensors = torch.from_numpy(scale), torch.from_numpy(offset)
        for value, x in zip(got, maps(channels), strict=True):
            expected = torch.group_norm(torch.from_numpy(x), groups, *tensors, 1e-3)
            assert close(value, ACTIVATIONS[activation](expected), precision, 1e-5)


@pytest.mark.parametrize("isa", available_isas())
def test_group_norm_of_values_far_from_zero(isa: str) -> None:
    """A variance as the difference of two float32 sums would be noise here."""
    native = with_map(isa, "f32", 6, 2)
    fields = {"name": "x", "kind": "group_norm", "inputs": ["m"], "groups": 2}
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    native.add({**fields, "eps": 0.0, "activation": "none"}, ones, zeros)
    x = 4096 + np.random.default_rng(0).standard_normal((1, 6, 30, 33)).astype(np.float32)
    parts = x.astype(np.float64).reshape(2, -1)
    expected = (parts - parts.mean(1, keepdims=True)) / parts.std(1, keepdims=True)
    got = native.run_operation("x", [x])
    assert np.abs(got - expected.reshape(x.shape)).max() < 1e-3  # 4096 times 2**-24, some times


@activations
@kinds
def test_activations_of_maps(isa: str, precision: str, activation: str) -> None:
    fields = {"name": "x", "kind": "activate", "inputs": ["m"], "activation": activation}
    for channels in CHANNELS:
        got = of_threads(isa, precision, channels, fields)
        for value, x in zip(got, maps(channels), strict=True):
            assert close(value, ACTIVATIONS[activation](torch.from_numpy(x)), precision)


@kinds
def test_the_mean_of_a_map(isa: str, precision: str) -> None:
    fields = {"name": "x", "kind": "mean", "inputs": ["m"]}
    for channels in CHANNELS:
        got = of_threads(isa, precision, channels, fields)
        for value, x in zip(got, maps(channels), strict=True):
            assert close(value, torch.from_numpy(x).mean((2, 3), keepdim=True), precision)


@kinds
def test_multiplication_of_channels(isa: str, precision: str) -> None:
    """In a graph, as squeeze and excitation: of a value that others read, and of the last use."""
    for channels, threads in itertools.product(CHANNELS, (1, 2, 3)):
        native = with_map(isa, precision, channels, threads)
        native.add({"name": "s", "kind": "mean", "inputs": ["m"]})
        weight = integers(channels, channels, 1, 1, seed=1)
        few = max(channels // 4, 1)
        squeeze = conv("a", ["s"], channels, few, activation="relu", type=precision)
        native.add(squeeze, weight[:few], integers(few, seed=2))
        excite = conv("b", ["a"], few, channels, activation="hardsigmoid", type=precision)
        native.add(excite, weight[:, :few].copy(), integers(channels, seed=3))
        native.add({"name": "x", "kind": "multiply", "inputs": ["m", "b"]})
        again = conv("y", ["x", "m"], channels, channels, type=precision)
        native.add(again, weight, None)
        native.add({"name": "z", "kind": "multiply", "inputs": ["y", "b"]})
        for x in maps(channels):
            native.plan(x.shape[2] * 2, x.shape[3] * 2)
            names = ["s", "b", "x", "y", "z"]
            s, b, product, y, z = native.run_between({"m": x[0]}, names)
            assert close(s, torch.from_numpy(x[0]).mean((1, 2), keepdim=True), precision)
            assert b.min() >= 0 and b.max() <= 1 and b.shape == (channels, 1, 1)
            assert close(product, torch.from_numpy(x[0] * b), precision)
            assert close(z, torch.from_numpy(y * b), precision)
            (alone,) = native.run_between({"m": x[0]}, ["z"])
            assert np.array_equal(alone, z)


@pytest.mark.parametrize("block", [2, 3])
@kinds
def test_channels_that_become_cells(isa: str, precision: str, block: int) -> None:
    """Exactly; and what follows reads zeros around the map."""
    cells = block**2
    for channels, threads in itertools.product((2, 6), (1, 3)):
        native = with_map(isa, precision, channels * cells, threads)
        native.add({"name": "x", "kind": "depth_to_space", "inputs": ["m"], "block": block})
        weight = integers(4, channels, 3, 3, seed=1)
        native.add(conv("y", ["x"], channels, 4, kernel=(3, 3), padding=(1, 1, 1, 1)), weight, None)
        for x in maps(channels * cells):
            native.plan(x.shape[2] * 2, x.shape[3] * 2)
            got, after = native.run_between({"m": x[0]}, ["x", "y"])
            # PyTorch has the channels of the output outermost.
            turned = x.reshape(cells, channels, *x.shape[2:]).swapaxes(0, 1)
            parts = torch.from_numpy(np.ascontiguousarray(turned)).reshape(x.shape)
            expected = F.pixel_shuffle(parts, block)
            assert np.array_equal(got, expected[0].numpy())
            assert np.array_equal(after, F.conv2d(expected, torch.from_numpy(weight), padding=1)[0])


def test_what_operations_on_maps_refuse() -> None:
    native = with_map("", "f32", 6)
    native.add({"name": "one", "kind": "mean", "inputs": ["m"]})
    native.add(conv("few", ["one"], 6, 5), np.ones((5, 6, 1, 1), np.float32))
    norm = {"name": "x", "kind": "group_norm", "inputs": ["m"], "groups": 2, "eps": 0.1}
    norm |= {"activation": "none"}
    six = np.ones(6, np.float32)
    cases: list[tuple[Fields, list[Any], str]] = [
        (norm, [], "needs scales and offsets"),
        (norm, [six], "needs scales and offsets"),
        (norm, [six[:5], six], "needs a scale and an offset for each channel"),
        (norm, [six, six[:5]], "needs a scale and an offset for each channel"),
        (norm, [six[:, None], six], r"weight is no float32 array \[channels\]"),
        ({**norm, "groups": 4}, [six, six], "has channels that its groups do not divide"),
        ({**norm, "eps": -1.0}, [six, six], "eps is negative"),
        ({"kind": "multiply", "inputs": ["m", "m"]}, [], "needs one factor for each channel"),
        ({"kind": "multiply", "inputs": ["m", "few"]}, [], "needs one factor for each channel"),
        ({"kind": "multiply", "inputs": ["m"]}, [], r"has 1 inputs, expected 2"),
        ({"kind": "activate", "inputs": ["m"], "activation": "x"}, [], "activation: unknown .*"),
        (
            {"kind": "depth_to_space", "inputs": ["m"], "block": 2},
            [],
            "the channels are .* divisible by 4",
        ),
        (
            {"kind": "depth_to_space", "inputs": ["image"], "block": 2},
            [],
            "channels of .* become cells",
        ),
    ]
    if has_int8():
        pool = {"name": "q", "kind": "max_pool", "inputs": ["m"], "kernel": 3, "stride": 2}
        native.add({**pool, "padding": (1,) * 4, "type": "int8", "quantization": (9 / 255, 0)})
        said = "runs in float32 and bfloat16 only"
        cases.append(({**norm, "inputs": ["q"]}, [six, six], said))
        cases.append(({"kind": "mean", "inputs": ["q"]}, [], said))
        cases.append(({"kind": "activate", "inputs": ["q"], "activation": "relu"}, [], said))
    for fields, given, said in cases:
        with pytest.raises(ValueError, match=f"^x: {said}$"):
            native.add({"name": "x", **fields}, *given)
    native.add(norm, six, six)
