"""int8: operations to the bit, clipping thresholds, their file, and the command.

With powers of two as scales and integers as weights, every step is exact in float64: int8 results
equal torch's, rounded once, to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from helpers.parts import EngineParts
from helpers.small import SMALL
from helpers.small import picture as image
from numpy.typing import NDArray

from sparsedet import Detector, _native, load_model
from sparsedet.cli import main
from sparsedet.engine import Engine, choose_precision
from sparsedet.engine.calibrate import calibrate, quantize_file
from sparsedet.engine.histogram import _clipping_threshold
from sparsedet.engine.precision import FormatRates
from sparsedet.errors import InputError
from sparsedet.images.letterbox import to_network_input
from sparsedet.model.c4 import build_graph
from sparsedet.model.config import ModelConfig
from sparsedet.model.file import save_model
from sparsedet.model.graph import Conv, MaxPool, RoiAlign, Shape
from sparsedet.model.int8_ranges import int8_layers
from sparsedet.testing import random_tensors

INT8_ISAS = [isa for isa in _native.available_isas() if _native.has_int8(isa)]
needs_int8 = pytest.mark.skipif(len(INT8_ISAS) < 2, reason="this CPU has no VNNI")


def network_input_of(seed: int = 0) -> NDArray[np.uint8]:
    return to_network_input(image(seed=seed), SMALL.input_height, SMALL.input_width)[0]


def calibrated(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return calibrate(SMALL, tensors, [network_input_of(seed) for seed in range(3)], threads=1)


# ------------------------------------------------------------------- against torch, to the bit


def whole_numbers(config: ModelConfig) -> dict[str, NDArray[Any]]:
    """Weights that int8 keeps as they are: multiples of 2^-9, each row's largest 127 of them."""
    rng = np.random.default_rng(3)
    tensors = {}
    for name, tensor in random_tensors(config, 0.6).items():
        whole = np.where(tensor != 0, rng.integers(-126, 127, tensor.shape), 0)
        if name.endswith(".weight"):
            whole.reshape(len(whole), -1)[:, 0] = 127
            whole = whole / 512
        tensors[name] = whole.astype(np.float32)
    return tensors


class QuantizationSteps:
    """What a byte's step is worth for each tensor: powers of two, about as large as whole numbers
    make the outputs."""

    def __init__(self, config: ModelConfig) -> None:
        graph = build_graph(config)
        # RoIAlign keeps the steps of its map.
        self.same = {o.name: o.inputs[0] for o, _ in graph.of_kind(RoiAlign)}
        self.relu: dict[str, bool] = {}
        self.steps: dict[str, float] = {}
        for operation in graph.operations:
            name, attributes = operation.name, operation.attributes
            if name in int8_layers(config):
                assert isinstance(attributes, Conv | MaxPool)
                self.relu[name] = isinstance(attributes, MaxPool) or attributes.activation == "relu"
                self.steps[name] = {"pool": 0.25, "shortcut": 2.0}.get(name.split(".")[-1], 1.0)

    @property
    def clipping_thresholds(self) -> dict[str, float]:
        return {name: s * (255 if self.relu[name] else 127) for name, s in self.steps.items()}

    def values(self, name: str, shape: tuple[int, ...], rng: Any) -> NDArray[np.float32]:
        """Random values of a tensor."""
        name = self.same.get(name, name)
        if name not in self.steps:
            return np.asarray(rng.integers(0, 41, shape), np.float32)
        low, high = (0, 256) if self.relu[name] else (-128, 128)
        return np.asarray(rng.integers(low, high, shape) * self.steps[name], np.float32)

    def rounded(self, name: str, exact: Any) -> Any:
        """A torch tensor as its bytes hold it."""
        if name not in self.steps:
            return exact.float()
        low, high = (0, 255) if self.relu[name] else (-128, 127)
        return ((exact / self.steps[name]).round().clamp(low, high) * self.steps[name]).float()


