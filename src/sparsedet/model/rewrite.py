"""Rewrites: functions graph -> graph that keep what the network computes, up to rounding.

They happen before anybody runs the graph: exporters and the engine see plain operations, and need
no rule of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

from .graph import (
    Attributes,
    Conv,
    Detecting,
    Graph,
    MaskOutput,
    Operation,
    Proposals,
    RoiAlign,
    Slice,
)

HOISTED = "roialign."
"""Prefix of the RoIAlign after a hoisted layer."""


def _with_convs(graph: Graph, change: Callable[[Conv], Conv]) -> Graph:
    return Graph(
        graph.image,
        tuple(
            replace(operation, attributes=change(operation.attributes))
            if isinstance(operation.attributes, Conv)
            else operation
            for operation in graph.operations
        ),
    )


def _reading(operation: Operation, renamed: Mapping[str, str]) -> Operation:
    """The operation with other names of values that it reads."""
    return replace(operation, inputs=tuple(renamed.get(name, name) for name in operation.inputs))


def fold_batch_norms(graph: Graph) -> Graph:
    """Without batch norms; `batch_norm.fold_batch_norm` does the same to the tensors."""
    return _with_convs(graph, lambda conv: replace(conv, norm=False))


def is_predictor(graph: Graph, name: str) -> bool:
    """Whether a value is read by proposals or detections alone: it stays float32."""
    readers = graph.readers[name]
    return bool(readers) and all(
        isinstance(reader.attributes, Proposals | Detecting | MaskOutput)
        or (isinstance(reader.attributes, Slice) and is_predictor(graph, reader.name))
        for reader in readers
    )


def merge_predictors(graph: Graph) -> Graph:
    """Predictors that read the same value become one convolution, and slices of its output."""
    groups: dict[tuple[object, ...], list[Operation]] = {}
    for operation, conv in graph.of_kind(Conv):
        if is_predictor(graph, operation.name):
            form = replace(conv, out_channels=0, layers=())
            groups.setdefault((operation.inputs, form), []).append(operation)
    merged = {members[0].name: members for members in groups.values() if len(members) > 1}
    if not merged:
        return graph
    inner = {member.name for members in merged.values() for member in members}
    operations: list[Operation] = []
    taken = set(graph.shapes)
    for operation in graph.operations:
        if operation.name in merged:
            operations += _merge(graph, merged[operation.name], taken)
        elif operation.name not in inner:
            operations.append(operation)
    return Graph(graph.image, tuple(operations))


def _common(words: list[list[str]]) -> list[str]:
    """What all lists begin with."""
    parts = zip(*words, strict=False)
    return [part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts)]


def _merge(graph: Graph, members: list[Operation], taken: set[str]) -> list[Operation]:
    """One convolution and its slices; its name is added to those that are taken."""
    names = [member.name for member in members]
    words = [name.split(".") for name in names]
    before, after = _common(words), _common([word[::-1] for word in words])[::-1]
    name = ".".join([*before, "predictors", *after])
    if name in taken:  # the members' names have nothing in common
        name = f"{names[0]}.predictors"
    taken.add(name)
    convs = [conv for operation, conv in graph.of_kind(Conv) if operation.name in names]
    whole = replace(
        convs[0],
        out_channels=sum(conv.out_channels for conv in convs),
        layers=tuple(layer for conv in convs for layer in conv.layers),
    )
    operations, first = [Operation(name, members[0].inputs, whole)], 0
    for member, conv in zip(members, convs, strict=True):
        operations.append(Operation(member.name, (name,), Slice(first, conv.out_channels)))
        first += conv.out_channels
    return operations


def _pointwise(graph: Graph, align: Operation) -> list[tuple[Operation, Conv]]:
    """The readers of a RoIAlign, if all are 1x1 convolutions that add nothing and read every
    stride-th bin, the first one included; else none."""
    readers = [(reader, reader.attributes) for reader in graph.readers[align.name]]
    bins = graph.shapes[align.name].height
    found = [
        (reader, conv)
        for reader, conv in readers
        if isinstance(conv, Conv)
        and conv.kernel == (1, 1)
        and conv.padding[:2] == (0, 0)
        and graph.shapes[reader.name].size == (-(-bins // conv.stride),) * 2
        and len(reader.inputs) == 1
    ]
    return found if len(found) == len(readers) else []


def skip_bins(graph: Graph) -> Graph:
    """RoIAlign computes only the bins that its readers read.

    The readers are 1x1 convolutions of stride s: every s-th bin stays, and their stride becomes 1.
    """
    changed: dict[str, Operation] = {}
    for operation, align in graph.of_kind(RoiAlign):
        readers = _pointwise(graph, operation)
        strides = {conv.stride for _, conv in readers}
        if len(strides) != 1:
            continue
        step = align.step * strides.pop()
        changed[operation.name] = replace(operation, attributes=replace(align, step=step))
        for reader, conv in readers:
            single = replace(conv, stride=1, padding=(0, 0, 0, 0))
            changed[reader.name] = replace(reader, attributes=single)
    if not changed:
        return graph
    return Graph(graph.image, tuple(changed.get(o.name, o) for o in graph.operations))


def merge_equal(graph: Graph) -> Graph:
    """Operations of the same inputs and attributes become one; the last operation stays.

    A Mask R-CNN C4 runs res5 on the RoIs of proposals and again on those of its detections. `hoist`
    moves the first convolutions of both onto the same map, where they are the same work: at
    800x1344 pixels 22 GFLOPs.
    """
    renamed: dict[str, str] = {}
    seen: dict[tuple[tuple[str, ...], Attributes], str] = {}
    operations: list[Operation] = []
    for operation in graph.operations:
        operation = _reading(operation, renamed)
        key = (operation.inputs, operation.attributes)
        if operation.name != graph.output and key in seen:
            renamed[operation.name] = seen[key]
        else:
            seen.setdefault(key, operation.name)
            operations.append(operation)
    return Graph(graph.image, tuple(operations)) if renamed else graph


def hoist(graph: Graph) -> Graph:
    """1x1 convolutions that read a RoIAlign run once on the map, before RoIAlign.

    RoIAlign is linear in the map, so it may take the output of the linear part. Bias and
    activation come after it, because samples outside of the map are zero. The RoIAlign of a layer
    NAME is called `HOISTED` + NAME.
    """
    before: dict[str, list[Operation]] = {}  # instead of a RoIAlign
    instead: dict[str, Operation] = {}
    for operation, align in graph.of_kind(RoiAlign):
        readers = _pointwise(graph, operation)
        if not readers or len(align.scales) > 1 or align.bias_of or align.activation != "none":
            continue
        if any(len(conv.layers) > 1 or not conv.bias for _, conv in readers):
            continue
        source, boxes = operation.inputs
        before[operation.name] = []
        for reader, conv in readers:
            (layer,) = conv.layers
            linear = replace(
                conv, stride=1, padding=(0, 0, 0, 0), activation="none", bias=False, norm=False
            )
            before[operation.name].append(Operation(reader.name, (source,), linear))
            instead[reader.name] = Operation(
                HOISTED + reader.name,
                (reader.name, boxes),
                replace(
                    align,
                    step=align.step * conv.stride,
                    bias_of=layer,
                    activation=conv.activation,
                ),
            )
    if not before:
        return graph
    renamed = {name: operation.name for name, operation in instead.items()}
    operations: list[Operation] = []
    for operation in graph.operations:
        if operation.name in before:
            operations += before[operation.name]
        else:
            operations.append(instead.get(operation.name) or _reading(operation, renamed))
    return Graph(graph.image, tuple(operations))
