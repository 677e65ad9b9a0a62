"""Groups of nodes that are one thing: activations, space to depth, padding.

An activation is recognised by its values, not by its nodes: exporters write HardSwish as one node,
as two, or as Add, Clip, Mul and Div, and all of them are the same function of one number.

Element-wise nodes that are a known activation become nodes of kind "*Activate" (`activation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .attention import find_attention
from .constants import EVALUATE, evaluate
from .program import BINARY, UNARY, Array, OnnxNode, Program, as_float

_GRID = np.concatenate([np.linspace(-12, 12, 977), [-60.0, -31.7, 31.7, 60.0]])
_DEEPEST = 6
"""Nodes of a chain that are looked at: the longest, GELU written out, has five."""


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x])))


_KNOWN: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "gelu": _gelu,
}
_VALUES = {name: function(_GRID) for name, function in _KNOWN.items()}


def _known_as(values: Array) -> str | None:
    """The activation that has these values on the grid."""
    for name, expected in _VALUES.items():
        if np.abs(values - expected).max() < 2e-5 * max(1.0, float(np.abs(expected).max()) / 10):
            return name
    return None


class _Chain:
    """What one value is as a function of another: its numbers on the grid, and nodes between."""

    def __init__(self, values: Array, length: int) -> None:
        self.values, self.length = values, length


def _chains(
    program: Program, node: OnnxNode, known: dict[str, dict[str, _Chain]]
) -> dict[str, _Chain]:
    """What the output of a node is as a function of earlier values of its shape."""
    shape = program.shapes[node.out]
    numbers: dict[int, Array] = {}
    sources: list[set[str]] = []
    for i, name in enumerate(node.inputs):
        if name == "":
            continue
        if name in program.constants:
            array = program.constants[name]
            if array.size == 0 or array.size > 2**20 or (array != array.reshape(-1)[0]).any():
                return {}
            numbers[i] = np.asarray(array.reshape(-1)[0], np.float64)
        elif program.shapes.get(name) != shape:
            return {}
        else:
            sources.append({name, *known.get(name, {})})
    found = {}
    for source in set.intersection(*sources) if sources else ():
        inputs: list[Array | None] = []
        length = 1
        for i, name in enumerate(node.inputs):
            if name == "":
                inputs.append(None)
            elif i in numbers:
                inputs.append(numbers[i])
            else:
                chain = _Chain(_GRID, 0) if name == source else known[name][source]
                inputs.append(chain.values)
                length = max(length, chain.length + 1)
        if length > _DEEPEST:
            continue
        with np.errstate(all="ignore"):
            try:
                values = evaluate(node, inputs)
            except ValueError:
                continue
        if values.shape == _GRID.shape and np.isfinite(values).all():
            found[source] = _Chain(values, length)
    return found


def find_activations(program: Program) -> None:
    """Element-wise nodes that are a known activation of an earlier value become one node."""
    known: dict[str, dict[str, _Chain]] = {}
    nodes: list[OnnxNode] = []
    same: dict[str, str] = {}
    for node in program.nodes:
        node.inputs = [same.get(name, name) for name in node.inputs]
        elementwise = node.op in UNARY | BINARY and node.op in EVALUATE
        if elementwise and program.shapes.get(node.out):
            chains = _chains(program, node, known)
            known[node.out] = chains
            longest_first = sorted(chains, key=lambda name: -chains[name].length)
            for source in longest_first:
                activation = _known_as(chains[source].values)
                if activation == "none":
                    same[node.out] = source
                elif activation is not None:
                    attributes = {"activation": activation}
                    node = OnnxNode("*Activate", node.name, [source], node.outputs, attributes)
                if activation is not None:
                    break
        nodes.append(node)
    program.nodes = nodes
    program.outputs = [same.get(name, name) for name in program.outputs]
    program.drop_unread()


def absorb_padding(program: Program) -> None:
    """Zeros around a map become padding of the convolutions that read it, if nobody else does."""
    readers, makers = program.readers(), program.makers()
    for node in program.nodes:
        pad = makers.get(node.inputs[0]) if node.op == "Conv" else None
        if pad is None or pad.op != "Pad" or pad.out in program.outputs:
            continue
        if any(r.op != "Conv" or r.inputs[0] != pad.out for r in readers[pad.out]):
            continue
        more = pad.attributes["padding"]
        padding = tuple(a + b for a, b in zip(node.attributes["padding"], more, strict=True))
        if max(padding) <= 64:
            node.inputs[0] = pad.inputs[0]
            node.attributes["padding"] = padding
    program.drop_unread()


def _quarter(
    program: Program, makers: dict[str, OnnxNode], name: str
) -> tuple[str, int, int] | None:
    """If a value is every second row and column of another: that one, first row, first column."""
    first: dict[int, int] = {}
    source = name
    while len(first) < 2:
        node = makers.get(source)
        if node is None or node.op != "Slice":
            return None
        at = node.attributes
        length = program.shapes[node.inputs[0]][at["axis"]]
        if at["step"] != 2 or at["axis"] not in (2, 3) or at["axis"] in first or length % 2:
            return None
        if at["start"] > 1 or at["stop"] < length - 1 + at["start"]:
            return None
        first[at["axis"]] = at["start"]
        source = node.inputs[0]
    return source, first[2], first[3]


def absorb_space_to_depth(program: Program) -> None:
    """A convolution that reads four strided slices, joined, reads their source with twice the
    stride (YOLOX's Focus)."""
    makers, readers = program.makers(), program.readers()
    for node in program.nodes:
        joined = makers.get(node.inputs[0]) if node.op == "Conv" else None
        if joined is None or joined.op != "Concat" or joined.attributes["axis"] != 1:
            continue
        parts = [_quarter(program, makers, name) for name in joined.inputs]
        found = [part for part in parts if part is not None]
        places = {part[1:] for part in found}
        if len(parts) != 4 or len(found) != 4 or len(places) != 4:
            continue
        at = node.attributes
        sources = {part[0] for part in found}
        plain = at["stride"] == (1, 1) and at["dilation"] == (1, 1) and at["groups"] == 1
        if len(sources) > 1 or not plain or readers[joined.out] != [node]:
            continue
        (source,) = sources
        weight = as_float(program.constants[node.inputs[1]])
        out, channels, rows, columns = weight.shape
        whole = np.zeros((out, channels // 4, 2 * rows, 2 * columns), np.float32)
        for i, (_, y, x) in enumerate(found):
            part = weight[:, i * channels // 4 : (i + 1) * channels // 4]
            whole[:, :, y::2, x::2] = part
        name = f"{node.inputs[1]}.focus"
        program.constants[name] = whole
        node.inputs = [source, name, *node.inputs[2:]]
        node.attributes |= {"kernel": (2 * rows, 2 * columns), "stride": (2, 2)}
        node.attributes["padding"] = tuple(2 * n for n in at["padding"])
    program.drop_unread()


def find_shuffles(program: Program) -> None:
    """Reshape, transpose and reshape of channels become one node "*Shuffle" (`groups`)."""
    makers, readers = program.makers(), program.readers()
    nodes = []
    for node in program.nodes:
        middle = makers.get(node.inputs[0]) if node.op == "Reshape" else None
        first = makers.get(middle.inputs[0]) if middle and middle.op == "Transpose" else None
        if middle is not None and first is not None and first.op == "Reshape":
            whole, cut = program.shapes[first.inputs[0]], first.attributes["shape"]
            ours = node.attributes["shape"] == whole and len(whole) == 4 and len(cut) == 5
            ours = ours and middle.attributes["perm"] == (0, 2, 1, 3, 4)
            ours = ours and cut == (whole[0], cut[1], whole[1] // cut[1], *whole[2:])
            if ours and readers[middle.out] == [node] and readers[first.out] == [middle]:
                attributes = {"groups": cut[1]}
                node = OnnxNode("*Shuffle", node.name, first.inputs[:1], node.outputs, attributes)
        nodes.append(node)
    program.nodes = nodes
    program.drop_unread()


def find_patterns(program: Program) -> None:
    """All patterns of this file, in place."""
    find_activations(program)
    find_shuffles(program)
    find_attention(program)
    absorb_padding(program)
    absorb_space_to_depth(program)