def check_exact(config: ModelConfig, isa: str, sizes: Any) -> None:
    import torch
    from helpers.engine import by_torch, unhoisted, windows

    graph = unhoisted(config)
    tensors, steps, rng = whole_numbers(config), QuantizationSteps(config), np.random.default_rng(1)
    engine = Engine(
        config,
        tensors,
        threads=1,
        isa=isa,
        graph=graph,
        precision="int8",
        clipping_thresholds=steps.clipping_thresholds,
    ).native
    for operation, _ in windows(graph):
        name, (source, *residual) = operation.name, operation.inputs
        shape = graph.shapes[source]
        for batch, height, width in sizes(shape):
            x = steps.values(source, (batch, shape.channels, height, width), rng)
            exact = torch.from_numpy(x).double()
            expected = by_torch(operation, tensors, exact)
            got = engine.run_operation(name, [x])
            assert np.array_equal(got, steps.rounded(name, expected)), (name, x.shape)
            assert got.size < 500 or len(np.unique(got)) > 20  # not all zero or cut off
            for other in residual:
                y = steps.values(other, tuple(expected.shape), rng)
                expected = by_torch(operation, tensors, exact, torch.from_numpy(y).double())
                got = engine.run_operation(name, [x, y])
                assert np.array_equal(got, steps.rounded(name, expected)), (
                    name,
                    "with a residual",
                    x.shape,
                )


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("family", ["r101-c4", "r101-c4-detectron2", "r50half-c4"])
@pytest.mark.usefixtures("one_torch_thread")
def test_operations(family: str, isa: str) -> None:
    from helpers import engine as helper

    check_exact(helper.small(family), isa, helper.own_size)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.usefixtures("one_torch_thread")
def test_several_blocks_of_columns_and_chunks_of_rows(isa: str) -> None:
    from helpers import engine as helper

    config = helper.small(
        "r101-c4",
        blocks=(1, 1, 1, 1),
        bottleneck_channels=(150, 20, 20, 150),
        stage_channels=(421, 20, 600, 421),
    )

    def size(shape: Shape) -> list[tuple[int, ...]]:
        batch = 3 if shape.domain == "rois" else 1
        return [(batch, 1, 1) if shape.size == (1, 1) else (batch, 7, 9)]

    check_exact(config, isa, size)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("hoist", [True, False])
def test_stages_are_near_float32(small_model: Path, hoist: bool, isa: str) -> None:
    tensors = load_model(small_model).tensors
    thresholds, network_input = calibrated(tensors), network_input_of()
    exact = EngineParts(Engine(SMALL, tensors, threads=2, isa=isa, hoist=hoist))
    engine = EngineParts(
        Engine(
            SMALL,
            tensors,
            threads=2,
            isa=isa,
            hoist=hoist,
            precision="int8",
            clipping_thresholds=thresholds,
        )
    )
    features = exact.features(network_input)

    def near(got: NDArray[Any], expected: NDArray[Any], share: float) -> None:
        assert (
            got.shape == expected.shape
            and np.abs(got - expected).max() < share * np.abs(expected).max()
        )

    near(engine.features(network_input), features, 0.06)
    boxes = np.array([[3, 5, 60, 50], [0, 0, 96, 64], [40, 20, 44, 60]], dtype=np.float32)
    pairs = zip(engine.roi_head(features, boxes), exact.roi_head(features, boxes), strict=True)
    for got, expected in pairs:
        near(got, expected, 0.1)


@needs_int8
def test_threads_and_forks_agree_to_the_bit(small_model: Path) -> None:
    tensors = load_model(small_model).tensors
    thresholds, network_input = calibrated(tensors), network_input_of()
    engines = [
        Engine(SMALL, tensors, threads=n, precision="int8", clipping_thresholds=thresholds)
        for n in (1, 2, 3)
    ]
    rows = [engine.run(network_input) for engine in (*engines, engines[1].fork())]
    assert len(rows[0]) and all(np.array_equal(r, rows[0]) for r in rows)


# ---------------------------------------------------------------------- clipping thresholds


def squared_error(x: NDArray[np.float64], top: float, steps: int) -> float:
    step = top / steps
    return float(np.sum((np.minimum(np.round(x / step), steps) * step - x) ** 2))


@pytest.mark.parametrize("steps", [127, 255])
@pytest.mark.parametrize("kind", ["uniform", "normal", "outlier"])
def test_a_clipping_threshold_costs_the_least(kind: str, steps: int) -> None:
    rng = np.random.default_rng(5)
    x = np.abs(rng.uniform(0, 3, 40000) if kind == "uniform" else rng.normal(0, 1, 40000))
    if kind == "outlier":
        x[0] = 40
    bits = x.astype(np.float32).view(np.int32) >> 18
    threshold = _clipping_threshold(np.bincount(bits, minlength=1 << 13), steps)
    best = min(squared_error(x, top, steps) for top in np.linspace(0.5, x.max(), 400))
    assert squared_error(x, threshold, steps) < 1.1 * best


