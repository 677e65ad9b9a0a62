"""Folds what is constant, and brings all other nodes into one form of few kinds with known shapes.

Afterwards a program has nodes of these kinds alone, whose attributes are plain numbers:

    Conv        kernel, stride, padding (top, left, bottom, right), dilation, groups
    ConvTranspose   block: its window and stride, on both axes
    Linear      x [N, in] by the constants `weight` [out, in] and `bias` [out]
    MaxPool, AveragePool    kernel, stride, padding, count_padding
    Affine      scale and offset of each channel, arrays
    Resize      factor
    Reshape (shape), Transpose (perm), Slice (axis, start, stop, step), Concat (axis)
    Softmax (axis), Reduce (how, axes, keep), MatMul, and element-wise kinds as ONNX has them
    Pad         padding (top, left, bottom, right) of zeros

Any other kind is left as it is, and is refused by `build`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import InputError
from .constants import EVALUATE, axis_of, evaluate, reshaped, sliced
from .program import BINARY, DAMAGE, MOST_ELEMENTS, UNARY, Array, OnnxNode, Program, Sizes, as_float
from .quantised import ADVICE, INTEGER_KINDS, Makers, not_negative, range_of, steps_of
from .windows import convolution, pool, resized, transposed_convolution, zeros_around

_REDUCE = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max"}


class Folder:
    """Rewrites a program, node by node.

    Attributes:
        program: as it came; its constants and shapes grow.
        nodes: those of the new form.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[OnnxNode] = []
        self.makers = Makers(self.nodes)
        self.alias: dict[str, str] = {}
        self.steps: dict[str, tuple[Array, Array]] = {}  # of values that were quantised

    def run(self) -> None:
        program = self.program
        for node in program.nodes:
            node.inputs = [self.alias.get(name, name) for name in node.inputs]
            try:
                self.fold(node)
            except DAMAGE as error:
                if isinstance(error, InputError):
                    raise
                raise program.refuse(node, str(error)[:200]) from None
            for out in node.outputs:
                shape = program.shapes.get(out, ())
                if math.prod(shape) > MOST_ELEMENTS or min(shape, default=1) < 1:
                    raise program.refuse(node, f"would make a value of shape {list(shape)}")
        program.nodes = self.nodes
        program.outputs = [self.alias.get(name, name) for name in program.outputs]
        for name in program.outputs:
            if name in program.constants:
                raise InputError(f"{program.path}: output {name!r} does not depend on the input")
        program.drop_unread()

    # ------------------------------------------------------------------ what nodes become

    def constant(self, node: OnnxNode, index: int) -> Array | None:
        return self.program.constant(node, index)

    def shape(self, node: OnnxNode, index: int = 0) -> Sizes:
        """The shape of an input; also of a constant."""
        name = node.inputs[index]
        constants = self.program.constants
        return constants[name].shape if name in constants else self.program.shapes[name]

    def emit(self, node: OnnxNode, op: str, sizes: Sizes, **attributes: Any) -> None:
        """A node of the new form, with the first input and output of the old one."""
        self.put(OnnxNode(op, node.name, node.inputs[:1], node.outputs[:1], attributes), sizes)

    def put(self, node: OnnxNode, shape: Sizes) -> None:
        self.nodes.append(node)
        self.program.shapes[node.out] = tuple(int(n) for n in shape)

    def same(self, node: OnnxNode) -> None:
        """The node changes nothing."""
        self.alias[node.outputs[0]] = node.inputs[0]

    def fold(self, node: OnnxNode) -> None:
        program = self.program
        if node.op in INTEGER_KINDS:
            raise program.refuse(node, f"computes in integers: {ADVICE}")
        given = [name for name in node.inputs if name]
        known = all(name in program.constants for name in given)
        if node.op == "Shape" and (known or node.inputs[0] in program.shapes):
            sizes = np.asarray(self.shape(node), np.int64)
            start, end = node.attributes.get("start", 0), node.attributes.get("end", len(sizes))
            program.constants[node.out] = sizes[start:end]
        elif node.op == "Size" and node.inputs[0] in program.shapes:
            program.constants[node.out] = np.asarray(math.prod(self.shape(node)), np.int64)
        elif known and node.op in EVALUATE:
            inputs = [program.constants.get(name) for name in node.inputs]
            program.constants[node.out] = evaluate(node, inputs)
        elif known and node.op == "Split":
            self._split_constant(node)
        elif any(n not in program.shapes and n not in program.constants for n in given):
            self.nodes.append(node)  # behind a node that is refused
        elif method := getattr(self, f"_{node.op.lower()}", None):
            method(node)
        elif node.op in UNARY:
            self.put(node, self.shape(node))
        elif node.op in BINARY and len(node.inputs) == 2:
            self.put(node, np.broadcast_shapes(self.shape(node), self.shape(node, 1)))
        elif node.op in _REDUCE:
            self._reduce(node, _REDUCE[node.op])
        else:
            self.unknown(node)

    def unknown(self, node: OnnxNode) -> None:
        """A node of a kind that is refused later."""
        self.nodes.append(node)
        for out in node.outputs:
            if out in self.program.hints:
                self.program.shapes[out] = self.program.hints[out]

    def _identity(self, node: OnnxNode) -> None:
        self.same(node)

    _dropout = _identity

    def _cast(self, node: OnnxNode) -> None:
        if node.attributes.get("to") in (1, 10, 11):
            return self.same(node)
        self.nodes.append(node)

    def _quantizelinear(self, node: OnnxNode) -> None:
        """The value stays; its range is kept."""
        given = self.constant(node, 1), self.constant(node, 2)
        scale, zero = steps_of(*given, node.attributes.get("output_dtype"))
        found, name, ranges = range_of(scale, zero), node.inputs[0], self.program.ranges
        shape, out = self.shape(node), node.out
        if found[0] == 0 and not not_negative(self.program, self.makers, name):
            name = f"{out}.relu"
            self.put(OnnxNode("Relu", node.name, node.inputs[:1], [name]), shape)
        if ranges.setdefault(name, found) != found:  # the same value in other steps
            cut = {"axis": 1, "start": 0, "stop": shape[1], "step": 1}
            self.put(OnnxNode("Slice", node.name, [name], [out], cut), shape)
            name, ranges[out] = out, found
        else:
            self.alias[out] = name
        self.steps[name] = scale, zero

    def _dequantizelinear(self, node: OnnxNode) -> None:
        steps = self.steps.get(node.inputs[0])
        given = self.constant(node, 1), self.constant(node, 2)
        if steps is None or given[0] is None or not np.array_equal(steps[0], given[0]):
            raise ValueError(f"reads bytes that no node made in its steps: {ADVICE}")
        if not np.all((0 if given[1] is None else given[1]) == steps[1]):
            raise ValueError(f"has another zero point than its bytes: {ADVICE}")
        self.same(node)

    def _conv(self, node: OnnxNode) -> None:
        weight = self.constant(node, 1)
        if weight is None or (len(node.inputs) > 2 and self.constant(node, 2) is None):
            raise ValueError("has weights that are not constant")
        attributes, shape = convolution(node.attributes, self.shape(node), weight.shape)
        self.put(OnnxNode("Conv", node.name, node.inputs, node.outputs, attributes), shape)

    def _convtranspose(self, node: OnnxNode) -> None:
        weight = self.constant(node, 1)
        if weight is None or (len(node.inputs) > 2 and self.constant(node, 2) is None):
            raise ValueError("has weights that are not constant")
        attributes, shape = transposed_convolution(node.attributes, self.shape(node), weight.shape)
        self.put(OnnxNode(node.op, node.name, node.inputs, node.outputs, attributes), shape)

    def _gemm(self, node: OnnxNode) -> None:
        weight, bias, at = self.constant(node, 1), self.constant(node, 2), node.attributes
        if weight is None or at.get("transA", 0) or len(self.shape(node)) != 2:
            return self.nodes.append(node)
        weight = as_float(weight if at.get("transB", 0) else weight.T) * at.get("alpha", 1.0)
        offsets = np.zeros(len(weight)) if bias is None else bias * at.get("beta", 1.0)
        self._linear(node, weight, np.broadcast_to(offsets, (1, len(weight)))[0])

    def _linear(self, node: OnnxNode, weight: Array, bias: Array) -> None:
        rows, columns = self.shape(node)
        if columns != weight.shape[1]:
            raise ValueError(f"multiplies {columns} columns by weights of shape {weight.shape}")
        given = {"weight": as_float(weight), "bias": as_float(bias), "tensor": node.inputs[1]}
        self.emit(node, "Linear", (rows, len(weight)), **given)

    def _matmul(self, node: OnnxNode) -> None:
        a, b, weight = self.shape(node), self.shape(node, 1), self.constant(node, 1)
        if len(a) == 2 and weight is not None and weight.ndim == 2:
            return self._linear(node, weight.T, np.zeros(weight.shape[1]))
        if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
            raise ValueError(f"multiplies {list(a)} by {list(b)}")
        self.put(node, (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]))

    def _maxpool(self, node: OnnxNode) -> None:
        if len(node.outputs) > 1 and node.outputs[1]:
            return self.nodes.append(node)
        attributes, shape = pool(node.attributes, self.shape(node), average=False)
        self.emit(node, "MaxPool", shape, **attributes)

    def _averagepool(self, node: OnnxNode) -> None:
        attributes, shape = pool(node.attributes, self.shape(node), average=True)
        self.emit(node, "AveragePool", shape, **attributes)

    def _globalaveragepool(self, node: OnnxNode) -> None:
        shape = self.shape(node)
        axes = tuple(range(2, len(shape)))
        ones = (1,) * len(axes)
        self.emit(node, "Reduce", (*shape[:2], *ones), how="mean", axes=axes, keep=True)

    def _reduce(self, node: OnnxNode, how: str) -> None:
        shape, axes = self.shape(node), self.constant(node, 1)
        named = node.attributes.get("axes") if axes is None else axes.reshape(-1).tolist()
        where = tuple(axis_of(int(a), len(shape)) for a in named or range(len(shape)))
        keep = bool(node.attributes.get("keepdims", 1))
        sizes = (1 if i in where else n for i, n in enumerate(shape) if keep or i not in where)
        self.emit(node, "Reduce", tuple(sizes), how=how, axes=where, keep=keep)

    def _batchnormalization(self, node: OnnxNode) -> None:
        tensors = [self.constant(node, i) for i in range(1, 5)]
        if any(t is None for t in tensors) or any(node.outputs[1:]):
            raise ValueError("is a batch norm in training form: export the network for inference")
        weight, bias, mean, var = (np.asarray(t, np.float64) for t in tensors)
        scale = weight / np.sqrt(var + node.attributes.get("epsilon", 1e-5))
        self.emit(node, "Affine", self.shape(node), scale=scale, offset=bias - mean * scale)

    def _resize(self, node: OnnxNode) -> None:
        x, at, old = self.shape(node), node.attributes, node.op == "Upsample"
        scales, sizes = self.constant(node, 1 if old else 2), self.constant(node, 3)
        wanted = resized(at, x, scales, sizes, old)
        factor = wanted[2] // max(x[2], 1)
        if factor == 1:
            return self.same(node)
        self.emit(node, "Resize", wanted, factor=factor)

    _upsample = _resize

    def _softmax(self, node: OnnxNode) -> None:
        shape = self.shape(node)
        axis = axis_of(
            node.attributes.get("axis", -1 if self.program.opset >= 13 else 1), len(shape)
        )
        if self.program.opset < 13 and math.prod(shape[axis + 1 :]) != 1:
            raise ValueError("is a softmax of several axes at once")
        self.emit(node, "Softmax", shape, axis=axis)

    # ------------------------------------------------------------------ moving numbers

    def _to_shape(self, node: OnnxNode, shape: Sizes) -> None:
        if shape == self.shape(node):
            return self.same(node)
        self.emit(node, "Reshape", shape, shape=tuple(int(n) for n in shape))

    def _reshape(self, node: OnnxNode) -> None:
        wanted = self.constant(node, 1)
        if wanted is None:
            raise ValueError("has a shape that is not constant")
        self._to_shape(node, reshaped(node, self.shape(node), wanted.reshape(-1).tolist()))

    def _flatten(self, node: OnnxNode) -> None:
        shape, axis = self.shape(node), node.attributes.get("axis", 1)
        axis = axis + len(shape) if axis < 0 else axis
        self._to_shape(node, (math.prod(shape[:axis]), math.prod(shape[axis:])))

    def _squeeze(self, node: OnnxNode) -> None:
        shape, axes = self.shape(node), self.constant(node, 1)
        named = node.attributes.get("axes") if axes is None else axes.reshape(-1).tolist()
        where = (
            [i for i, n in enumerate(shape) if n == 1]
            if named is None
            else [axis_of(int(a), len(shape)) for a in named]
        )
        if any(shape[i] != 1 for i in where):
            raise ValueError("drops an axis that is not 1")
        self._to_shape(node, tuple(n for i, n in enumerate(shape) if i not in where))

    def _unsqueeze(self, node: OnnxNode) -> None:
        shape, axes = list(self.shape(node)), self.constant(node, 1)
        named = node.attributes["axes"] if axes is None else axes.reshape(-1).tolist()
        for axis in sorted(axis_of(int(a), len(shape) + len(named)) for a in named):
            shape.insert(axis, 1)
        self._to_shape(node, tuple(shape))

    def _transpose(self, node: OnnxNode) -> None:
        shape = self.shape(node)
        perm = tuple(node.attributes.get("perm", range(len(shape))[::-1]))
        if sorted(perm) != list(range(len(shape))):
            raise ValueError(f"has the order {list(perm)} of {len(shape)} axes")
        if perm == tuple(range(len(shape))):
            return self.same(node)
        self.emit(node, "Transpose", tuple(shape[i] for i in perm), perm=perm)

    def _concat(self, node: OnnxNode) -> None:
        shapes = [self.shape(node, i) for i in range(len(node.inputs))]
        axis, first = axis_of(node.attributes["axis"], len(shapes[0])), shapes[0]
        for other in shapes:
            if len(other) != len(first) or any(
                a != b for i, (a, b) in enumerate(zip(first, other, strict=True)) if i != axis
            ):
                raise ValueError(f"joins {list(first)} and {list(other)} along axis {axis}")
        if len(node.inputs) == 1:
            return self.same(node)
        total = sum(shape[axis] for shape in shapes)
        shape = (*first[:axis], total, *first[axis + 1 :])
        self.put(OnnxNode("Concat", node.name, node.inputs, node.outputs, {"axis": axis}), shape)

    def cut(self, node: OnnxNode, parts: list[tuple[int, int, int, int]], out: str) -> None:
        """Slices of one axis after the other."""
        shape, source = self.shape(node), node.inputs[0]
        parts = [p for p in parts if p[1:] != (0, shape[p[0]], 1)]
        if not parts:
            self.alias[out] = source
        for i, (axis, start, stop, step) in enumerate(parts):
            last = i + 1 == len(parts)
            name = out if last else f"{out}.{i}"
            shape = (*shape[:axis], len(range(start, stop, step)), *shape[axis + 1 :])
            numbers = {"axis": axis, "start": start, "stop": stop, "step": step}
            title = node.name if last and out == node.out else f"{node.name}.{name}"
            self.put(OnnxNode("Slice", title, [source], [name], numbers), shape)
            source = name

    def _slice(self, node: OnnxNode) -> None:
        at = node.attributes
        if "starts" in at:
            given: list[Array | None] = [np.asarray(at["starts"]), np.asarray(at["ends"])]
            given.append(np.asarray(at["axes"]) if "axes" in at else None)
        else:
            given = [self.constant(node, i) for i in range(1, 5)]
            if any(name and c is None for name, c in zip(node.inputs[1:], given, strict=False)):
                raise ValueError("is cut at places that are not constant")
        self.cut(node, sliced(node, self.shape(node), given), node.out)

    def _lengths(self, node: OnnxNode) -> tuple[int, list[int]]:
        shape, given = self.shape(node), self.constant(node, 1)
        axis = axis_of(node.attributes.get("axis", 0), len(shape))
        lengths = node.attributes.get("split") if given is None else given.reshape(-1).tolist()
        if lengths is None:
            each = -(-shape[axis] // len(node.outputs))
            lengths = [min(each, shape[axis] - i * each) for i in range(len(node.outputs))]
        if sum(lengths) != shape[axis] or len(lengths) != len(node.outputs) or min(lengths) < 1:
            raise ValueError(f"cuts {shape[axis]} into {list(lengths)[:16]}")
        return axis, [int(n) for n in lengths]

    def _split(self, node: OnnxNode) -> None:
        axis, lengths = self._lengths(node)
        for i, out in enumerate(node.outputs):
            first = sum(lengths[:i])
            if out:
                self.cut(node, [(axis, first, first + lengths[i], 1)], out)

    def _split_constant(self, node: OnnxNode) -> None:
        axis, lengths = self._lengths(node)
        parts = np.split(self.program.constants[node.inputs[0]], np.cumsum(lengths)[:-1], axis)
        self.program.constants.update(zip(node.outputs, parts, strict=True))

    def _pad(self, node: OnnxNode) -> None:
        shape, given = self.shape(node), (self.constant(node, 1), self.constant(node, 2))
        pads = zeros_around(node.attributes, len(shape), *given)
        top, left, bottom, right = pads
        sizes = (*shape[:2], shape[2] + top + bottom, shape[3] + left + right)
        if not any(pads):
            return self.same(node)
        self.emit(node, "Pad", sizes, padding=pads)

    def _gather(self, node: OnnxNode) -> None:
        index, shape = self.constant(node, 1), self.shape(node)
        axis = axis_of(node.attributes.get("axis", 0), len(shape))
        if index is None or index.size != 1:
            return self.nodes.append(node)
        at = int(index.reshape(-1)[0]) % shape[axis]
        whole = (*shape[:axis], *index.shape, *shape[axis + 1 :])
        part = f"{node.out}.part"
        self.cut(node, [(axis, at, at + 1, 1)], part)
        source = self.alias.pop(part, part)
        numbers = {"shape": whole}
        self.put(OnnxNode("Reshape", node.name, [source], [node.out], numbers), whole)


def known_kinds() -> set[str]:
    """Kinds of nodes that `fold` knows, in lower case."""
    methods = {name[1:] for name in vars(Folder) if name.startswith("_")}
    listed = {*EVALUATE, *UNARY, *BINARY, *_REDUCE, "Shape", "Size"}
    return methods | {kind.lower() for kind in listed}


def fold(program: Program) -> None:
    """Folds a program in place.

    Raises:
        InputError: a node does not fit its inputs.
    """
    Folder(program).run()
