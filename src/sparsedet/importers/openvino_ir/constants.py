"""What the readers of box arithmetic share: constants near a node, and fields of the configuration.

Glossary: a field is one of `ModelConfig`'s, found in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...model.config import ModelConfig
from ...model.presets import PRESETS
from .graph import IR, Array, Node, descendants
from .layers import Body

PASSED = {
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Convert",
    "Gather",
    "Slice",
    "StridedSlice",
    "Split",
    "VariadicSplit",
    "Broadcast",
}
"""Operations that only move values."""


class Fields:
    """Fields of the configuration by what the graph says.

    Args:
        base: what is kept where the graph states nothing, or the same in float32.

    Attributes:
        fields: found.
        notes: what differs from the engine's arithmetic, or could not be read.
    """

    def __init__(self, ir: IR, body: Body, base: ModelConfig) -> None:
        self.ir, self.body, self.base = ir, body, base
        self.fields: dict[str, Any] = {}
        self.notes: list[str] = []
        self.layers = {name: linear.out for name, linear in body.layers.items()}

    def _single(self, kind: str) -> Node | None:
        found = self.ir.of_type(kind)
        if len(found) > 1:
            raise self.ir.error(f"has {len(found)} operations {kind}, expected one")
        return found[0] if found else None

    def number(self, field: str, value: float, index: int | None = None) -> float:
        """`value`, or what the base or a preset has if it is the same up to float32's rounding."""
        for config in (self.base, *PRESETS.values()):
            known = getattr(config, field)
            known = known if index is None else (known[index] if index < len(known) else np.nan)
            if abs(float(known) - value) <= 1e-6 * abs(float(known)):
                return float(known)
        return float(f"{value:.7g}")

    def put(self, field: str, value: Any) -> None:
        """Note a field; floats as `number` gives them."""
        if isinstance(value, tuple):
            value = tuple(self.number(field, float(v), i) for i, v in enumerate(value))
        elif isinstance(value, float):
            value = self.number(field, value)
        self.fields[field] = value

    def _scalar(self, node: Node, index: int) -> float | None:
        value = self.ir.operand(node, index)
        return None if value is None or value.size != 1 else float(value.reshape(-1)[0])

    def _constants(self, nodes: Iterable[Node]) -> Iterable[Array]:
        for node in nodes:
            for index in range(len(node.inputs)):
                value = self.ir.operand(node, index)
                if value is not None:
                    yield value

    def _downstream(self, node: Node) -> list[Node]:
        """First nodes after `node` that do more than move values."""
        found, pending, seen = [], [node], {node}
        while pending:
            for consumer in pending.pop(0).consumers:
                if consumer in seen or consumer.type == "ShapeOf":
                    continue
                seen.add(consumer)
                if consumer.type in PASSED:
                    pending.append(consumer)
                else:
                    found.append(consumer)
        return found

    def _upstream(self, node: Node) -> Node:
        """`node`, or what it passes on, through operations that move values."""
        while node.type in PASSED and node.inputs:
            node = node.inputs[0][0]
        return node

    def _box_weights(self, deltas: Node) -> tuple[float, ...]:
        """What deltas are divided by before they are decoded; ones if by nothing."""
        for node in self._downstream(deltas):
            if node.type in ("Divide", "Multiply"):
                value = self.ir.operand(node, 1)
                if value is not None and value.size in (1, 4):
                    four = np.broadcast_to(value.reshape(-1).astype(np.float64), 4)
                    four = four if node.type == "Divide" else 1 / four
                    return tuple(four.tolist())
        return (1.0, 1.0, 1.0, 1.0)

    def _clamp(self, region: set[Node]) -> float:
        """Upper limit of what goes into the exponential; 20, in effect none, if there is none."""
        for node in self.ir.of_type("Exp"):
            if node not in region:
                continue
            source = self._upstream(node.inputs[0][0])
            if source.type == "Clamp":
                return source.number("max", 20.0)
            if source.type == "Minimum":
                limits = [self._scalar(source, index) for index in range(2)]
                return next((limit for limit in limits if limit is not None), 20.0)
            return 20.0
        raise self.ir.error("decodes boxes without an exponential, expected R-CNN's deltas")

    def _stops(self, region: Iterable[Node], after: Node) -> list[int]:
        """Ends of slices [:n] of the first axis downstream of `after`."""
        later, stops = descendants(after), []
        for node in region:
            if node not in later or node.type not in ("Slice", "StridedSlice"):
                continue
            start, stop = self.ir.operand(node, 1), self.ir.operand(node, 2)
            if start is None or stop is None or not start.size or not stop.size:
                continue
            axes = self.ir.operand(node, 4) if node.type == "Slice" else None
            axis = 0 if axes is None else int(axes.reshape(-1)[0])
            first, last = int(start.reshape(-1)[0]), int(stop.reshape(-1)[0])
            if axis == 0 and first == 0 and 0 < last < 1 << 30:
                stops.append(last)
        return stops
