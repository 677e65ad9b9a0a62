"""An ONNX graph as this package sees it: nodes, constants and shapes, without protobufs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

Array = NDArray[Any]
Sizes = tuple[int, ...]

DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What code raises that meets something which no exporter writes."""
MOST_ELEMENTS = 2**31
"""Elements of one value."""
UNARY = {
    "Abs",
    "Ceil",
    "Clip",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Sqrt",
    "Tanh",
}
BINARY = {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"}
"""Element-wise kinds of nodes, of one and of two arrays."""


@dataclass(slots=True)
class OnnxNode:
    """One node.

    Attributes:
        op: kind, as "Conv"; kinds that are found by `patterns` begin with "*".
        name: of the node; unique.
        inputs: names of values; "" is an input that is left out.
        outputs: names of values; "" is an output that nobody reads.
        attributes: plain numbers, texts, lists and arrays.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> str:
        return self.outputs[0]


@dataclass(slots=True)
class Program:
    """A whole graph.

    Attributes:
        path: of its file, for messages.
        nodes: in order of execution.
        constants: initialisers and what was computed from them.
        shapes: of all values but constants, batch of 1 included; filled by `fold`.
        input, outputs: names of the values that come in and go out.
        metadata: texts of the file by name.
        opset: version of ONNX's operators.
        hints: shapes that onnx infers, of a file with kinds of nodes that are not known here: what
            comes after them can then be counted.
        ranges: of values, from quantised files.
    """

    path: str
    nodes: list[OnnxNode]
    constants: dict[str, Array]
    shapes: dict[str, Sizes]
    input: str
    outputs: list[str]
    metadata: dict[str, str]
    opset: int
    hints: dict[str, Sizes] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def refuse(self, node: OnnxNode, why: str) -> InputError:
        """The error that a node cannot be run here."""
        op = node.op.removeprefix("*")
        return InputError(f"{self.path}: node {node.name!r} ({op}) {why}")

    def readers(self) -> dict[str, list[OnnxNode]]:
        """The nodes that read each value; an output of the graph is read by nobody else."""
        found: dict[str, list[OnnxNode]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def makers(self) -> dict[str, OnnxNode]:
        """The node that makes each value."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    def constant(self, node: OnnxNode, index: int) -> Array | None:
        """A constant input; None: it is left out, or no constant."""
        if index >= len(node.inputs):
            return None
        return self.constants.get(node.inputs[index])

    def drop_unread(self) -> None:
        """Without nodes that lead to no output."""
        wanted = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]

    def rename(self, old: str, new: str) -> None:
        """Lets all that read one value read another."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]
        self.outputs = [new if name == old else name for name in self.outputs]


def multiplications(program: Program, node: OnnxNode) -> int:
    """Multiplications of a convolution or matrix product with known shapes; else 0."""
    if len(node.inputs) < 2:
        return 0
    if node.op in ("Conv", "ConvTranspose"):
        weight = program.constants.get(node.inputs[1])
        where = node.outputs[0] if node.op == "Conv" else node.inputs[0]
        shape = program.shapes.get(where)
        if weight is None or shape is None or len(shape) < 3:
            return 0
        return weight.size * math.prod(shape[2:])
    if node.op in ("Gemm", "MatMul"):
        shapes = [_shape(program, name) for name in node.inputs[:2]]
        out = program.shapes.get(node.outputs[0])
        if out is None or any(not shape for shape in shapes):
            return 0
        transposed = bool(node.attributes.get("transA", 0))
        return math.prod(out) * (shapes[0] or (0,))[-2 if transposed else -1]
    return 0


def _shape(program: Program, name: str) -> Sizes | None:
    if name in program.constants:
        return program.constants[name].shape
    return program.shapes.get(name)


def unique_names(names: Sequence[str]) -> Iterator[str]:
    """The names, with a number behind those that occurred before."""
    seen: set[str] = set()
    for name in names:
        number, found = 1, name
        while found in seen:
            number += 1
            found = f"{name}_{number}"
        seen.add(found)
        yield found


def as_float(array: Array) -> NDArray[np.float32]:
    return np.asarray(array, dtype=np.float32)
