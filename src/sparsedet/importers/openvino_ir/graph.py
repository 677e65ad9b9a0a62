"""OpenVINO's IR as a graph of nodes: an .xml with the operations, a .bin with the constants.

Reads IR versions 10 and 11 (2020 and later) without OpenVINO. The files are not trusted: document
types and entities are refused, sizes are limited, and every constant must be inside the .bin. Knows
graphs, not detectors.

Glossary: an edge leads from an output port of one node to an input port of another. A constant is a
`Const` node, or the result of operations on constants alone, such as `Convert` (half-floats are
stored with one) and `Transpose`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

MAX_XML_BYTES = 64 << 20
"""Largest .xml; the published network's has 0.3 MB, large networks have some megabytes."""

MAX_DEPTH, MAX_ELEMENTS = 64, 2_000_000
MAX_CHAIN = 32
"""Most operations from a constant's bytes to its use."""

COMPUTED_PER_BYTE, COMPUTED_BYTES = 16, 64 << 20
"""All constants, and results of operations on them, together take at most so many bytes for each of
the .bin, and so many more. Source: choice; an int8 weight that becomes float32 by three operations
takes 13. A file of some kilobytes may name its bytes a million times."""

SLACK = 4096
"""Most bytes after the last constant of a .bin."""

_DTYPES = {
    "f32": "<f4",
    "f16": "<f2",
    "f64": "<f8",
    "i64": "<i8",
    "i32": "<i4",
    "i16": "<i2",
    "i8": "i1",
    "u64": "<u8",
    "u32": "<u4",
    "u16": "<u2",
    "u8": "u1",
    "boolean": "?",
}

Array = NDArray[Any]


@dataclass(eq=False, slots=True)
class Node:
    """One operation.

    Attributes:
        inputs: source node and its output port, for each input port in order.
        consumers: nodes that read an output, once for each edge.
        shapes: output port -> shape; -1 where the file leaves a length open.
    """

    id: str
    name: str
    type: str
    attributes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    inputs: list[tuple[Node, str]] = field(default_factory=list)
    consumers: list[Node] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return next(iter(self.shapes.values()), ())

    def numbers(self, key: str) -> list[float]:
        """Numbers of an attribute such as "2, 2"; [] without the attribute."""
        return [float(text) for text in self.attributes.get(key, "").split(",") if text.strip()]

    def number(self, key: str, default: float = 0.0) -> float:
        return next(iter(self.numbers(key)), default)

    def flag(self, key: str, default: bool = False) -> bool:
        return self.attributes.get(key, str(default)).lower() in ("true", "1")

    def label(self) -> str:
        """The node's name in errors."""
        return f"node {self.name!r} ({self.type})"


