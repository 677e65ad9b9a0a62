"""Nodes of a folded program as steps of a tail, and what the values of a program become."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...model.tail import TailStep
from .program import OnnxNode, Program, Sizes, as_float, multiplications

F32 = NDArray[np.float32]
MOST_TAIL_WORK = 2e7
"""Multiplications of one step of the tail: it runs on one thread, and skips no zeros."""

_UNARY = {
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Neg": "negative",
    "Abs": "absolute",
    "Tanh": "tanh",
    "Cos": "cos",
    "Sin": "sin",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
}
_BINARY = {
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Pow": "power",
    "Max": "maximum",
    "Min": "minimum",
}
"""Kind of node -> kind of step."""


@dataclass(frozen=True, slots=True)
class MapValue:
    """A map of the graph; `flat`: ONNX has it as [1, channels * height * width]."""

    name: str
    channels: int
    height: int
    width: int
    flat: bool = False

    @property
    def shape(self) -> Sizes:
        if self.flat:
            return 1, self.channels * self.height * self.width
        return 1, self.channels, self.height, self.width


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """What a step of the tail makes, and the node that left the maps first."""

    name: str
    shape: Sizes
    cause: OnnxNode


Known = MapValue | ArrayValue


class TailBuilder:
    """Builds steps, node by node.

    Attributes:
        steps, constants: of the tail.
        values: what each value of the program became.
        names: of operations and steps.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: list[TailStep] = []
        self.constants: dict[str, F32] = {}
        self.names: set[str] = {"image"}
        self.values: dict[str, Known] = {}

    def unknown(self, node: OnnxNode) -> InputError:
        """A node that cannot run; with how often its kind occurs, and what comes before it."""
        nodes = self.program.nodes
        alike = sum(other.op == node.op for other in nodes)
        work = [multiplications(self.program, other) for other in nodes]
        before = sum(work[: nodes.index(node)]) / max(sum(work), 1)
        return self.program.refuse(
            node,
            f"(opset {self.program.opset}) cannot be run here: it is one of {alike} of that kind "
            f"among {len(nodes)} nodes, and {before:.0%} of the multiplications that could be "
            "counted come before it",
        )

    def name(self, wanted: str) -> str:
        """A name that is free, printable, and close to the one that is wanted."""
        text = re.sub(r"[^\x21-\x7e]", "_", wanted.strip("/").replace("/", "."))[:200] or "value"
        number, found = 1, text
        while found in self.names:
            number += 1
            found = f"{text}_{number}"
        self.names.add(found)
        return found

    def step(self, kind: str, inputs: tuple[str, ...], numbers: Sizes = (), name: str = "") -> str:
        name = self.name(name or f"tail.{len(self.steps)}")
        self.steps.append(TailStep(kind, name, inputs, tuple(int(n) for n in numbers)))
        return name

    def constant(self, array: Any) -> str:
        values = as_float(array)
        # A scalar is an array of one number here: JSON has no shape of no axes.
        values = values.reshape(values.shape or (1,))
        name = self.step("constant", (), values.shape)
        self.constants[name] = np.ascontiguousarray(values)
        return name

    def array(self, name: str) -> str:
        """A value as the tail has it: of its ONNX shape."""
        if name in self.program.constants:
            return self.constant(self.program.constants[name])
        value = self.values[name]
        if isinstance(value, MapValue) and value.flat:
            return self.step("reshape", (value.name,), value.shape)
        return value.name

    def tail(self, node: OnnxNode) -> None:
        """A node as steps of the tail.

        Raises:
            InputError: the tail has no such step either, or it would take too long there.
        """
        arrays = [self.values.get(name) for name in node.inputs]
        cause = next((a.cause for a in arrays if isinstance(a, ArrayValue)), node)
        if node.op in ("Conv", "Linear", "MatMul"):
            work = multiplications(self.program, node)
            if node.op == "Linear":
                work = node.attributes["weight"].size * self.program.shapes[node.out][0]
            if work > MOST_TAIL_WORK:
                if cause is node:
                    raise self.unknown(node)
                raise self.program.refuse(
                    node,
                    f"reads what node {cause.name!r} ({cause.op.strip('*')}) made, which is "
                    "no feature map any more, and has too much work for numpy",
                )
        name = self.tail_step(node)
        self.values[node.out] = ArrayValue(name, self.program.shapes[node.out], cause)

    def tail_step(self, node: OnnxNode) -> str:
        at, op = node.attributes, node.op
        if op == "Reshape":
            return self.step("reshape", (self.array(node.inputs[0]),), at["shape"])
        if op == "Transpose":
            return self.step("transpose", (self.array(node.inputs[0]),), at["perm"])
        if op == "Slice":
            numbers = (at["axis"], at["start"], at["stop"], at["step"])
            return self.step("slice", (self.array(node.inputs[0]),), numbers)
        if op == "Concat":
            arrays = tuple(self.array(name) for name in node.inputs)
            return self.step("concat", arrays, (at["axis"],))
        if op == "Softmax":
            return self.step("softmax", (self.array(node.inputs[0]),), (at["axis"],))
        if op == "Reduce":
            numbers = (int(at["keep"]), *at["axes"])
            return self.step(at["how"], (self.array(node.inputs[0]),), numbers)
        if op == "MatMul" or op in _BINARY:
            arrays = tuple(self.array(name) for name in node.inputs)
            return self.step("matmul" if op == "MatMul" else _BINARY[op], arrays)
        if op in _UNARY:
            return self.step(_UNARY[op], (self.array(node.inputs[0]),))
        if op == "*Activate" and at["activation"] in ("sigmoid", "relu", "silu"):
            x = self.array(node.inputs[0])
            if at["activation"] != "silu":
                return self.step(at["activation"], (x,))
            return self.step("multiply", (x, self.step("sigmoid", (x,))))
        if op == "Affine":
            ones = (1,) * (len(self.program.shapes[node.out]) - 2)
            scale, offset = (
                self.constant(at[key].reshape(1, -1, *ones)) for key in ("scale", "offset")
            )
            return self.step(
                "add", (self.step("multiply", (self.array(node.inputs[0]), scale)), offset)
            )
        if op == "Linear":
            weight, bias = self.constant(at["weight"].T), self.constant(at["bias"])
            return self.step(
                "add", (self.step("matmul", (self.array(node.inputs[0]), weight)), bias)
            )
        if op == "Conv" and at["kernel"] == at["stride"] == (1, 1) and at["groups"] == 1:
            return self._tail_convolution(node)
        raise self.unknown(node)

    def _tail_convolution(self, node: OnnxNode) -> str:
        """A 1x1 convolution of an array [1, C, H, W], as DFL's mean over its bins."""
        weight = as_float(self.program.constants[node.inputs[1]])
        shape = self.program.shapes[node.inputs[0]]
        if any(node.attributes["padding"]):
            raise self.unknown(node)
        columns = (1, shape[1], math.prod(shape[2:]))
        flat = self.step("reshape", (self.array(node.inputs[0]),), columns)
        kernel = self.constant(weight.reshape(1, len(weight), -1))
        out = self.step("matmul", (kernel, flat))
        bias = self.program.constant(node, 2)
        if bias is not None:
            out = self.step("add", (out, self.constant(bias.reshape(1, -1, 1))))
        return self.step("reshape", (out,), self.program.shapes[node.out])