def test_clipping_thresholds_follow_their_layer(small_model: Path) -> None:
    """Twice a convolution's weights and biases: twice its output and its range, no other one."""
    tensors: dict[str, NDArray[Any]] = dict(load_model(small_model).tensors)
    before = calibrated(tensors)
    for name in ("rpn.conv.weight", "rpn.conv.bias"):
        tensors[name] = 2 * tensors[name]
    for name in ("rpn.objectness.weight", "rpn.deltas.weight"):
        tensors[name] = tensors[name] / 2
    after = calibrated(tensors)
    assert list(before) == int8_layers(SMALL)
    assert after.pop("rpn.conv") == pytest.approx(2 * before.pop("rpn.conv"))
    assert after == before
    assert _clipping_threshold(np.bincount([0], minlength=1 << 13), 255) == 0.0


def test_no_image(small_model: Path) -> None:
    with pytest.raises(InputError, match="no image"):
        calibrate(SMALL, load_model(small_model).tensors, [])


# ------------------------------------------------------------------------------ file, command


@pytest.fixture
def quantized(small_model: Path, photo: Path, tmp_path: Path) -> Path:
    out, folder = tmp_path / "int8.safetensors", str(photo.parent)
    assert main(["quantize", str(small_model), "--images", folder, "--output", str(out)]) == 0
    return out


def test_the_file_keeps_its_weights(quantized: Path, small_model: Path) -> None:
    model, before = load_model(quantized), load_model(small_model)
    assert before.clipping_thresholds is None and model.clipping_thresholds is not None
    assert (
        list(model.clipping_thresholds) == int8_layers(SMALL)
        and min(map(float, model.clipping_thresholds.values())) > 0  # type: ignore[arg-type]
    )
    assert model.storage_dtype == before.storage_dtype and model.config == before.config
    assert model.provenance == {**before.provenance, "int8": {"photographs": 1}}

    def parts(path: Path) -> tuple[Any, bytes]:
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        return json.loads(data[8:end]), data[end:]

    (new, new_bytes), (old, old_bytes) = parts(quantized), parts(small_model)
    assert new_bytes == old_bytes  # and an older reader finds all that it knows:
    added = set(new.pop("__metadata__")) - set(old.pop("__metadata__"))
    assert added == {"int8_ranges"} and new == old