class IR:
    """A graph and its constants.

    Args:
        path: the .xml; the .bin of the same name is beside it.

    Raises:
        InputError: the files are unreadable, damaged or hostile, or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix == ".bin":
            raise InputError(f"{self.path}: give the .xml beside it")
        root = self._parse()
        if root.tag != "net":
            raise self.error(f"its root is <{root.tag[:40]}>, expected <net>: not an OpenVINO IR")
        version = root.get("version", "")
        if version not in ("10", "11"):
            raise self.error(f"is IR version {version[:20]!r}, expected 10 or 11")
        self.nodes = self._nodes(root)
        self.rt_info = root.find("rt_info")
        self.weights = self._open_weights()
        self._evaluated: dict[tuple[str, str], Array | None] = {}
        self._may_compute = COMPUTED_PER_BYTE * len(self.weights) + COMPUTED_BYTES

    def error(self, text: str) -> InputError:
        return InputError(f"{self.path}: {text}")

    # --------------------------------------------------------------- reading

    def _parse(self) -> Element:
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_XML_BYTES + 1)
        except OSError as error:
            raise self.error(error.strerror or str(error)) from None
        if len(data) > MAX_XML_BYTES:
            raise self.error(f"has more than {MAX_XML_BYTES >> 20} MB, too many for an IR's .xml")
        if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise self.error("is not XML (are .xml and .bin swapped?)")
        builder = TreeBuilder()
        parser = expat.ParserCreate()
        depth = count = 0

        def start(tag: str, attributes: dict[str, str]) -> None:
            nonlocal depth, count
            depth, count = depth + 1, count + 1
            if depth > MAX_DEPTH or count > MAX_ELEMENTS:
                raise self.error("is nested too deeply or has too many elements for an IR")
            builder.start(tag, attributes)

        def end(tag: str) -> None:
            nonlocal depth
            depth -= 1
            builder.end(tag)

        def refuse(*_: Any) -> Any:
            raise self.error("has a document type declaration or entities, which an IR never has")

        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler = builder.data
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
        parser.ExternalEntityRefHandler = refuse
        try:
            parser.Parse(data, True)
        except expat.ExpatError as error:
            raise self.error(f"is truncated or not XML ({error})") from None
        return builder.close()

    def _nodes(self, root: Element) -> list[Node]:
        layers, edges = root.find("layers"), root.find("edges")
        if layers is None or edges is None:
            raise self.error("has no <layers> or no <edges>: not a complete OpenVINO IR")
        nodes: dict[str, Node] = {}
        ports: dict[str, dict[str, int]] = {}  # input ports of each node -> position
        for layer in layers:
            number, data = layer.get("id", ""), layer.find("data")
            shapes = {
                port.get("id", ""): self._shape(port) for port in layer.findall("output/port")
            }
            if number in nodes:
                raise self.error(f"has two layers of id {number!r}")
            nodes[number] = Node(
                number,
                layer.get("name", number),
                layer.get("type", ""),
                dict(data.attrib) if data is not None else {},
                shapes,
            )
            ids = [port.get("id", "") for port in layer.findall("input/port")]
            ports[number] = {port: position for position, port in enumerate(ids)}
        wired: dict[str, dict[int, tuple[Node, str]]] = {number: {} for number in nodes}
        for edge in edges:
            source, target = edge.get("from-layer", ""), edge.get("to-layer", "")
            position = ports.get(target, {}).get(edge.get("to-port", ""))
            port = edge.get("from-port", "")
            if source not in nodes or position is None or port not in nodes[source].shapes:
                raise self.error(f"has an edge from {source!r} to {target!r} that leads nowhere")
            if position in wired[target]:
                raise self.error(f"{nodes[target].label()}: two edges lead to one input")
            wired[target][position] = (nodes[source], port)
            nodes[source].consumers.append(nodes[target])
        for number, node in nodes.items():
            if len(wired[number]) != len(ports[number]):
                raise self.error(f"{node.label()}: an input has no edge")
            node.inputs = [wired[number][position] for position in range(len(ports[number]))]
        self._check_acyclic(list(nodes.values()))
        return list(nodes.values())

    def _shape(self, port: Element) -> tuple[int, ...]:
        try:
            return tuple(int(dim.text or "") for dim in port.findall("dim"))
        except ValueError:
            raise self.error("a port's <dim> is not a whole number") from None

    def _check_acyclic(self, nodes: list[Node]) -> None:
        missing = {node.id: len(node.inputs) for node in nodes}
        ready = [node for node in nodes if not node.inputs]
        done = 0
        while ready:
            node = ready.pop()
            done += 1
            for consumer in node.consumers:
                missing[consumer.id] -= 1
                if missing[consumer.id] == 0:
                    ready.append(consumer)
        if done != len(nodes):
            raise self.error("its graph has a cycle")

    def _open_weights(self) -> Array:
        file = self.path.with_suffix(".bin")
        try:
            if file.stat().st_size == 0:
                return np.zeros(0, np.uint8)
            weights: Array = np.memmap(file, np.uint8, mode="r")
        except OSError as error:
            raise InputError(f"{file}: {error.strerror or error}") from None
        if bytes(weights[:5]) in (b"<?xml", b"<net "):
            raise InputError(f"{file}: is XML (are .xml and .bin swapped?)")
        ends = [
            int(node.number("offset")) + int(node.number("size"))
            for node in self.nodes
            if node.type == "Const"
        ]
        need = max(ends, default=0)
        if not need <= len(weights) <= need + SLACK:
            raise InputError(
                f"{file}: has {len(weights):,} bytes, {self.path.name} needs {need:,}: it is "
                "truncated or another model's"
            )
        return weights

    # ------------------------------------------------------------- constants

    def constant(self, node: Node, port: str | None = None, depth: int = 0) -> Array | None:
        """The value of an output that depends on constants alone, else None.

        Raises:
            InputError: a constant does not fit the .bin or is of an unknown type.
        """
        port = port if port is not None else next(iter(node.shapes), "")
        key = (node.id, port)
        if key not in self._evaluated:
            self._evaluated[key] = None if depth > MAX_CHAIN else self._evaluate(node, depth)
        return self._evaluated[key]

    def operand(self, node: Node, index: int) -> Array | None:
        """The constant at an input; None if it is not constant or the input does not exist."""
        return self.constant(*node.inputs[index]) if index < len(node.inputs) else None

    def _evaluate(self, node: Node, depth: int) -> Array | None:
        if node.type == "Const":
            return self._const(node)
        if node.type not in _FOLDED or not node.inputs:
            return None
        values = []
        for source, port in node.inputs:
            value = self.constant(source, port, depth + 1)
            if value is None:
                return None
            values.append(value)
        try:
            if node.type in ("Add", "Subtract", "Multiply", "Divide"):
                size = math.prod(np.broadcast_shapes(*(value.shape for value in values)))
            elif node.type in ("Reshape", "Squeeze", "Unsqueeze"):  # views
                size = 0
            else:
                size = sum(value.size for value in values)
            to = _DTYPES[node.attributes["destination_type"]] if node.type == "Convert" else "i1"
            item = max(np.dtype(to).itemsize, *(value.itemsize for value in values))
            self._take(node, size * item)
            return _fold(node, values)
        except InputError:
            raise
        except (ValueError, IndexError, TypeError, KeyError):
            raise self.error(f"{node.label()}: its constants do not fit together") from None

    def _take(self, node: Node, size: int) -> None:
        """Count bytes before they are allocated; InputError if there are too many."""
        self._may_compute -= size
        if self._may_compute < 0:
            raise self.error(f"{node.label()}: its graph makes too much of its constants")

    def _const(self, node: Node) -> Array:
        element_type = node.attributes.get("element_type", "")
        if element_type not in _DTYPES:
            raise self.error(f"{node.label()}: unknown element type {element_type[:20]!r}")
        dtype = np.dtype(_DTYPES[element_type])
        shape = tuple(int(n) for n in node.numbers("shape"))
        offset, size = int(node.number("offset")), int(node.number("size"))
        if min(shape, default=0) < 0 or offset < 0 or size != math.prod(shape) * dtype.itemsize:
            raise self.error(f"{node.label()}: shape {shape} does not fit {size} bytes")
        self._take(node, size)
        data = self.weights[offset : offset + size]
        return np.frombuffer(data.tobytes(), dtype).reshape(shape)

    @cached_property
    def parameters(self) -> list[Node]:
        return [node for node in self.nodes if node.type == "Parameter"]

    def of_type(self, *types: str) -> list[Node]:
        return [node for node in self.nodes if node.type in types]

    def info(self, *path: str) -> str | None:
        """A value of rt_info, or of the metadata that OpenVINO keeps of an ONNX graph."""
        if self.rt_info is None:
            return None
        elements = self.rt_info.findall("/".join(path))
        onnx = self.rt_info.findall("framework/info")
        elements += [info for info in onnx if info.get("name") == " ".join(path)]
        return elements[0].get("value") if elements else None


_FOLDED = {
    "Convert",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Add",
    "Subtract",
    "Multiply",
    "Divide",
    "Concat",
}


def _fold(node: Node, values: list[Array]) -> Array:
    """The result of an operation on constants."""
    first = values[0]
    match node.type:
        case "Convert":
            return first.astype(_DTYPES[node.attributes["destination_type"]])
        case "Reshape" | "Squeeze" | "Unsqueeze":
            return first.reshape(node.shape)
        case "Transpose":
            order = values[1].tolist()
            return np.ascontiguousarray(first.transpose(order or None))
        case "Concat":
            return np.concatenate(values, int(node.number("axis")))
        case "Add":
            return np.asarray(first + values[1])
        case "Subtract":
            return np.asarray(first - values[1])
        case "Multiply":
            return np.asarray(first * values[1])
        case _:
            return np.asarray(first / values[1]).astype(first.dtype)


def ancestors(*nodes: Node) -> set[Node]:
    """All nodes that these depend on, and these."""
    return _closure(nodes, lambda node: [source for source, _ in node.inputs])


def descendants(*nodes: Node) -> set[Node]:
    """All nodes that depend on these, and these."""
    return _closure(nodes, lambda node: node.consumers)


def _closure(nodes: tuple[Node, ...], step: Any) -> set[Node]:
    reached, pending = set(nodes), list(nodes)
    while pending:
        for other in step(pending.pop()):
            if other not in reached:
                reached.add(other)
                pending.append(other)
    return reached
