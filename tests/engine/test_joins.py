"""Maps that are joined, added, pooled, shuffled: against torch, in both types, and in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsedet._native import NativeEngine, available_isas, has_bfloat16

torch = pytest.importorskip("torch")
F = torch.nn.functional

F32 = NDArray[np.float32]
Fields = dict[str, Any]
SIZES = [(1, 1), (3, 7), (2, 16), (5, 17), (20, 20)]
KINDS = [
    (isa, precision)
    for isa in available_isas()
    for precision in ("f32", "bf16")
    if precision == "f32" or has_bfloat16(isa)
]
kinds = pytest.mark.parametrize(("isa", "precision"), KINDS)


def conv(name: str, source: str, ins: int, out: int, **changes: Any) -> Fields:
    fields: Fields = {"name": name, "kind": "conv", "inputs": [source], "in_channels": ins}
    fields |= {"out_channels": out, "kernel": (1, 1), "padding": (0, 0, 0, 0), "stride": 1}
    fields |= {"dilation": 1, "groups": 1, "activation": "none", "type": "f32"}
    return {**fields, **changes}


class JoinedNetwork:
    """A graph of the engine, and the same in torch, built side by side.

    Values are small integers, so that sums are exact.
    """

    def __init__(self, isa: str = "", precision: str = "f32", threads: int = 1) -> None:
        self.native = NativeEngine(isa, threads, False, precision, (12, 20))
        self.precision, self.seed = precision, 0
        pixels = np.random.default_rng(0).integers(-2, 3, (12, 20, 3)).astype(np.float32)
        self.pixels = pixels
        start: Fields = {"name": "n", "kind": "normalise", "inputs": ["image"], "type": "f32"}
        self.native.add({**start, "mean": (0.0,) * 3, "std": (1.0,) * 3})
        self.values: dict[str, Any] = {
            "n": torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
        }

    def conv(self, name: str, source: str, out: int, residual: str = "", **changes: Any) -> None:
        x = self.values[source]
        self.seed += 1
        kernel = changes.get("kernel", (1, 1))
        shape = (out, x.shape[1], *kernel)
        weight = np.random.default_rng(self.seed).integers(-1, 2, shape).astype(np.float32)
        fields = conv(name, source, x.shape[1], out, **changes)
        fields["inputs"] += [residual] if residual else []
        self.native.add(fields, weight)
        y = F.conv2d(x, torch.from_numpy(weight), padding=kernel[0] // 2)
        self.values[name] = y + self.values[residual] if residual else y

    def add(self, name: str, kind: str, inputs: list[str], value: Any, **fields: Any) -> None:
        self.native.add({"name": name, "kind": kind, "inputs": inputs, **fields})
        self.values[name] = value

    def concat(self, name: str, *inputs: str) -> None:
        value = torch.cat([self.values[i] for i in inputs], 1)
        self.add(name, "concat", list(inputs), value)

    def slice(self, name: str, source: str, first: int, count: int) -> None:
        part = self.values[source][:, first : first + count]
        self.add(name, "slice", [source], part, first=first, channels=count)

    def check(self, *wanted: str, copied: int | None = None) -> None:
        """The wanted values are right, twice: memory is used again."""
        self.native.plan(12, 20)
        for _ in range(2):
            found = self.native.run_between({"image": self.pixels}, list(wanted))
            for name, got in zip(wanted, found, strict=True):
                assert np.array_equal(np.asarray(got), self.values[name][0].numpy()), name
        if copied is not None:
            assert self.native.copied_bytes == copied


def test_what_is_joined_lies_side_by_side() -> None:
    net = JoinedNetwork()
    net.conv("a", "n", 5, kernel=(3, 3), padding=(1, 1, 1, 1))
    net.conv("b", "n", 3)
    net.concat("j", "a", "b")
    net.conv("y", "j", 4, kernel=(5, 5), padding=(2, 2, 2, 2))  # needs a border around both
    net.check("y", "j", "a", copied=0)


def test_slices_of_one_value_are_joined_in_place_with_what_is_made_of_them() -> None:
    """YOLOv8's stage: two halves, and blocks whose residual is one of them."""
    net = JoinedNetwork()
    net.conv("whole", "n", 8)
    net.slice("a", "whole", 0, 4)
    net.slice("b", "whole", 4, 4)
    net.conv("c", "b", 4, "b", kernel=(3, 3), padding=(1, 1, 1, 1))
    net.conv("d", "c", 4, "c", kernel=(3, 3), padding=(1, 1, 1, 1))
    net.concat("j", "a", "b", "c", "d")
    net.conv("y", "j", 3)
    net.check("y", "j", copied=0)


