"""Quantised ONNX files: QuantizeLinear and DequantizeLinear around float operations.

What is constant becomes float32 again. A pair around a value changes nothing here but says the
range of the value for int8. Where a range begins at 0, the pair is a ReLU, too: quantisers drop the
node. Files whose operations compute in integers themselves are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .program import Array, OnnxNode, Program

ADVICE = "convert the float file, then quantize"
"""What to do instead of reading a file of a form that is refused."""
INTEGER_KINDS = {
    "ConvInteger",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
}
"""Kinds of nodes that compute in integers."""
NOT_NEGATIVE = {"Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax"}
"""Kinds whose outputs are not negative."""
KEEP_SIGN = {
    "AveragePool",
    "Concat",
    "MaxPool",
    "Reduce",
    "Reshape",
    "Resize",
    "Slice",
    "Transpose",
}
"""Kinds whose outputs are negative only if an input is."""

_TYPES = {2: "u1", 3: "i1"}
_LARGEST_STEP = 1e35  # a range of 255 such steps is still one of float32


def steps_of(scale: Array | None, zero: Array | None, output: Any = None) -> tuple[Array, Array]:
    """Scale and zero point of a node, the zero point in its type.

    Raises:
        ValueError: they are not constant, or the type has not 8 (of a bias 32) bits.
    """
    steps = np.asarray([] if scale is None else scale, np.float64)
    if scale is None or not steps.size or not ((steps > 0) & (steps < _LARGEST_STEP)).all():
        raise ValueError("has a scale that is not a positive constant")
    if zero is None:
        if output not in (None, 0, *_TYPES):
            raise ValueError(f"makes a type of other than 8 bits: {ADVICE}")
        zero = np.zeros(scale.shape, _TYPES.get(output or 2))
    if zero.dtype.kind not in "iu" or zero.dtype.itemsize not in (1, 4):
        raise ValueError(f"has type {zero.dtype}: {ADVICE}")
    return np.asarray(scale, np.float32), zero


def _along(node: OnnxNode, x: Array, numbers: Array) -> Array:
    """Numbers of a node as they are broadcast along its axis."""
    if node.attributes.get("block_size"):
        raise ValueError(f"has a scale for each block: {ADVICE}")
    if numbers.size == 1:
        return numbers.reshape(())
    axis = node.attributes.get("axis", 1)
    if not -x.ndim <= axis < x.ndim or numbers.shape != (x.shape[axis],):
        raise ValueError("has scales that do not fit its input")
    return numbers.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def quantized(node: OnnxNode, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """QuantizeLinear of a constant."""
    scale, zero = steps_of(scale, zero, node.attributes.get("output_dtype"))
    info = np.iinfo(zero.dtype)
    steps = np.rint(np.asarray(x, np.float32) / _along(node, x, scale))
    steps = steps + _along(node, x, zero).astype(np.float32)
    return np.clip(steps, info.min, info.max).astype(zero.dtype)


def dequantized(node: OnnxNode, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """DequantizeLinear of a constant."""
    if x.dtype.kind not in "iu" or x.dtype.itemsize not in (1, 4):
        raise ValueError(f"has type {x.dtype}: {ADVICE}")
    if zero is None:
        zero = np.zeros(np.shape(scale), x.dtype)
    scale, zero = steps_of(scale, zero)
    whole = x.astype(np.int64) - _along(node, x, zero).astype(np.int64)
    return np.asarray(whole.astype(np.float32) * _along(node, x, scale), np.float32)


def range_of(scale: Array, zero: Array) -> tuple[float, float]:
    """The lowest and the highest value that a node of one step can make.

    Raises:
        ValueError: it has several steps, or its type is no byte.
    """
    if scale.size != 1 or zero.size != 1:
        raise ValueError(f"has a scale for each channel of a value that is no constant: {ADVICE}")
    if zero.dtype.itemsize != 1:
        raise ValueError(f"has type {zero.dtype}: {ADVICE}")
    info, at, one = np.iinfo(zero.dtype), int(zero.reshape(())), float(scale.reshape(()))
    return (info.min - at) * one, (info.max - at) * one


class Makers:
    """The nodes of a growing list, by their outputs."""

    def __init__(self, nodes: Sequence[OnnxNode]) -> None:
        self._nodes, self._known = nodes, 0
        self._by_output: dict[str, OnnxNode] = {}

    def get(self, name: str) -> OnnxNode | None:
        """The node that makes a value, if there is one yet."""
        for node in self._nodes[self._known :]:
            self._by_output |= dict.fromkeys(node.outputs, node)
        self._known = len(self._nodes)
        return self._by_output.get(name)


def not_negative(program: Program, makers: Makers, name: str) -> bool:
    """Whether a value is known not to be negative, or is the network's input: a pair around that
    is no ReLU which a quantiser left out."""
    if name == program.input:
        return True
    seen, left = {name}, [name]
    while left:
        maker = makers.get(left.pop())
        if maker is None:
            return False
        if maker.op == "Clip":
            least = program.constant(maker, 1)
            low = maker.attributes.get("min") if least is None else least.min()
            if low is None or low < 0:
                return False
        elif maker.op in KEEP_SIGN:
            left += [source for source in maker.inputs if source not in seen]
            seen.update(maker.inputs)
        elif maker.op not in NOT_NEGATIVE:
            return False
    return True