@needs_int8
def test_detect_and_plan(quantized: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact, fast = Detector.load(quantized), Detector.load(quantized, precision="int8")
    a, b = exact(image()), fast(image())
    assert len(a) and len(b) and abs(a.scores[0] - b.scores[0]) < 0.1
    command = ["detect", str(photo), "--no-save", "--model", str(quantized)]
    assert main([*command, "--precision", "int8"]) == 0
    capsys.readouterr()
    assert main(["info", str(quantized), "--operations", "--precision", "int8"]) == 0
    out = capsys.readouterr().out
    assert " elements " in out and ", int8, " in out


def test_refusals(
    small_model: Path, photo: Path, quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object, code: int = 1) -> str:
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    detect = ("detect", photo, "--no-save", "--isa", "scalar", "--precision", "int8", "--model")
    assert "sparsedet quantize" in refused(*detect, small_model)
    folder = photo.parent
    new, empty = folder.parent / "new.safetensors", folder.parent / "empty"
    empty.mkdir()
    again = ("quantize", small_model, "--images", folder, "--output")
    assert "exists already" in refused(*again, quantized)
    assert "is not a folder" in refused(*again, folder / "none" / "x.safetensors")
    assert "at least 1" in refused(*again, new, "--calibration-images", 0, code=2)
    assert "holds no images" in refused("quantize", small_model, "--images", empty, "--output", new)
    assert not new.exists()


@pytest.mark.parametrize("cache", [False, True])
def test_fastest_is_int8_where_the_model_has_thresholds(
    small_model: Path,
    quantized: Path,
    cache: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    isa = next((isa for isa in INT8_ISAS if isa != "scalar"), "scalar")
    rates = {(_native.cpu_vendor(), isa): FormatRates(bf16=0.5, int8=3.0)}
    monkeypatch.setattr("sparsedet.engine.precision._RATES", rates)
    options: dict[str, Any] = {
        "isa": isa,
        "threads": 1,
        "cache": tmp_path / "c" if cache else False,
    }
    fastest = Detector.load(quantized, precision="fastest", **options)
    assert fastest.engine.precision == "int8" and "3 times f32's speed" in fastest.precision_reason
    without = Detector.load(small_model, precision="fastest", **options)
    assert without.engine.precision == "f32" and "no clipping" in without.precision_reason
    full = Detector.load(quantized, **options)
    assert full.engine.precision == "f32" and full.precision_reason.startswith("full: ")


def test_a_bad_image_stops_or_is_left_out(
    small_model: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = photo.parent.parent / "skipped.safetensors"
    bad = [photo.with_name("aa.png"), photo.with_name("zz.png")]
    for path in bad:
        path.write_bytes(photo.read_bytes()[:99])
    given = [*map(str, ("quantize", small_model, "--images", photo.parent, "--output", new))]
    capsys.readouterr()
    assert main(given) == 1 and not new.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ".png: " in error and "1 more of 3 images are bad" in error
    assert main([*given, "--bad-images", "skip"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("warning: left out: " in line for line in lines)
    assert load_model(new).provenance["int8"] == {"photographs": 1}
    alone = photo.parent.parent / "alone"
    alone.mkdir()
    (alone / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 images can be read"), pytest.warns():
        quantize_file(small_model, alone, alone / "new", bad_images="skip")


def test_bad_clipping_thresholds(small_model: Path, tmp_path: Path) -> None:
    model = load_model(small_model)
    good = dict.fromkeys(int8_layers(SMALL), 1.0)
    bad: list[tuple[dict[str, Any], str]] = [
        ({**good, "stem.conv": 1.0}, "'stem.conv' is of no layer"),
        ({k: v for k, v in good.items() if k != "rpn.conv"}, "'rpn.conv' is missing"),
        *(
            ({**good, "rpn.conv": value}, "'rpn.conv' is")
            for value in (-1.0, float("inf"), 1e39, "1", True, None)
        ),
    ]
    for thresholds, message in bad:
        with pytest.raises(InputError, match=message):
            save_model(tmp_path / "x", SMALL, model.tensors, {}, clipping_thresholds=thresholds)
    path = tmp_path / "y"
    save_model(path, SMALL, model.tensors, {}, clipping_thresholds=good)
    data, old = path.read_bytes(), b'\\"rpn.conv\\":1.0'
    for new in (b'\\"rpn.conv\\":-10', b'\\"rpn.com\\":1.00', b'\\"rpn.conv\\":[1]'):
        assert data.count(old) == 1 and len(old) == len(new)
        path.write_bytes(data.replace(old, new))
        with pytest.raises(InputError, match="int8 clipping threshold"):
            load_model(path)


def test_where_there_is_no_int8() -> None:
    tensors, thresholds = random_tensors(SMALL, 0.5), dict.fromkeys(int8_layers(SMALL), 1.0)
    assert choose_precision("int8") == "int8"
    with pytest.raises(InputError, match="sparsedet quantize"):
        Engine(SMALL, tensors, isa="scalar", precision="int8")
    for isa in sorted(set(_native.available_isas()) - set(INT8_ISAS)):
        with pytest.raises(InputError, match=f"'int8' is not available with '{isa}'"):
            Engine(SMALL, tensors, isa=isa, precision="int8", clipping_thresholds=thresholds)


# ---------------------------------------------------------------------------- zeros in blocks

FOURS = replace(
    SMALL,
    bottleneck_channels=(32, 32, 32, 32),
    stage_channels=(64, 64, 64, 64),
    stem_channels=16,
    rpn_channels=32,
)


def test_blocks_of_zeros_are_left_out() -> None:
    thresholds = dict.fromkeys(int8_layers(FOURS), 1.0)
    size = sum(t.size for t in random_tensors(FOURS, 0.0).values())
    cases: tuple[tuple[Literal["1x4", "unstructured"], float], ...]
    cases = (("1x4", 0.42), ("unstructured", 1 - 0.58**4))
    for pattern, expected in cases:
        tensors = random_tensors(FOURS, 0.55, pattern=pattern)
        assert sum(int((t == 0).sum()) for t in tensors.values()) >= 0.55 * size
        native = Engine(
            FOURS, tensors, isa="scalar", precision="int8", clipping_thresholds=thresholds
        ).native
        density = {name: value for name, _, _, _, value, *_ in native.convolutions}
        assert density["res4.0.conv2"] == pytest.approx(expected, abs=0.05)
    with pytest.raises(InputError, match="a multiple of 4 input channels"):
        random_tensors(SMALL, 0.5, pattern="1x4")