def test_growing_joins_lie_in_the_largest() -> None:
    """DenseNet joins all earlier maps again and again."""
    net = JoinedNetwork()
    net.conv("a", "n", 4)
    names = ["a"]
    for i in range(3):
        source = names[0]
        if i:
            net.concat(f"j{i}", *names)
            source = f"j{i}"
        net.conv(f"c{i}", source, 2, kernel=(3, 3), padding=(1, 1, 1, 1))
        names.append(f"c{i}")
    net.concat("j", *names)
    net.conv("y", "j", 3)
    net.check("y", "j", "j2", copied=0)


def test_what_is_in_two_joins_or_in_one_twice_is_copied() -> None:
    net = JoinedNetwork()
    net.conv("a", "n", 4)
    net.conv("b", "n", 2)
    net.concat("j", "a", "b")
    net.concat("k", "b", "a")
    net.concat("l", "a", "a")
    net.conv("y", "j", 3)
    net.conv("z", "k", 3)
    net.check("y", "z", "j", "k", "l")
    assert net.native.copied_bytes > 0


def test_parts_of_a_value_that_is_not_joined_as_a_whole_are_copied() -> None:
    net = JoinedNetwork()
    net.conv("a", "n", 6)
    net.slice("s", "a", 2, 3)
    net.conv("b", "n", 2)
    net.concat("j", "b", "s")
    net.conv("y", "a", 3)
    net.check("y", "j", copied=3 * 12 * 20 * 4)


def test_a_residual_that_lies_otherwise_than_the_output() -> None:
    net = JoinedNetwork()
    net.conv("a", "n", 4)
    net.conv("b", "a", 4, "a", kernel=(3, 3), padding=(1, 1, 1, 1))  # lies in j, "a" does not
    net.conv("c", "n", 2)
    net.concat("j", "b", "c")
    net.conv("y", "a", 2)
    net.check("y", "j", copied=0)


def test_a_join_of_joins_and_maps_of_other_operations() -> None:
    net = JoinedNetwork()
    net.conv("a", "n", 4)
    pool = {"kernel": 5, "stride": 1, "padding": (2, 2, 2, 2), "type": "f32"}
    value = F.max_pool2d(net.values["a"], 5, 1, 2)
    net.add("p", "max_pool", ["a"], value, negative=True, **pool)
    net.concat("j", "a", "p")
    net.conv("c", "n", 3)
    net.concat("k", "j", "c")
    net.add("r", "add", ["k", "k"], net.values["k"] * 2, activation="none")
    net.concat("l", "r", "k")
    net.check("l", "k", copied=0)


