"""Targets: other projects' weights and graphs."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from sparsedet.importers import load_foreign
from sparsedet.importers.onnx import load_onnx_network

from .model_files import tiny_model
from .onnx_seeds import onnx_seeds
from .target import FOLDER, place


def run_weights(data: bytes) -> None:
    load_foreign(place("weights", data))


def pickle_files() -> Iterator[bytes]:
    import pickle

    from helpers.parity import DETECTRON2

    from sparsedet.importers.containers import open_source

    state = {name: tensor.read() for name, tensor in open_source(DETECTRON2)[1].left.items()}
    few = dict(list(state.items())[:6])
    yield pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, 4)
    for protocol in (2, 4, 5):
        yield pickle.dumps({"model": few, "__author__": "Detectron2 Model Zoo"}, protocol)


def zip_files() -> Iterator[bytes]:
    from helpers.parity import DETECTRON2

    yield DETECTRON2.read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(DETECTRON2) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist()[:12]:
            new.writestr(info, old.read(info))
    yield out.getvalue()


def npz_files() -> Iterator[bytes]:
    from helpers.parity import TENSORPACK

    arrays = dict(np.load(TENSORPACK))
    for count in (5, len(arrays)):
        out = io.BytesIO()
        np.savez_compressed(out, **dict(list(arrays.items())[:count]))
        yield out.getvalue()


def split_ir(data: bytes) -> tuple[bytes, bytes]:
    """(XML, weights) of a line with the length of the XML, the XML, the weights."""
    line, _, rest = data.partition(b"\n")
    length = int(line) if line.isdigit() and len(line) < 10 else len(rest)
    return rest[:length], rest[length:]


def place_ir(text: bytes, weights: bytes) -> Path:
    place("ir.bin", weights)
    return place("ir.xml", text)


def run_ir(data: bytes) -> None:
    load_foreign(place_ir(*split_ir(data)), "openvino")


def ir_files() -> Iterator[bytes]:
    from sparsedet.exporters.openvino import save_openvino

    path = FOLDER / "export.xml"
    model = tiny_model()
    save_openvino(path, model.config, model.tensors, overwrite=True)
    text, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    yield f"{len(text)}\n".encode() + text + weights
    text, weights = with_computed_weights(text, weights)
    yield f"{len(text)}\n".encode() + text + weights


def with_computed_weights(text: bytes, weights: bytes) -> tuple[bytes, bytes]:
    """An IR whose first convolution has its weights from operations on constants, one after the
    other, that change no value: each kind that the reader computes."""
    root = ElementTree.fromstring(text)
    layers, edges = root.find("layers"), root.find("edges")
    assert layers is not None and edges is not None
    first = next(layer for layer in layers if layer.get("type") == "Convolution")
    edge = next(
        e for e in edges if e.get("to-layer") == first.get("id") and e.get("to-port") == "1"
    )
    stored = next(layer for layer in layers if layer.get("id") == edge.get("from-layer"))
    shape = [int(dim.text or "") for dim in stored.iterfind("output/port/dim")]
    source = (stored.get("id", ""), edge.get("from-port", ""))
    packed = bytearray(weights)

    def add(kind: str, shape: list[int], inputs: list[tuple[str, str]], data: Any) -> Any:
        number, port = f"new{len(layers)}", str(len(inputs))
        layer = ElementTree.SubElement(layers, "layer", id=number, name=number, type=kind)
        ElementTree.SubElement(layer, "data", data)
        ports = ElementTree.SubElement(layer, "input") if inputs else layer
        for to, (of, out) in enumerate(inputs):
            ElementTree.SubElement(ports, "port", id=str(to))
            wire = {"from-layer": of, "from-port": out, "to-layer": number, "to-port": str(to)}
            ElementTree.SubElement(edges, "edge", wire)
        output = ElementTree.SubElement(ElementTree.SubElement(layer, "output"), "port", id=port)
        for length in shape:
            ElementTree.SubElement(output, "dim").text = str(length)
        return number, port

    def constant(values: Any, element_type: str) -> Any:
        array, offset = np.asarray(values), len(packed)
        packed.extend(array.tobytes())
        data = {"element_type": element_type, "shape": ",".join(map(str, array.shape))}
        data |= {"offset": str(offset), "size": str(array.nbytes)}
        return add("Const", list(array.shape), [], data)

    for kind, number in (("Add", 0), ("Subtract", 0), ("Multiply", 1), ("Divide", 1)):
        source = add(kind, shape, [source, constant(np.float32(number), "f32")], {})
    source = add("Unsqueeze", [1, *shape], [source, constant(np.array([0]), "i64")], {})
    source = add("Squeeze", shape, [source, constant(np.array([0]), "i64")], {})
    source = add("Reshape", shape, [source, constant(np.array(shape), "i64")], {})
    source = add("Transpose", shape, [source, constant(np.arange(len(shape)), "i64")], {})
    source = add("Concat", shape, [source], {"axis": "0"})
    source = add("Convert", shape, [source], {"destination_type": "f32"})
    edge.set("from-layer", source[0])
    edge.set("from-port", source[1])
    return ElementTree.tostring(root), bytes(packed)


def run_onnx(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_onnx_network(place("net.onnx", data))


def onnx_files() -> Iterator[bytes]:
    import onnx
    from helpers import onnx_files as make

    folder = FOLDER
    node = onnx.helper.make_node
    nodes = [
        make.conv_node("a", "x", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["a"], ["b"], name="b"),
        node("MaxPool", ["b"], ["c"], name="c", kernel_shape=[2, 2], strides=[2, 2]),
        make.conv_node("d", "c", "d"),
        node("Sigmoid", ["d"], ["e"], name="e"),
        node("Mul", ["d", "e"], ["f"], name="f"),
        node("Shape", ["f"], ["s"], name="s"),
        node("Reshape", ["f", "s"], ["y"], name="y"),
    ]
    constants = make.conv_tensors("a", 4, 3, 3) | make.conv_tensors("d", 4, 4)
    yield make.save_onnx(folder / "seed.onnx", nodes, ["y"], constants).read_bytes()
    numbers: dict[str, Any] = {"two": np.float32(2), "axes": np.array([2, 3], np.int64)}
    numbers |= {"pads": np.zeros(8, np.int64), "axis": np.array([1], np.int64)}
    numbers |= {"starts": np.array([1], np.int64), "ends": np.array([3], np.int64)}
    numbers |= {"scales": np.array([1, 1, 2, 2], np.float32)}
    numbers |= {f"n.{leaf}": np.ones(4, np.float32) for leaf in ("s", "b", "m", "v")}
    more = [
        make.conv_node("a", "x", "a", auto_pad="SAME_UPPER", dilations=[1, 1], group=1),
        node("BatchNormalization", ["a", "n.s", "n.b", "n.m", "n.v"], ["n"], name="n"),
        node("HardSwish", ["n"], ["h"], name="h"),
        node("Pad", ["h", "pads"], ["p"], name="p"),
        node("AveragePool", ["p"], ["q"], name="q", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["q", "", "scales"], ["r"], name="r", mode="nearest"),
        node("Slice", ["r", "starts", "ends", "axis"], ["t"], name="t"),
        node("Concat", ["t", "r"], ["u"], name="u", axis=1),
        node("ReduceMean", ["u", "axes"], ["v"], name="v", keepdims=1),
        node("Mul", ["v", "two"], ["w"], name="w"),
        node("Flatten", ["w"], ["z"], name="z"),
        node("Softmax", ["z"], ["y"], name="y", axis=1),
    ]
    numbers |= make.conv_tensors("a", 4, 3, 3)
    yield make.save_onnx(folder / "seed.onnx", more, ["y"], numbers, opset=18).read_bytes()
    yield from onnx_seeds(folder)
