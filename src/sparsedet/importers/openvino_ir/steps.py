"""Single steps of following an IR: what reads a value, and a layer with all that belongs to it.

Paddings, crops, biases and batch norms that stand as operations of their own are taken into the
layer they belong to. Which layer comes where is `ir_layers`' matter.

Glossary: x is the node whose output is the current activation; O output channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .graph import IR, Array, Node


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """A node that reads x, and what lies between: padding (before, after), step of a slice."""

    node: Node
    padding: tuple[int, int]
    step: int


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A convolution or matrix product with its bias (and batch norm) taken in.

    Attributes:
        node: the convolution or product.
        weight, bias: [O, I, k, k] or [O, I]; [O], float32.
        relu: a ReLU follows.
        out: the last node that was taken in.
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


class Steps:
    """Attributes:
    taken: convolutions and products that were made to layers.
    rois: RoIAlign nodes behind hoisted layers.
    """

    def __init__(self, ir: IR) -> None:
        self.ir = ir
        self.taken: set[Node] = set()
        self.rois: list[Node] = []

    def _unfit(self, node: Node, expected: str) -> InputError:
        return self.ir.error(f"{node.says()}: expected {expected}")

    def _reach(self, x: Node) -> list[Reached]:
        """What reads x, through paddings and slices of rows and columns."""
        found: list[Reached] = []
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
                    found.append(Reached(consumer, padding, step))
        return found

    def _padding(self, node: Node) -> tuple[int, int]:
        begins, ends = self.ir.operand(node, 1), self.ir.operand(node, 2)
        if begins is not None and ends is not None and begins.size == ends.size == 4:
            b, e = begins.reshape(-1).tolist(), ends.reshape(-1).tolist()
            same = b[:2] == e[:2] == [0, 0] and b[2] == b[3] and e[2] == e[3]
            if same and node.attributes.get("pad_mode") == "constant":
                return b[2], e[2]
        raise self._unfit(node, "the same constant padding of rows and columns")

    def _window(self, node: Node) -> tuple[int, int]:
        """(last rows and columns cut off, step) of a slice; (0, 1) if it leaves the map whole."""
        given, left = node.inputs[0][0].shapes[node.inputs[0][1]], node.shape
        if node.type == "Convert" or len(given) != 4 or len(left) != 4 or given[2:] == left[2:]:
            return 0, 1
        starts, steps = [], []
        for axis in (2, 3):
            if node.type == "Slice":
                axes = self.ir.operand(node, 4)
                listed = [0, 1, 2, 3] if axes is None else [int(a) % 4 for a in axes.reshape(-1)]
                places = [listed.index(axis)] if axis in listed else []
                begin, step = self.ir.operand(node, 1), self.ir.operand(node, 3)
            else:
                places = [axis]
                begin, step = self.ir.operand(node, 1), self.ir.operand(node, 3)
            if begin is None or (step is None and node.type == "Slice"):
                raise self._unfit(node, "a slice by constants")
            for place in places:
                starts.append(int(begin.reshape(-1)[place]))
                steps.append(1 if step is None else int(step.reshape(-1)[place]))
        crop = {given[axis] - left[axis] for axis in (2, 3)}
        if len(set(steps)) == 1 and set(starts) == {0}:
            if steps[0] == 1 and len(crop) == 1:
                return crop.pop(), 1
            if steps[0] == 2:
                return 0, 2
        raise self._unfit(node, "a slice that drops the last rows and columns, or every second one")

    def _convolutions(self, x: Node, count: int) -> list[Reached]:
        found = [r for r in self._reach(x) if r.node.type == "Convolution"]
        if len(found) != count:
            raise self._unfit(x, f"{count} convolution(s) that read it, found {len(found)}")
        return found

    def _linear(self, reached: Reached) -> Linear:
        """A convolution or matrix product, and what follows it channel by channel."""
        node, ir = reached.node, self.ir
        weight = ir.operand(node, 1)
        if weight is None or weight.dtype.kind != "f":
            raise self._unfit(node, "constant weights of floats")
        stride, padding = 1, (0, 0)
        if node.type == "MatMul":
            if weight.ndim != 2 or node.flag("transpose_a"):
                raise self._unfit(node, "a product of regions with a matrix")
            weight = weight if node.flag("transpose_b") else weight.T
        else:
            if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
                raise self._unfit(node, f"a square kernel, found {weight.shape}")
            if set(node.numbers("dilations")) - {1}:
                raise self._unfit(node, "no dilation")
            stride, padding = self._geometry(node, int(weight.shape[2]))
        if node in self.taken:
            raise self._unfit(node, "a layer that is read once")
        self.taken.add(node)
        padding = (padding[0] + reached.padding[0], padding[1] + reached.padding[1])
        folded = np.ascontiguousarray(weight.astype(np.float32))
        return self._absorb(node, folded, stride * reached.step, padding)

    def _geometry(self, node: Node, kernel: int) -> tuple[int, tuple[int, int]]:
        """Stride and padding, the same along both axes."""
        strides = {int(n) for n in node.numbers("strides")} or {1}
        begins, ends = (
            [int(n) for n in node.numbers(key)] or [0] for key in ("pads_begin", "pads_end")
        )
        (stride,) = strides if len(strides) == 1 else (0,)
        automatic = node.attributes.get("auto_pad", "explicit").lower()
        if automatic.startswith("same"):
            given, left = node.inputs[0][0].shapes[node.inputs[0][1]][2:], node.shape[2:]
            total = [
                max((m - 1) * stride + kernel - n, 0) for n, m in zip(given, left, strict=True)
            ]
            low = [t // 2 for t in total]
            high = [t - t // 2 for t in total]
            begins, ends = (low, high) if automatic.endswith("upper") else (high, low)
        elif automatic == "valid":
            begins = ends = [0]
        if stride not in (1, 2) or len(set(begins)) != 1 or len(set(ends)) != 1:
            raise self._unfit(node, "stride 1 or 2 and one padding for rows and columns")
        return stride, (begins[0], ends[0])

    def _absorb(self, node: Node, weight: Array, stride: int, padding: tuple[int, int]) -> Linear:
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
            return Linear(node, weight, bias.astype(np.float32), stride, padding, relu, out)

    def _per_channel(self, node: Node, x: Node, channels: int) -> Array | None:
        """The other operand as float64 [O], if it is a constant for each channel."""
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
        values = [self.ir.operand(node, index) for index in (1, 2, 3, 4)]
        if any(v is None or v.size != channels for v in values):
            raise self._unfit(node, "four constants for each channel")
        gamma, beta, mean, variance = (np.asarray(v, dtype=np.float64).reshape(-1) for v in values)
        factor = gamma / np.sqrt(variance + node.number("epsilon", node.number("eps", 1e-5)))
        return factor, beta - mean * factor
