"""What packed elements ask of a graph: which of its values they can hold, from where on."""

from __future__ import annotations

from ..model.graph import (
    Concat,
    Conv,
    DepthToSpace,
    Graph,
    MaxPool,
    Normalise,
    Operation,
    Resize,
    Shuffle,
    Slice,
)
from ..model.rewrite import is_predictor

CHANNELS = {"f32": 1, "bf16": 2, "int8": 4}
"""Neighbouring channels of a packed element."""
PASSING = (Concat, DepthToSpace, MaxPool, Resize, Shuffle, Slice)
"""Operations whose outputs are values of their inputs."""


def is_depthwise(graph: Graph, operation: Operation) -> bool:
    """Whether the core runs a convolution channel by channel: on maps, within one type."""
    conv, x = operation.attributes, graph.shapes[operation.inputs[0]]
    if not isinstance(conv, Conv):
        return False
    every = 1 < conv.groups == x.channels == conv.out_channels
    return every and x.domain == "map" and not is_predictor(graph, operation.name)


def keeps_elements(graph: Graph, operation: Operation, size: int) -> bool:
    """Whether all parts that an operation joins begin with an element of `size` channels."""
    if isinstance(operation.attributes, Concat):
        return all(graph.shapes[name].channels % size == 0 for name in operation.inputs[:-1])
    if isinstance(operation.attributes, DepthToSpace):
        return graph.shapes[operation.name].channels % size == 0
    return True


def in_pairs(graph: Graph, name: str) -> bool:
    """Whether pairs of pixels serve all readers of the normalised image."""
    return all(
        isinstance(reader.attributes, Conv)
        and reader.attributes.stride % 2 == 0
        and reader.attributes.dilation == reader.attributes.groups == 1
        for reader in graph.readers[name]
    )


def image_values(graph: Graph) -> set[str]:
    """The values that hold the normalised image, whole or in parts."""
    found: set[str] = set()
    for operation in graph.operations:
        sources = (
            operation.inputs[:1] if isinstance(operation.attributes, Resize) else operation.inputs
        )
        passing = isinstance(operation.attributes, PASSING) and found.issuperset(sources)
        if passing or isinstance(operation.attributes, Normalise):
            found.add(operation.name)
    return found
