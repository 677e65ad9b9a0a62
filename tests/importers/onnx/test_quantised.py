"""Quantised ONNX files: QuantizeLinear and DequantizeLinear as ranges, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.any_network import file_of
from helpers.onnx_files import conv_node, conv_tensors, onnx, save_onnx
from numpy.typing import NDArray

from sparsedet import Model
from sparsedet._native import has_int8
from sparsedet.errors import InputError
from sparsedet.importers.onnx import load_onnx_network
from sparsedet.model.file import load_network, save_model

F32 = NDArray[np.float32]
node = onnx.helper.make_node
ADVICE = "convert the float file, then quantize"
needs_int8 = pytest.mark.skipif(not has_int8(), reason="this CPU has no kernels of int8")


class Arrays:
    """Calibration data, as ONNX Runtime asks for them."""

    def __init__(self, count: int = 8) -> None:
        rng = np.random.default_rng(0)
        self.left = [rng.normal(size=(1, 3, 24, 24)).astype(np.float32) for _ in range(count)]

    def get_next(self) -> dict[str, F32] | None:
        return {"x": self.left.pop()} if self.left else None


def by_onnxruntime(path: Path, array: F32) -> F32:
    runtime: Any = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": array})
    return np.asarray(out)


def quantised_by_onnxruntime(path: Path, out: Path, **options: Any) -> Path:
    quantisation: Any = pytest.importorskip("onnxruntime.quantization")
    quantisation.quantize_static(
        str(path),
        str(out),
        Arrays(),
        quant_format=quantisation.QuantFormat.QDQ,
        **options,
    )
    return out


@needs_int8
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["raw", "classifier"])
def test_files_of_onnxruntime_run_on_their_ranges(kind: str, signed: bool, tmp_path: Path) -> None:
    """As near to the float network as ONNX Runtime is, and in float32 equal to it."""
    quantisation: Any = pytest.importorskip("onnxruntime.quantization")
    source = file_of(kind, tmp_path)
    kinds = quantisation.QuantType
    quantised = quantised_by_onnxruntime(
        source,
        tmp_path / "qdq.onnx",
        per_channel=True,
        activation_type=kinds.QInt8 if signed else kinds.QUInt8,
        weight_type=kinds.QInt8,
    )
    array = np.random.default_rng(9).normal(size=(1, 3, 24, 24)).astype(np.float32)
    exact, theirs = by_onnxruntime(source, array), by_onnxruntime(quantised, array)
    spread = float(np.abs(exact).max())
    network = load_onnx_network(quantised)
    assert network.clipping_thresholds
    fast = Model(network, precision="int8")
    assert fast.engine.conversions
    (ours,) = fast(array).values()
    error = np.abs(theirs - exact)
    assert np.abs(ours - exact).mean() < 1.5 * error.mean() + 0.002 * spread
    assert np.abs(ours - exact).max() < 2 * error.max() + 0.01 * spread
    (plain,) = Model(network)(array).values()  # weights are rounded, activations are not
    assert np.abs(plain - exact).max() < 0.05 * spread
    path = tmp_path / "model.safetensors"
    save_model(
        path,
        network.config,
        network.tensors,
        {},
        dtype="float32",
        clipping_thresholds=network.clipping_thresholds,
    )
    assert load_network(path).clipping_thresholds == network.clipping_thresholds


@needs_int8
@pytest.mark.slow
def test_files_of_nncf_run_on_their_ranges_and_keep_zeros(tmp_path: Path) -> None:
    """A file whose weights were pruned, quantised by NNCF."""
    nncf: Any = pytest.importorskip("nncf")
    source, quantised = file_of("classifier", tmp_path), tmp_path / "qdq.onnx"
    file = onnx.load(source)
    for value in file.graph.initializer:
        weight = onnx.numpy_helper.to_array(value)
        if weight.ndim == 4:
            sparse = np.where(np.abs(weight) < np.quantile(np.abs(weight), 0.6), 0, weight)
            value.CopyFrom(onnx.numpy_helper.from_array(sparse, value.name))
    onnx.save(file, source)
    arrays = nncf.Dataset([{"x": array} for array in Arrays().left])
    onnx.save(nncf.quantize(file, arrays), quantised)
    array = np.random.default_rng(9).normal(size=(1, 3, 24, 24)).astype(np.float32)
    exact, theirs = by_onnxruntime(source, array), by_onnxruntime(quantised, array)
    network, dense = load_onnx_network(quantised), load_onnx_network(source)
    assert network.clipping_thresholds
    (ours,) = Model(network, precision="int8")(array).values()
    spread, error = float(np.abs(exact).max()), np.abs(theirs - exact)
    assert np.abs(ours - exact).mean() < 1.5 * error.mean() + 0.002 * spread
    assert np.abs(ours - exact).max() < 2 * error.max() + 0.01 * spread

    def zeros(tensors: Any) -> list[int]:
        return sorted(int((np.asarray(t) == 0).sum()) for t in tensors.values() if t.ndim == 4)

    pairs = list(zip(zeros(network.tensors), zeros(dense.tensors), strict=True))
    assert all(now >= before for now, before in pairs) and sum(before for _, before in pairs) > 1000


def pair(source: str, out: str, scale: str, zero: str) -> list[Any]:
    """Quantise and dequantise a value."""
    steps = [scale, zero]
    return [
        node("QuantizeLinear", [source, *steps], [f"{out}.q"]),
        node("DequantizeLinear", [f"{out}.q", *steps], [out]),
    ]


def steps(name: str, scale: float, zero: int, dtype: str = "u1") -> dict[str, Any]:
    return {f"{name}.s": np.float32(scale), f"{name}.z": np.asarray(zero, dtype)}


def small_file(path: Path, *, bytes_: bool = True) -> Path:
    """Two convolutions that meet in a join: each value has steps of its own."""
    constants = conv_tensors("a", 8, 3, 3) | conv_tensors("b", 8, 8, seed=1)
    constants |= conv_tensors("c", 4, 8, seed=2) | conv_tensors("d", 5, 12, seed=3)
    constants |= conv_tensors("e", 4, 5, seed=4)
    constants |= steps("qa", 0.02, 0) | steps("qb", 0.03, 99) | steps("qc", 0.05, 7, "i1")
    constants |= steps("qj", 0.06, 120) | steps("qd", 0.11, 0)

    def after(source: str, out: str, name: str) -> list[Any]:
        if bytes_:
            return pair(source, out, f"{name}.s", f"{name}.z")
        return [node("Identity", [source], [out])]

    nodes = [
        conv_node("a", "x", "a", strides=[2, 2], pads=[1] * 4),
        *([] if bytes_ else [node("Relu", ["a"], ["ar"])]),  # the pair is the ReLU
        *after("a" if bytes_ else "ar", "a1", "qa"),
        conv_node("b", "a1", "b"),
        *after("b", "b1", "qb"),
        conv_node("c", "a1", "c"),
        *after("c", "c1", "qc"),
        node("Concat", ["b1", "c1"], ["j"], axis=1),
        *after("j", "j1", "qj"),
        conv_node("d", "j1", "d"),
        node("Relu", ["d"], ["dr"]),
        *after("dr", "d1", "qd"),
        conv_node("e", "d1", "y"),
    ]
    return save_onnx(path, nodes, ["y"], constants, (24, 24))


def test_pairs_say_ranges_and_are_the_relu_that_quantisers_leave_out(tmp_path: Path) -> None:
    network = load_onnx_network(small_file(tmp_path / "q.onnx"))
    ranges = network.clipping_thresholds
    assert ranges is not None
    approx = {name: pytest.approx(r, abs=1e-5) for name, r in ranges.items()}
    assert approx["a"] == (0.0, 5.1) and approx["b"] == (-2.97, 4.68)
    assert approx["c"] == (-6.75, 6.0) and approx["d"] == (0.0, 28.05)
    join = next(o.name for o in network.config.graph.operations if o.kind == "concat")
    assert approx[join] == (-7.2, 8.1)
    plain = load_onnx_network(small_file(tmp_path / "plain.onnx", bytes_=False))
    array = np.random.default_rng(3).normal(size=(1, 3, 24, 24)).astype(np.float32)
    (a,), (b,) = Model(network)(array).values(), Model(plain)(array).values()
    assert np.array_equal(a, b)


def test_a_pair_around_the_input_is_no_relu(tmp_path: Path) -> None:
    """The stem still reads the image, and is not pruned."""
    constants = conv_tensors("a", 8, 3, 3) | steps("qx", 0.02, 0)
    nodes = [*pair("x", "x1", "qx.s", "qx.z"), conv_node("a", "x1", "y", pads=[1] * 4)]
    path = save_onnx(tmp_path / "q.onnx", nodes, ["y"], constants, (24, 24))
    kinds = [o.kind for o in load_onnx_network(path).config.graph.operations]
    assert kinds == ["normalise", "conv"]


@pytest.mark.parametrize("scale", [np.inf, 1e36, 0.0])
def test_steps_that_give_no_range_are_refused(scale: float, tmp_path: Path) -> None:
    constants = conv_tensors("a", 8, 3, 3) | steps("qx", scale, 0)
    nodes = [*pair("x", "x1", "qx.s", "qx.z"), conv_node("a", "x1", "y", pads=[1] * 4)]
    path = save_onnx(tmp_path / "q.onnx", nodes, ["y"], constants, (24, 24))
    with pytest.raises(InputError, match="scale that is not a positive constant"):
        load_onnx_network(path)


@needs_int8
def test_differing_steps_are_requantised_by_counted_copies(tmp_path: Path) -> None:
    network = load_onnx_network(small_file(tmp_path / "q.onnx"))
    model = Model(network, precision="int8")
    assert [name for name in model.engine.conversions if name.startswith(("b ", "c "))]
    array = np.random.default_rng(3).normal(size=(1, 3, 24, 24)).astype(np.float32)
    (ours,) = model(array).values()
    theirs = by_onnxruntime(tmp_path / "q.onnx", array)
    # The weights of the file are float32: here they are rounded, in ONNX Runtime they are not.
    assert np.abs(ours - theirs).mean() < 0.02 * np.abs(theirs).max()
    assert model.engine.native.converted_bytes > 0


def test_constants_become_float32_again(tmp_path: Path) -> None:
    """Of bytes with a scale for each channel, and float32 that is quantised in the file."""
    constants: dict[str, Any] = {**conv_tensors("b", 4, 8, seed=1)}
    rng = np.random.default_rng(0)
    whole = rng.integers(-127, 128, (8, 3, 3, 3)).astype("i1")
    scales = rng.uniform(0.001, 0.01, 8).astype(np.float32)
    constants |= {"w": whole, "w.s": scales, "w.z": np.zeros(8, "i1")}
    constants |= {"bias": np.arange(8, dtype="i4"), "bias.s": np.float32(0.01)}
    constants |= {"b.s": np.float32(0.02), "b.z": np.asarray(3, "u1")}
    nodes = [
        node("DequantizeLinear", ["w", "w.s", "w.z"], ["wf"], axis=0),
        node("DequantizeLinear", ["bias", "bias.s"], ["bf"]),
        node("Conv", ["x", "wf", "bf"], ["a"], name="a", pads=[1] * 4),
        *pair("b.weight", "bw", "b.s", "b.z"),
        node("Conv", ["a", "bw", "b.bias"], ["y"], name="b"),
    ]
    path = save_onnx(tmp_path / "m.onnx", nodes, ["y"], constants, (24, 24))
    tensors = load_onnx_network(path).tensors
    weights = {tensor.shape: tensor for name, tensor in tensors.items() if "weight" in name}
    assert np.array_equal(
        weights[8, 3, 3, 3], whole.astype(np.float32) * scales.reshape(8, 1, 1, 1)
    )
    bytes_ = np.clip(np.rint(constants["b.weight"] / np.float32(0.02)) + 3, 0, 255) - 3
    assert np.array_equal(weights[4, 8, 1, 1], bytes_.astype(np.float32) * np.float32(0.02))


def test_refusals(tmp_path: Path) -> None:
    constants = conv_tensors("a", 8, 3, 3)
    whole = {"w": np.ones((8, 3, 3, 3), "i1"), "s": np.float32(0.1), "z": np.asarray(0, "i1")}
    plain = [conv_node("a", "x", "a", pads=[1] * 4)]
    quantise = node("QuantizeLinear", ["x", "s", "u"], ["q"])
    byte = {"u": np.asarray(0, "u1")}
    ins = ["q", "s", "u", "w", "s", "z", "s", "u"]
    qlinear = [quantise, node("QLinearConv", ins, ["k"], name="k")]
    cases: list[tuple[list[Any], dict[str, Any], str]] = [
        ([*qlinear, node("DequantizeLinear", ["k", "s", "u"], ["y"])], byte, "(QLinearConv)"),
        (
            [
                quantise,
                node("ConvInteger", ["q", "w", "u", "z"], ["k"], name="k"),
                node("Cast", ["k"], ["y"], to=1),
            ],
            byte,
            "(ConvInteger)",
        ),
        (
            [
                node("DynamicQuantizeLinear", ["x"], ["q", "t", "v"], name="d"),
                node("DequantizeLinear", ["q", "t", "v"], ["y"]),
            ],
            {},
            "(DynamicQuantizeLinear)",
        ),
        ([*plain, *pair("a", "y", "s", "h")], {"h": np.asarray(0, "u2")}, "uint16"),
        (
            [*plain, *pair("a", "y", "v", "o")],
            {"v": np.ones(8, np.float32), "o": np.zeros(8, "u1")},
            "for each channel",
        ),
        (
            [
                *plain,
                node("QuantizeLinear", ["a", "s", "u"], ["q"]),
                node("DequantizeLinear", ["q", "t", "u"], ["y"]),
            ],
            {**byte, "t": np.float32(0.2)},
            "in its steps",
        ),
    ]
    for i, (nodes, more, said) in enumerate(cases):
        given = {**constants, **whole, **more}
        used = {name for n in nodes for name in n.input}
        given = {name: array for name, array in given.items() if name in used}
        path = save_onnx(tmp_path / f"{i}.onnx", nodes, ["y"], given, (24, 24), opset=21)
        with pytest.raises(InputError, match=ADVICE) as error:
            load_onnx_network(path)
        assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "FLOAT8E4M3FN"])
def test_types_of_other_than_8_bits_are_refused(kind: str, tmp_path: Path) -> None:
    data_type = getattr(onnx.TensorProto, kind)
    values = np.ones(8 * 3 * 3 * 3, np.float32)
    tensor = onnx.helper.make_tensor("w", data_type, (8, 3, 3, 3), values)
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["wf"]),
        node("Conv", ["x", "wf"], ["y"], name="a", pads=[1] * 4),
    ]
    path = save_onnx(
        tmp_path / "m.onnx", nodes, ["y"], {"s": np.asarray(0.1, "f4")}, (24, 24), opset=21
    )
    model = onnx.load(str(path))
    model.graph.initializer.append(tensor)
    onnx.save(model, str(path))
    with pytest.raises(InputError, match=ADVICE) as error:
        load_onnx_network(path)
    assert "\n" not in str(error.value)
