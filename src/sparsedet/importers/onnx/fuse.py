"""Fuses operations of a graph: batch norms into weights, activations and sums into convolutions.

An operation takes what follows it only if nobody else reads what it makes. Weights are multiplied
in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...model.graph import Activate, Activation, Add, Affine, Conv, Operation
from ...model.operations.maps import LATE_RESIDUALS

F32 = NDArray[np.float32]


class Fuser:
    """Fuses in one pass, from the first operation to the last.

    Args:
        operations: of a graph, each with one layer at most.
        tensors: of their layers; changed in place.
        kept: values that must stay as they are: outputs, and what the tail reads.
    """

    def __init__(
        self, operations: Collection[Operation], tensors: dict[str, F32], kept: Collection[str]
    ) -> None:
        self.tensors, self.kept = tensors, set(kept)
        self.count: dict[str, int] = {}  # of readers
        for operation in operations:
            for name in operation.inputs:
                self.count[name] = self.count.get(name, 0) + 1
        self.done: dict[str, Operation] = {}  # in order
        self.now: dict[str, str] = {}  # what a value is called by now
        for operation in operations:
            inputs = tuple(self.now.get(name, name) for name in operation.inputs)
            self.take(replace(operation, inputs=inputs))

    def only_reader(self, name: str) -> Operation | None:
        """The operation that makes a value, if nobody else reads it."""
        return self.done.get(name) if self.count.get(name) == 1 and name not in self.kept else None

    def becomes(self, old: Operation, new: Operation) -> None:
        """`new` makes what `old` was to make, and takes the place of its own first form."""
        self.now[old.name] = new.name
        self.count[new.name] = self.count.get(old.name, 0)
        if old.name in self.kept:
            self.kept.add(new.name)
        self.done.pop(new.name)
        self.done[new.name] = new

    def take(self, operation: Operation) -> None:
        attributes = operation.attributes
        if isinstance(attributes, Affine) and self.scale(operation, attributes):
            return
        if isinstance(attributes, Activate) and self.activate(operation, attributes.activation):
            return
        if isinstance(attributes, Add) and attributes.activation == "none" and self.sum(operation):
            return
        self.done[operation.name] = operation

    def scale(self, operation: Operation, affine: Affine) -> bool:
        """A batch norm into the weights of the convolution, or the batch norm, before it."""
        before = self.only_reader(operation.inputs[0])
        if before is None or affine.activation != "none" or len(before.inputs) != 1:
            return False
        attributes = before.attributes
        if not isinstance(attributes, Conv | Affine) or attributes.activation != "none":
            return False
        layer = attributes.layer if isinstance(attributes, Affine) else attributes.layers[0]
        scale = self.tensors.pop(f"{affine.layer}.weight").astype(np.float64)
        offset = self.tensors.pop(f"{affine.layer}.bias").astype(np.float64)
        weight, bias = self.tensors[f"{layer}.weight"], self.tensors[f"{layer}.bias"]
        spread = scale.reshape(-1, *[1] * (weight.ndim - 1))
        self.tensors[f"{layer}.weight"] = (weight * spread).astype(np.float32)
        self.tensors[f"{layer}.bias"] = (bias * scale + offset).astype(np.float32)
        self.becomes(operation, before)
        return True

    def activate(self, operation: Operation, activation: Activation) -> bool:
        before = self.only_reader(operation.inputs[0])
        if before is None or not isinstance(before.attributes, Conv | Affine | Add):
            return False
        if before.attributes.activation != "none":
            return False
        changed = replace(before.attributes, activation=activation)
        self.becomes(operation, replace(before, attributes=changed))
        return True

    def sum(self, operation: Operation) -> bool:
        """A sum into the later of the convolutions that make its terms."""
        order = {name: i for i, name in enumerate(self.done)}
        terms = sorted(operation.inputs, key=lambda name: -order.get(name, -1))
        for name in terms:
            conv = self.only_reader(name)
            if conv is None or not isinstance(conv.attributes, Conv) or len(conv.inputs) != 1:
                continue
            attributes = conv.attributes
            late = attributes.activation != "none"
            if late and (attributes.activation not in LATE_RESIDUALS or attributes.groups != 1):
                continue
            other = terms[0] if terms[1] == name else terms[1]
            changed = replace(attributes, residual_last=late)
            fused = replace(conv, inputs=(*conv.inputs, other), attributes=changed)
            self.becomes(operation, fused)
            return True
        return False


def fuse(
    operations: Collection[Operation], tensors: dict[str, F32], kept: Collection[str]
) -> tuple[list[Operation], dict[str, str]]:
    """Fuse operations.

    Args:
        operations, tensors, kept: as of `Fuser`.

    Returns:
        The operations, and new names of values by their old ones.
    """
    fuser = Fuser(operations, tensors, kept)
    names = {}
    for name in fuser.now:
        last = name
        while last in fuser.now:
            last = fuser.now[last]
        names[name] = last
    return list(fuser.done.values()), names


def mark_prunable(operations: Collection[Operation], first: str) -> list[Operation]:
    """Convolutions are prunable by default but for the stem, predictors and depthwise ones.

    Args:
        operations: of a graph.
        first: name of the value that the stem reads.

    A predictor is a convolution after which no other one follows.
    """
    leads: dict[str, bool] = {}  # whether a convolution follows
    result = []
    for operation in reversed(list(operations)):
        attributes = operation.attributes
        if isinstance(attributes, Conv):
            follows = leads.get(operation.name, False)
            stem = operation.inputs[0] == first
            prunable = follows and not stem and attributes.groups == 1
            operation = replace(operation, attributes=replace(attributes, prunable=prunable))
        follows = isinstance(attributes, Conv) or leads.get(operation.name, False)
        for name in operation.inputs:
            leads[name] = leads.get(name, False) or follows
        result.append(operation)
    return result[::-1]
