"""Small ONNX files with the kinds of nodes that the importer folds: seeds of the target `onnx`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

UNARY = (
    *("Neg", "Abs", "Sqrt", "Exp", "Log", "Floor", "Ceil", "Round", "Reciprocal", "Relu", "Tanh"),
    *("Cos", "Sin", "Erf", "Sigmoid", "Softplus", "HardSigmoid", "HardSwish", "Gelu", "Identity"),
)
BINARY = ("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Min", "Max")
COMPARED = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
REDUCED = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean")
NUMBERS: dict[str, Any] = {
    "f": np.array([[0.5, 1.5], [2.0, 3.0]], np.float32),
    "i": np.array([[1, 2], [3, 4]], np.int64),
    "b": np.array([[True, False], [False, True]]),
    "zero": np.array(0, np.int64),
    "two": np.array(2, np.int64),
    "five": np.array(5, np.int64),
    "axis": np.array([0], np.int64),
    "four": np.array([4], np.int64),
    "ones": np.array([1, 1], np.int64),
    "twos": np.array([2, 2], np.int64),
    "many": np.array([3, 2, 2], np.int64),
    "low": np.array(0.0, np.float32),
    "high": np.array(1.0, np.float32),
    "scale": np.array(0.1, np.float32),
    "point": np.array(3, np.int8),
    "both": np.array([1, 1], np.int64),
}


def onnx_seeds(folder: Path) -> Iterator[bytes]:
    from helpers import onnx_files as make

    helper, count = make.onnx.helper, iter(range(10_000))

    def node(kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind}{next(count)}" for _ in range(outputs)]
        return helper.make_node(kind, inputs, names, name=names[0], **attributes)

    def save(nodes: list[Any], last: str, tensors: dict[str, Any], opset: int) -> bytes:
        path = folder / "seed.onnx"
        return make.save_onnx(path, nodes, [last], tensors, opset=opset).read_bytes()

    op = helper.make_node
    layer = make.conv_node("a", "x", "y", strides=[2, 2])
    weights = make.conv_tensors("a", 4, 3)
    constants = [node(kind, ["f"]) for kind in UNARY]
    constants += [node(kind, [two, two]) for kind in BINARY for two in ("f", "i")]
    constants += [node(kind, ["f", "f"]) for kind in COMPARED]
    constants += [node(kind, ["f"], axes=[0], keepdims=0) for kind in REDUCED]
    constants += [
        *(node("And", ["b", "b"]), node("Or", ["b", "b"]), node("Not", ["b"])),
        *(node("Where", ["b", "f", "f"]), node("Cast", ["f"], to=7), node("Cast", ["i"], to=1)),
        *(node("Clip", ["f", "low", "high"]), node("Gelu", ["f"], approximate="tanh")),
        *(node("Constant", [], value_ints=[1, 2]), node("Constant", [], value_float=1.5)),
        *(node("ConstantOfShape", ["twos"]), node("Concat", ["f", "f"], axis=1)),
        *(node("Expand", ["f", "many"]), node("Gather", ["f", "axis"], axis=1)),
        *(node("MatMul", ["f", "f"]), node("Range", ["zero", "five", "two"])),
        *(node("QuantizeLinear", ["f", "scale", "point"]), node("ReduceSum", ["f", "axis"])),
        *(node("DequantizeLinear", ["point", "scale"]), node("Reshape", ["f", "four"])),
        *(node("Flatten", ["f"]), node("Slice", ["f", "axis", "four", "axis"])),
        *(node("Unsqueeze", ["f", "axis"]), node("Tile", ["f", "twos"])),
        *(node("Transpose", ["f"], perm=[1, 0]), node("Split", ["f", "both"], 2, axis=0)),
    ]
    for opset in (17, 20):
        some = [n for n in constants if opset >= 20 or n.op_type != "Gelu"]
        yield save([*some, layer], "y", NUMBERS | weights, opset)
    layers = {
        "up": [op("ConvTranspose", ["y", "up.w"], ["z"], strides=[2, 2])],
        "mean": [
            op("GlobalAveragePool", ["y"], ["g"]),
            op("Squeeze", ["g", "last"], ["s"]),
            op("Gemm", ["s", "m", "v"], ["z"], transB=1),
        ],
        "split": [op("Split", ["y"], ["p", "q"], axis=1), op("Concat", ["q", "p"], ["z"], axis=1)],
        "order": [
            op("Transpose", ["y"], ["t"], perm=[0, 2, 3, 1]),
            op("Unsqueeze", ["t", "axis"], ["u"]),
            op("Squeeze", ["u", "axis"], ["z"]),
        ],
        "gather": [op("Gather", ["y", "order"], ["z"], axis=1)],
        "resize": [op("Resize", ["y", "", "", "sizes"], ["z"], mode="nearest")],
        "bytes": [
            op("QuantizeLinear", ["y", "scale", "point"], ["k"]),
            op("DequantizeLinear", ["k", "scale", "point"], ["z"]),
        ],
        "reduce": [op("ReduceMax", ["y"], ["z"], axes=[2, 3], keepdims=1)],
        "swish": [
            op("HardSigmoid", ["y"], ["h"], alpha=1 / 6, beta=0.5),
            op("Mul", ["y", "h"], ["z"]),
        ],
        "norm": [op("InstanceNormalization", ["y", "four4", "four4"], ["z"])],
    }
    more = {
        "up.w": np.ones((4, 4, 2, 2), np.float32),
        "last": np.array([2, 3], np.int64),
        "m": np.ones((2, 4), np.float32),
        "v": np.ones(2, np.float32),
        "order": np.array([0, 2], np.int64),
        "sizes": np.array([1, 4, 16, 16], np.int64),
        "four4": np.ones(4, np.float32),
    }
    for nodes in layers.values():
        read = {name for one in nodes for name in one.input}
        tensors = {k: v for k, v in (NUMBERS | more).items() if k in read}
        yield save([layer, *nodes], "z", tensors | weights, 13)
    # A function of the file's own.
    function = helper.make_function(
        *("own", "Twice", ["p"], ["r"], [op("Add", ["p", "p"], ["r"])]),
        [helper.make_opsetid("", 17)],
    )
    model = make.onnx.load_from_string(save([layer], "y", weights, 17))
    model.graph.node[0].output[0] = "before"
    model.graph.node.append(op("Twice", ["before"], ["y"], domain="own"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    yield bytes(model.SerializeToString())
