"""Base of the readers of box arithmetic: constants near a node, fields of the configuration.

Glossary: a field is one of `ModelConfig`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...model.config import ModelConfig
from ...model.presets import PRESETS
from .graph import IR, Array, Node, descendants
from .layers import ImportedNetwork

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
"""Operations that only move or convert values."""


class FieldReader:
    """Collects fields of the configuration from the graph.

    Args:
        ir: the graph.
        network: its layers.
        base: configuration; its values are kept where the graph's are the same in float32.

    Attributes:
        fields: fields read from the graph.
        notes: lines on arithmetic that differs from the engine's.
    """

    def __init__(self, ir: IR, network: ImportedNetwork, base: ModelConfig) -> None:
        self.ir, self.network, self.base = ir, network, base
        self.fields: dict[str, Any] = {}
        self.notes: list[str] = []
        self.layers = {name: affine.out for name, affine in network.layers.items()}

    def _single(self, type_: str) -> Node | None:
        """The only node of a type, None without one."""
        nodes = self.ir.of_type(type_)
        if len(nodes) > 1:
            raise self.ir.error(f"has {len(nodes)} operations {type_}, expected one")
        return nodes[0] if nodes else None

    def number(self, field: str, value: float, index: int | None = None) -> float:
        """`value`, or the field of the base or a preset that equals it in float32.

        Args:
            index: position in a field of several numbers.
        """
        for config in (self.base, *PRESETS.values()):
            entry = getattr(config, field)
            entry = entry if index is None else (entry[index] if index < len(entry) else np.nan)
            if abs(float(entry) - value) <= 1e-6 * abs(float(entry)):
                return float(entry)
        return float(f"{value:.7g}")

    def put(self, field: str, value: Any) -> None:
        """Set a field; floats as `number` returns them."""
        if isinstance(value, tuple):
            value = tuple(self.number(field, float(v), i) for i, v in enumerate(value))
        elif isinstance(value, float):
            value = self.number(field, value)
        self.fields[field] = value

    def _scalar(self, node: Node, index: int) -> float | None:
        """The constant number at an input, None if there is none."""
        value = self.ir.operand(node, index)
        return None if value is None or value.size != 1 else float(value.reshape(-1)[0])

    def _constants(self, nodes: Iterable[Node]) -> Iterable[Array]:
        """All constants at the inputs of the nodes."""
        for node in nodes:
            for index in range(len(node.inputs)):
                value = self.ir.operand(node, index)
                if value is not None:
                    yield value

    def _downstream(self, node: Node) -> list[Node]:
        """First nodes after `node` that do more than move values."""
        reached, pending, seen = [], [node], {node}
        while pending:
            for consumer in pending.pop(0).consumers:
                if consumer in seen or consumer.type == "ShapeOf":
                    continue
                seen.add(consumer)
                if consumer.type in PASSED:
                    pending.append(consumer)
                else:
                    reached.append(consumer)
        return reached

    def _upstream(self, node: Node) -> Node:
        """The node whose values `node` only moves; `node` itself if it computes."""
        while node.type in PASSED and node.inputs:
            node = node.inputs[0][0]
        return node

    def _box_weights(self, deltas: Node) -> tuple[float, ...]:
        """Divisors of the deltas before they are decoded; ones without any."""
        for node in self._downstream(deltas):
            if node.type in ("Divide", "Multiply"):
                value = self.ir.operand(node, 1)
                if value is not None and value.size in (1, 4):
                    four = np.broadcast_to(value.reshape(-1).astype(np.float64), 4)
                    four = four if node.type == "Divide" else 1 / four
                    return tuple(four.tolist())
        return (1.0, 1.0, 1.0, 1.0)

    def _clamp(self, region: set[Node]) -> float:
        """Upper limit of the exponent; 20, in effect no limit, where the graph has none."""
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
        raise self.ir.error(
            "decodes boxes without an exponential, expected R-CNN's decoding of deltas"
        )

    def _stops(self, region: Iterable[Node], after: Node) -> list[int]:
        """Ends n of slices [:n] of the first axis, of nodes that depend on `after`."""
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
