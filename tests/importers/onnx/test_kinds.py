"""Single kinds of nodes, in the forms in which exporters write them, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
from helpers.onnx_files import (
    conv_node,
    conv_tensors,
    difference,
    images,
    onnx,
    run_onnx,
    save_onnx,
)

from sparsedet import InputError, Model
from sparsedet.model.graph import Conv

node = onnx.helper.make_node
SCALARS = {
    name: np.float32(value)
    for name, value in {
        "three": 3,
        "zero": 0,
        "six": 6,
        "sixth": 1 / 6,
        "half": 0.5,
        "one": 1,
        "root": 2**0.5,
    }.items()
}
ACTIVATIONS: dict[str, list[Any]] = {
    "relu": [node("Relu", ["a"], ["y"])],
    "relu6": [node("Clip", ["a", "zero", "six"], ["y"])],
    "sigmoid": [node("Sigmoid", ["a"], ["y"])],
    "silu": [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["y"])],
    "hardsigmoid": [node("HardSigmoid", ["a"], ["y"], alpha=1 / 6, beta=0.5)],
    "hardswish": [node("HardSwish", ["a"], ["y"])],
    "gelu": [
        node("Div", ["a", "root"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["f"]),
        node("Mul", ["a", "f"], ["g"]),
        node("Mul", ["g", "half"], ["y"]),
    ],
}
WRITTEN_OUT: dict[str, list[Any]] = {
    "hardswish": [
        node("Add", ["a", "three"], ["b"]),
        node("Clip", ["b", "zero", "six"], ["c"]),
        node("Mul", ["a", "c"], ["d"]),
        node("Div", ["d", "six"], ["y"]),
    ],
    "hardsigmoid": [
        node("Add", ["a", "three"], ["b"]),
        node("Clip", ["b", "zero", "six"], ["c"]),
        node("Mul", ["c", "sixth"], ["y"]),
    ],
}
SIZES = [(17, 16), (20, 33), (31, 64)]


def check(path: Path, size: tuple[int, int], limit: float = 1e-5) -> Model:
    batch = images(size)
    model, want = Model.load(path, threads=1), run_onnx(path, batch)
    got = model(batch)
    assert list(got) == list(want)
    for name in want:
        assert np.abs(want[name][0] - want[name][1]).max() > 0, "void"
        assert difference(got[name], want[name]) < limit, name
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("activation", "nodes"), [*ACTIVATIONS.items(), *WRITTEN_OUT.items()])
def test_activations_end_a_convolution(
    tmp_path: Path, activation: str, nodes: list[Any], size: tuple[int, int]
) -> None:
    constants: dict[str, Any] = {**conv_tensors("c", 5, 3, 3), **SCALARS}
    constants["c.weight"] *= 4  # both ends of the activation
    path = save_onnx(
        tmp_path / "a.onnx",
        [conv_node("c", "x", "a", pads=[1] * 4), *nodes],
        ["y"],
        constants,
        size,
    )
    model = check(path, size)
    (conv,) = (
        o.attributes for o in model.config.graph.operations if isinstance(o.attributes, Conv)
    )
    assert conv.activation == activation


POOLS: list[tuple[str, dict[str, Any]]] = [
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [5, 5], "pads": [2] * 4}),
    ("MaxPool", {"kernel_shape": [13, 13], "pads": [6] * 4}),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "attributes"), POOLS)
def test_pools_of_values_that_may_be_negative(
    tmp_path: Path, kind: str, attributes: dict[str, Any], size: tuple[int, int]
) -> None:
    constants = conv_tensors("c", 5, 3)
    constants["c.bias"] -= 3  # zeros around the map would be the largest
    nodes = [conv_node("c", "x", "a"), node(kind, ["a"], ["y"], **attributes)]
    check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants, size), size)


def test_a_batch_norm_before_a_convolution(tmp_path: Path) -> None:
    constants = {**conv_tensors("c", 4, 3), **conv_tensors("d", 6, 4, 3, seed=1)}
    for i, leaf in enumerate(("scale", "offset", "mean")):
        constants[leaf] = np.linspace(-1, 2 + i, 4).astype(np.float32)
    constants["var"] = np.linspace(0.5, 2, 4).astype(np.float32)
    nodes = [
        conv_node("c", "x", "a"),
        node("Relu", ["a"], ["r"]),
        node("BatchNormalization", ["r", "scale", "offset", "mean", "var"], ["b"]),
        node("Relu", ["b"], ["s"]),
        conv_node("d", "s", "y", pads=[1] * 4),
    ]
    model = check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants), (16, 16))
    assert [o.kind for o in model.config.graph.operations] == [
        "normalise",
        "conv",
        "affine",
        "conv",
    ]


@pytest.mark.parametrize("late", [False, True])
def test_sums_before_and_after_an_activation(tmp_path: Path, late: bool) -> None:
    constants = {**conv_tensors("c", 4, 3), **conv_tensors("d", 4, 4, 3, seed=1)}
    ends = [node("Sigmoid", ["b"], ["s"]), node("Mul", ["b", "s"], ["t"])]
    nodes = [conv_node("c", "x", "a"), conv_node("d", "a", "b" if late else "e", pads=[1] * 4)]
    if late:
        nodes += [*ends, node("Add", ["a", "t"], ["y"])]
    else:
        nodes += [node("Add", ["a", "e"], ["b"]), *ends[:1], node("Mul", ["b", "s"], ["y"])]
    model = check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants), (16, 16))
    last = model.config.graph.operations[-1]
    assert isinstance(last.attributes, Conv) and len(last.inputs) == 2
    assert last.attributes.residual_last == late and last.attributes.activation == "silu"


def test_a_value_that_others_read_is_not_fused_away(tmp_path: Path) -> None:
    constants = {**conv_tensors("c", 4, 3), **conv_tensors("d", 4, 4, seed=1)}
    nodes = [
        conv_node("c", "x", "a"),
        node("Relu", ["a"], ["r"]),
        conv_node("d", "r", "e"),
        node("Add", ["a", "e"], ["y"]),
        node("Mul", ["r", "r2"], ["z"]),
    ]
    constants["r2"] = np.float32(2).reshape(1)
    check(save_onnx(tmp_path / "a.onnx", nodes, ["y", "z", "a"], constants), (16, 16))


def test_space_to_depth_before_a_convolution(tmp_path: Path) -> None:
    nodes, parts = [], []
    constants: dict[str, Any] = conv_tensors("c", 6, 12, 3)
    for i, (y, x) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        for axis, start, source, out in ((2, y, "x", f"r{i}"), (3, x, f"r{i}", f"q{i}")):
            names = [f"{n}{i}{axis}" for n in ("start", "end", "axis", "step")]
            constants |= {
                n: np.asarray([v], np.int64)
                for n, v in zip(names, (start, 2**31, axis, 2), strict=True)
            }
            nodes.append(node("Slice", [source, *names], [out]))
        parts.append(f"q{i}")
    nodes += [node("Concat", parts, ["f"], axis=1), conv_node("c", "f", "y", pads=[1] * 4)]
    model = check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants, (16, 32)), (16, 32))
    (conv,) = (
        o.attributes for o in model.config.graph.operations if isinstance(o.attributes, Conv)
    )
    assert (conv.kernel, conv.stride) == ((6, 6), 2)


@pytest.mark.parametrize(("block", "bias"), [(2, True), (3, False)])
@pytest.mark.parametrize("size", SIZES)
def test_transposed_convolutions_whose_windows_do_not_overlap(
    tmp_path: Path, block: int, bias: bool, size: tuple[int, int]
) -> None:
    numbers = np.random.default_rng(0)
    constants = conv_tensors("c", 4, 3, 3)
    constants["up.weight"] = numbers.normal(0, 0.5, (4, 6, block, block)).astype(np.float32)
    constants["up.bias"] = numbers.normal(0, 1, 6).astype(np.float32)
    inputs = ["a", "up.weight", *(["up.bias"] if bias else [])]
    strides = [block, block]
    nodes = [
        conv_node("c", "x", "a", pads=[1] * 4),
        node("ConvTranspose", inputs, ["u"], name="up", strides=strides),
        node("Relu", ["u"], ["r"]),
        node("AveragePool", ["r"], ["y"], kernel_shape=[3, 3], pads=[1] * 4),
    ]
    model = check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants, size), size)
    assert "depth_to_space" in [o.kind for o in model.config.graph.operations]


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2], "kernel_shape": [3, 3]},
        {"strides": [3, 3], "kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"strides": [3, 3], "kernel_shape": [3, 3], "output_padding": [1, 1]},
        {"strides": [3, 3], "kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
        {"strides": [3, 3], "kernel_shape": [3, 3], "group": 2},
    ],
)
def test_other_transposed_convolutions_are_refused(
    tmp_path: Path, attributes: dict[str, Any]
) -> None:
    constants = conv_tensors("c", 4, 3)
    constants["up.weight"] = np.zeros((4, 2, 3, 3), np.float32)
    nodes = [
        conv_node("c", "x", "a"),
        node("ConvTranspose", ["a", "up.weight"], ["y"], name="up", **attributes),
    ]
    path = save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants)
    with pytest.raises(
        InputError, match=r"node 'up' \(ConvTranspose\) has the window 3x3"
    ) as error:
        Model.load(path)
    assert "\n" not in str(error.value)


def test_angles_behind_the_maps(tmp_path: Path) -> None:
    """As oriented boxes have them."""
    constants: dict[str, Any] = conv_tensors("c", 4, 3)
    constants["flat"] = np.asarray([1, 4, -1], np.int64)
    nodes = [
        conv_node("c", "x", "a"),
        node("Reshape", ["a", "flat"], ["f"]),
        node("Cos", ["f"], ["g"]),
        node("Sin", ["f"], ["h"]),
        node("Concat", ["g", "h"], ["y"], axis=1),
    ]
    check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants), (16, 16))


def test_a_channel_shuffle(tmp_path: Path) -> None:
    constants: dict[str, Any] = conv_tensors("c", 12, 3)
    constants["cut"] = np.asarray([1, 3, 4, 16, 16], np.int64)
    constants["whole"] = np.asarray([1, -1, 16, 16], np.int64)
    nodes = [
        conv_node("c", "x", "a"),
        node("Reshape", ["a", "cut"], ["b"]),
        node("Transpose", ["b"], ["d"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["d", "whole"], ["y"]),
    ]
    model = check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants), (16, 16))
    assert model.config.graph.operations[-1].kind == "shuffle"


@pytest.mark.parametrize(
    ("attributes", "runs"),
    [
        (
            {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            },
            True,
        ),
        ({"mode": "nearest"}, True),
        ({"mode": "linear"}, False),
        ({"mode": "nearest", "coordinate_transformation_mode": "align_corners"}, False),
    ],
)
def test_resizing(tmp_path: Path, attributes: dict[str, Any], runs: bool) -> None:
    constants: dict[str, Any] = conv_tensors("c", 4, 3)
    constants["scales"] = np.asarray([1, 1, 2, 2], np.float32)
    nodes = [
        conv_node("c", "x", "a"),
        node("Resize", ["a", "", "scales"], ["y"], name="up", **attributes),
    ]
    path = save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants, (16, 20))
    if runs:
        check(path, (16, 20))
    else:
        with pytest.raises(InputError, match=r"a.onnx: node 'up' \(Resize\) resizes by"):
            Model.load(path)


def test_shape_arithmetic_and_padding_are_folded(tmp_path: Path) -> None:
    constants: dict[str, Any] = conv_tensors("c", 4, 3, 3)
    constants |= {"first": np.asarray([0], np.int64), "rest": np.asarray([-1], np.int64)}
    constants["pads"] = np.asarray([0, 0, 1, 2, 0, 0, 0, 1], np.int64)
    nodes = [
        node("Pad", ["x", "pads"], ["p"]),
        conv_node("c", "p", "a"),
        node("GlobalAveragePool", ["a"], ["m"]),
        node("Shape", ["m"], ["s"]),
        node("Gather", ["s", "first"], ["n"]),
        node("Concat", ["n", "rest"], ["shape"], axis=0),
        node("Reshape", ["m", "shape"], ["y"]),
    ]
    model = check(save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants), (16, 16))
    (conv,) = (
        o.attributes for o in model.config.graph.operations if isinstance(o.attributes, Conv)
    )
    assert conv.padding == (1, 2, 0, 1)


def test_old_files_list_initialisers_as_inputs_and_split_by_attribute(tmp_path: Path) -> None:
    constants = conv_tensors("c", 6, 3)
    nodes = [
        conv_node("c", "x", "a"),
        node("Split", ["a"], ["p", "q"], axis=1, split=[2, 4]),
        node("Concat", ["q", "p"], ["y"], axis=1),
    ]
    path = save_onnx(tmp_path / "a.onnx", nodes, ["y"], constants, opset=11)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    onnx.save(model, str(path))
    check(path, (16, 16))