def test_what_lies_beside_pixels_that_pointwise_layers_read_goes_nowhere() -> None:
    """There are no zeros around such maps, but the values of earlier maps and images."""
    net = JoinedNetwork()
    net.conv("a", "n", 8)
    net.conv("b", "a", 8)
    net.slice("s", "b", 0, 4)
    net.slice("t", "b", 4, 4)
    net.conv("c", "t", 4)
    net.concat("j", "s", "c")
    net.add("h", "shuffle", ["j"], F.channel_shuffle(net.values["j"], 2), groups=2)
    net.conv("d", "h", 6, kernel=(3, 3), padding=(1, 1, 1, 1))
    net.conv("e", "d", 5)
    net.add("r", "resize", ["e"], F.interpolate(net.values["e"], scale_factor=2.0), factor=2)
    net.conv("f", "r", 4, kernel=(5, 5), padding=(2, 2, 2, 2))
    mean = net.values["j"].double().mean((2, 3), keepdim=True).float()
    net.add("m", "mean", ["j"], mean)
    net.native.plan(12, 20)
    net.native.run_between({"image": net.pixels * 64 + 5}, ["f", "m"])
    net.check("f", "m", "d", "h", "r")


def run(isa: str, precision: str, fields: Fields, x: F32, *more: Any) -> list[F32]:
    """An operation on a map, with one and three threads."""
    found = []
    for threads in (1, 3):
        native = NativeEngine(isa, threads, False, precision, (20, 24))
        start: Fields = {"name": "n", "kind": "normalise", "inputs": ["image"], "type": precision}
        native.add({**start, "mean": (0.0,) * 3, "std": (1.0,) * 3})
        weight = np.zeros((x.shape[1], 3, 1, 1), np.float32)
        native.add(conv("m", "n", 3, x.shape[1], stride=2, type=precision), weight)
        native.add(fields, *more)
        inputs = [x] * len(fields["inputs"])
        found.append(native.run_operation("x", inputs))
    assert np.array_equal(found[0], found[1])
    return found


def close(got: F32, expected: Any, precision: str) -> bool:
    limit = 1e-6 if precision == "f32" else 2.0**-8
    wanted = expected.numpy()
    assert got.shape == wanted.shape
    return bool((np.abs(got - wanted) <= limit * np.maximum(np.abs(wanted), 1)).all())


def maps(channels: int) -> list[F32]:
    numbers = np.random.default_rng(1)
    return [
        (numbers.integers(-16, 17, (1, channels, *size)) / 4).astype(np.float32) for size in SIZES
    ]


@pytest.mark.parametrize("channels", [3, 8])
@kinds
def test_sums_and_affine_maps(isa: str, precision: str, channels: int) -> None:
    scale, offset = np.linspace(-2, 2, channels), np.linspace(1, 3, channels)
    scale, offset = scale.astype(np.float32), offset.astype(np.float32)
    for x in maps(channels):
        y = torch.from_numpy(x)
        fields = {"name": "x", "kind": "add", "inputs": ["m", "m"], "activation": "relu"}
        assert close(run(isa, precision, fields, x)[0], (y + y).relu(), precision)
        fields = {"name": "x", "kind": "affine", "inputs": ["m"], "activation": "relu6"}
        got = run(isa, precision, fields, x, scale, offset)[0]
        spread = [torch.from_numpy(n).view(-1, 1, 1) for n in (scale, offset)]
        assert close(got, F.relu6(y * spread[0] + spread[1]), precision)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 1, 1), (5, 1, 2), (3, 2, 1), (3, 2, 0)]
)
@kinds
def test_pools_of_any_window(
    isa: str, precision: str, kernel: int, stride: int, padding: int
) -> None:
    base: Fields = {"name": "x", "inputs": ["m"], "kernel": kernel, "stride": stride}
    base["padding"] = (padding,) * 4
    for x in maps(5):
        if min(x.shape[2:]) + 2 * padding < kernel:
            continue
        y = torch.from_numpy(x) - 9  # zeros around the map would be the largest
        largest = {**base, "kind": "max_pool", "type": precision}
        got = run(isa, precision, {**largest, "negative": True}, y.numpy())[0]
        assert close(got, F.max_pool2d(y, kernel, stride, padding), precision)
        for counted in (False, True):
            mean = {**base, "kind": "average_pool", "count_padding": counted}
            expected = F.avg_pool2d(y, kernel, stride, padding, count_include_pad=counted)
            assert close(run(isa, precision, mean, y.numpy())[0], expected, precision)


