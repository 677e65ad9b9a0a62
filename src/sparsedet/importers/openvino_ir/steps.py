"""Single steps of following an IR: the readers of a value, and a layer with its operations.

Paddings, crops, biases and batch norms may be operations of their own; they are merged into their
layer. `layers` knows the order of the layers.

Glossary: x is the node whose output is the current activation; O output channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .graph import IR, Array, Node


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """A node that reads x, with the padding (before, after) and slice step in between."""

    node: Node
    padding: tuple[int, int]
    step: int


@dataclass(frozen=True, slots=True, eq=False)
class AffineOp:
    """A convolution or matrix product with its bias and batch norm merged.

    Attributes:
        node: the convolution or product.
        weight, bias: [O, I, k, k] or [O, I]; [O], float32.
        stride, padding: of a convolution; padding (before, after), a crop is negative.
        relu: whether a ReLU follows.
        out: the last merged node.
    """

    node: Node
    weight: Array
    bias: Array
    stride: int
    padding: tuple[int, int]
    relu: bool
    out: Node

    @property
    def kernel(self) -> int:
        return int(self.weight.shape[2]) if self.weight.ndim == 4 else 1


class OperationReader:
    """Reads single layers.

    Attributes:
        taken: convolutions and products that belong to a layer.
        rois: RoIAlign nodes after hoisted layers.
    """

    def __init__(self, ir: IR) -> None:
        self.ir = ir
        self.taken: set[Node] = set()
        self.rois: list[Node] = []

    def _unexpected(self, node: Node, expected: str) -> InputError:
        return self.ir.error(f"{node.label()}: expected {expected}")

    def _reach(self, x: Node) -> list[Reached]:
        """The nodes that read x, also through paddings and slices of rows and columns."""
        readers: list[Reached] = []
        pending = [(x, (0, 0), 1)]
        while pending:
            node, padding, step = pending.pop(0)
            for consumer in dict.fromkeys(node.consumers):
                before, after = padding
                if consumer.type == "Pad":
                    more = self._padding(consumer)
                    pending.append((consumer, (before + more[0], after + more[1]), step))
                elif consumer.type in ("Slice", "StridedSlice", "Convert"):
                    crop, factor = self._window(consumer)
                    pending.append((consumer, (before, after - crop), step * factor))
                elif consumer.type != "ShapeOf":
                    readers.append(Reached(consumer, padding, step))
        return readers

    def _padding(self, node: Node) -> tuple[int, int]:
        """(before, after) of a Pad node."""
        begins, ends = self.ir.operand(node, 1), self.ir.operand(node, 2)
        if begins is not None and ends is not None and begins.size == ends.size == 4:
            b, e = begins.reshape(-1).tolist(), ends.reshape(-1).tolist()
            same = b[:2] == e[:2] == [0, 0] and b[2] == b[3] and e[2] == e[3]
            if same and node.attributes.get("pad_mode") == "constant":
                return b[2], e[2]
        raise self._unexpected(node, "the same constant padding of rows and columns")

    def _window(self, node: Node) -> tuple[int, int]:
        """(last rows and columns dropped, step) of a slice; (0, 1) if it keeps the whole map."""
        source, port = node.inputs[0]
        before, after = source.shapes[port], node.shape
        if node.type == "Convert" or len(before) != 4 or len(after) != 4 or before[2:] == after[2:]:
            return 0, 1
        starts, steps = [], []
        for axis in (2, 3):
            if node.type == "Slice":
                axes = self.ir.operand(node, 4)
                listed = [0, 1, 2, 3] if axes is None else [int(a) % 4 for a in axes.reshape(-1)]
                indices = [listed.index(axis)] if axis in listed else []
                begin, step = self.ir.operand(node, 1), self.ir.operand(node, 3)
            else:
                indices = [axis]
                begin, step = self.ir.operand(node, 1), self.ir.operand(node, 3)
            if begin is None or (step is None and node.type == "Slice"):
                raise self._unexpected(node, "a slice by constants")
            for index in indices:
                starts.append(int(begin.reshape(-1)[index]))
                steps.append(1 if step is None else int(step.reshape(-1)[index]))
        crop = {before[axis] - after[axis] for axis in (2, 3)}
        if len(set(steps)) == 1 and set(starts) == {0}:
            if steps[0] == 1 and len(crop) == 1:
                return crop.pop(), 1
            if steps[0] == 2:
                return 0, 2
        raise self._unexpected(
            node, "a slice that drops the last rows and columns, or every second one"
        )

    def _convolutions(self, x: Node, count: int) -> list[Reached]:
        """The `count` convolutions that read x."""
        readers = [r for r in self._reach(x) if r.node.type == "Convolution"]
        if len(readers) != count:
            raise self._unexpected(x, f"{count} convolution(s) that read it, found {len(readers)}")
        return readers

    def _affine_op(self, reached: Reached) -> AffineOp:
        """A convolution or matrix product, with the operations per channel that follow it."""
        node, ir = reached.node, self.ir
        weight = ir.operand(node, 1)
        if weight is None or weight.dtype.kind != "f":
            raise self._unexpected(node, "constant weights of floats")
        stride, padding = 1, (0, 0)
        if node.type == "MatMul":
            if weight.ndim != 2 or node.flag("transpose_a"):
                raise self._unexpected(node, "a product of RoIs with a matrix")
            weight = weight if node.flag("transpose_b") else weight.T
        else:
            if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
                raise self._unexpected(node, f"a square kernel, found {weight.shape}")
            if set(node.numbers("dilations")) - {1}:
                raise self._unexpected(node, "no dilation")
            stride, padding = self._geometry(node, int(weight.shape[2]))
        if node in self.taken:
            raise self._unexpected(node, "a layer that is read once")
        self.taken.add(node)
        padding = (padding[0] + reached.padding[0], padding[1] + reached.padding[1])
        folded = np.ascontiguousarray(weight.astype(np.float32))
        return self._merge(node, folded, stride * reached.step, padding)

    def _geometry(self, node: Node, kernel: int) -> tuple[int, tuple[int, int]]:
        """Stride and padding, the same along both axes."""
        strides = {int(n) for n in node.numbers("strides")} or {1}
        begins, ends = (
            [int(n) for n in node.numbers(key)] or [0] for key in ("pads_begin", "pads_end")
        )
        (stride,) = strides if len(strides) == 1 else (0,)
        automatic = node.attributes.get("auto_pad", "explicit").lower()
        if automatic.startswith("same"):
            source, port = node.inputs[0]
            sizes = zip(source.shapes[port][2:], node.shape[2:], strict=True)
            total = [max((m - 1) * stride + kernel - n, 0) for n, m in sizes]
            low = [t // 2 for t in total]
            high = [t - t // 2 for t in total]
            begins, ends = (low, high) if automatic.endswith("upper") else (high, low)
        elif automatic == "valid":
            begins = ends = [0]
        if stride not in (1, 2) or len(set(begins)) != 1 or len(set(ends)) != 1:
            raise self._unexpected(node, "stride 1 or 2 and one padding for rows and columns")
        return stride, (begins[0], ends[0])

    def _merge(self, node: Node, weight: Array, stride: int, padding: tuple[int, int]) -> AffineOp:
        """Merge the operations after a convolution or product, up to its ReLU."""
        out, scale, bias = node, None, np.zeros(len(weight))
        relu = False
        while not relu:
            after = [c for c in out.consumers if c.type != "ShapeOf"]
            if len(after) != 1:
                break
            (follower,) = after
            if follower.type in ("Add", "Subtract", "Multiply", "Divide"):
                value = self._per_channel(follower, out, len(weight))
                if value is None:
                    break
                match follower.type:
                    case "Add":
                        bias = bias + value
                    case "Subtract":
                        bias = bias - value
                    case _:
                        value = value if follower.type == "Multiply" else 1 / value
                        bias, scale = bias * value, value if scale is None else scale * value
            elif follower.type == "BatchNormInference":
                factor, shift = self._batch_norm(follower, len(weight))
                bias, scale = bias * factor + shift, factor if scale is None else scale * factor
            elif follower.type == "ROIAlign" and follower.inputs[0][0] is out:  # hoisted
                self.rois.append(follower)
            elif follower.type in ("Slice", "StridedSlice") and self.rois:
                stride *= self._window(follower)[1]
            elif follower.type == "ReLU":
                relu = True
            elif follower.type != "Convert":
                break
            out = follower
        if scale is not None:
            weight = (weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))).astype(np.float32)
        with np.errstate(over="ignore"):
            return AffineOp(node, weight, bias.astype(np.float32), stride, padding, relu, out)

    def _per_channel(self, node: Node, x: Node, channels: int) -> Array | None:
        """The other operand as float64 [O] if it is a constant per channel, else None."""
        first = node.inputs[0][0] is x
        value = self.ir.operand(node, 1 if first else 0)
        if value is None or (node.type in ("Subtract", "Divide") and not first):
            return None
        rank = max(len(x.shape), 2)
        shape = (1,) * (rank - value.ndim) + value.shape
        if value.size not in (1, channels) or (value.size > 1 and shape[1] != channels):
            return None
        return np.broadcast_to(value.astype(np.float64).reshape(-1), channels)

    def _batch_norm(self, node: Node, channels: int) -> tuple[Array, Array]:
        """Factor and shift [O] of a BatchNormInference node."""
        values = [self.ir.operand(node, index) for index in (1, 2, 3, 4)]
        if any(v is None or v.size != channels for v in values):
            raise self._unexpected(node, "four constants for each channel")
        gamma, beta, mean, variance = (np.asarray(v, dtype=np.float64).reshape(-1) for v in values)
        factor = gamma / np.sqrt(variance + node.number("epsilon", node.number("eps", 1e-5)))
        return factor, beta - mean * factor