@kinds
def test_shuffles_and_factors(isa: str, precision: str) -> None:
    for channels, groups in ((6, 2), (6, 3), (8, 2)):
        for x in maps(channels):
            y = torch.from_numpy(x)
            fields = {"name": "x", "kind": "shuffle", "inputs": ["m"], "groups": groups}
            got = run(isa, precision, fields, x)[0]
            assert close(got, F.channel_shuffle(y, groups), precision)
            fields = {"name": "x", "kind": "resize", "inputs": ["m"], "factor": groups}
            expected = F.interpolate(y, scale_factor=float(groups), mode="nearest")
            assert close(run(isa, precision, fields, x)[0], expected, precision)


@pytest.mark.parametrize("isa", available_isas())
def test_attention(isa: str) -> None:
    for x in maps(24):
        heads, key = 2, 3
        fields = {"name": "x", "kind": "attention", "inputs": ["m"], "heads": heads, "key": key}
        got = run(isa, "f32", {**fields, "score_scale": 0.5}, x)[0]
        parts = torch.from_numpy(x).view(1, heads, 12, -1)
        q, k, v = torch.split(parts, [key, key, 6], 2)
        shares = (q.transpose(2, 3) @ k * 0.5).softmax(3)
        expected = (v @ shares.transpose(2, 3)).reshape(1, 12, *x.shape[2:])
        assert np.abs(got - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("isa", available_isas())
def test_what_an_operation_scribbles_on_is_no_border_of_the_next_image(isa: str) -> None:
    """Attention's scratch memory lies where an earlier map lay, whose border had been made zero."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 24, 24, 3, 3)).astype(np.float32)

    def built() -> NativeEngine:
        native = NativeEngine(isa, 1, False, "f32", (20, 24))
        start: Fields = {"name": "n", "kind": "normalise", "inputs": ["image"], "type": "f32"}
        native.add({**start, "mean": (0.0,) * 3, "std": (1.0,) * 3})
        for name, source, weight in (("a", "n", weights[0, :, :3]), ("b", "a", weights[1])):
            fields = conv(name, source, weight.shape[1], 24, kernel=(3, 3), padding=(1,) * 4)
            native.add(fields, np.ascontiguousarray(weight))
        attention = {"name": "x", "kind": "attention", "inputs": ["b"], "heads": 2, "key": 3}
        native.add({**attention, "score_scale": 0.01})
        native.plan(20, 24)
        return native

    images = rng.integers(0, 256, (3, 20, 24, 3)).astype(np.float32)
    one = built()
    for image in images:
        (again,) = one.run_between({"image": image}, ["x"])
        (fresh,) = built().run_between({"image": image}, ["x"])
        assert np.array_equal(again, fresh)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@kinds
def test_a_residual_after_the_activation(isa: str, precision: str, activation: str) -> None:
    weight = np.random.default_rng(0).integers(-1, 2, (6, 6, 1, 1)).astype(np.float32)
    fields = conv("x", "m", 6, 6, activation=activation, residual_last=True, type=precision)
    fields["inputs"] = ["m", "m"]
    for x in maps(6):
        y = torch.from_numpy(x)
        expected = getattr(F, activation)(F.conv2d(y, torch.from_numpy(weight))) + y
        assert close(run(isa, precision, fields, x, weight)[0], expected, precision)
    native = NativeEngine(isa, 1, False, "f32", (20, 24))
    native.add(
        {
            "name": "n",
            "kind": "normalise",
            "inputs": ["image"],
            "type": "f32",
            "mean": (0.0,) * 3,
            "std": (1.0,) * 3,
        }
    )
    with pytest.raises(ValueError, match="y: cannot add a tensor after its activation"):
        native.add(
            conv("y", "n", 3, 3, activation="hardswish", residual_last=True),
            np.ones((3, 3, 1, 1), np.float32),
        )
