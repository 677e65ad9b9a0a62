"""Detectors in ONNX files, recognised by what their tail computes, not by its nodes.

The maps that a tail reads are taken apart into predictors: of each level one of class logits, one
of boxes and at most one of objectness. If the outputs for random numbers are those of a known
family (`decoding`), the tail is replaced by one operation, which decodes what passes its threshold.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...model.config import COCO_CATEGORY_IDS, COCO_NAMES
from ...model.detector_config import DetectorConfig
from ...model.graph import (
    IMAGE,
    Activate,
    CellOutput,
    Concat,
    Conv,
    Graph,
    Normalise,
    Operation,
)
from ...model.network import NetworkConfig
from ...model.tail import run_tail
from .decoding import FAMILIES, Family, Level

F32 = NDArray[np.float32]
_MOST_CLASSES = 1000
_MOST_LEVELS = 6


@dataclass(frozen=True, slots=True)
class _Predictor:
    """A map of predictions: the value that has them, before a sigmoid that may follow."""

    name: str
    sigmoid: bool
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """A family, and the predictors of each level: logits, boxes, objectness if there is one."""

    family: Family
    levels: tuple[tuple[_Predictor, ...], ...]
    strides: tuple[int, ...]


def _predictors(graph: Graph, name: str) -> list[_Predictor]:
    """What a map that a tail reads is made of, in order of its channels."""
    operation, shape = graph.by_name[name], graph.shapes[name]
    attributes = operation.attributes
    if isinstance(attributes, Concat):
        return [part for source in operation.inputs for part in _predictors(graph, source)]
    if isinstance(attributes, Activate) and attributes.activation == "sigmoid":
        return [_Predictor(operation.inputs[0], True, shape.channels, shape.size)]
    sigmoid = isinstance(attributes, Conv) and attributes.activation == "sigmoid"
    return [_Predictor(name, sigmoid, shape.channels, shape.size)]


def _arrangements(parts: Sequence[Sequence[_Predictor]]) -> Iterator[list[tuple[_Predictor, ...]]]:
    """Each way in which the predictors of all levels may be logits, boxes and objectness."""
    count = len(parts[0])
    for order in itertools.permutations(range(count)):
        levels = [tuple(level[i] for i in order) for level in parts]
        first = levels[0]
        same = all(tuple(p.channels for p in o) == tuple(p.channels for p in first) for o in levels)
        boxes = first[1].channels % 4 == 0 and first[0].channels <= _MOST_CLASSES
        if same and boxes and (count == 2 or first[2].channels == 1):
            yield levels


def _strides(image: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, ...] | None:
    """Pixels between two cells of each level: a power of two, of which the last cell may be cut."""
    strides = []
    for size in sizes:
        stride = 2 ** round(math.log2(image[0] / size[0]))
        if tuple(-(-length // stride) for length in image) != size:
            return None
        strides.append(stride)
    return tuple(strides) if len(set(strides)) == len(strides) else None


def find_detections(config: NetworkConfig, constants: Mapping[str, F32]) -> Found | None:
    """The family of a detector, and its predictors; None: it is none that is known."""
    graph = config.graph
    leaves = {name: _predictors(graph, name) for name in config.read}
    sizes: dict[tuple[int, int], list[_Predictor]] = {}
    for parts in leaves.values():
        for part in parts:
            sizes.setdefault(part.size, []).append(part)
    order = sorted(sizes, reverse=True)
    counts = {len(parts) for parts in sizes.values()}
    strides = _strides(graph.image.size, order)
    if not 1 <= len(order) <= _MOST_LEVELS or len(counts) != 1 or strides is None:
        return None
    if not counts <= {2, 3}:
        return None
    numbers = np.random.default_rng(0)
    raw = {
        part.name: numbers.uniform(-2, 2, (part.channels, *part.size))
        for parts in leaves.values()
        for part in parts
    }
    values = {}
    for name, parts in leaves.items():
        made = [1 / (1 + np.exp(-raw[p.name])) if p.sigmoid else raw[p.name] for p in parts]
        values[name] = np.concatenate(made).astype(np.float32)[None]
    outputs = run_tail(config.steps, values, constants, [value for _, value in config.outputs])
    for family in FAMILIES:
        for levels in _arrangements([sizes[size] for size in order]):
            if family.objectness == (len(levels[0]) == 3) and _agrees(
                family, levels, strides, raw, outputs
            ):
                return Found(family, tuple(levels), strides)
    return None


def _agrees(
    family: Family,
    levels: Sequence[tuple[_Predictor, ...]],
    strides: Sequence[int],
    raw: Mapping[str, Any],
    outputs: Sequence[F32],
) -> bool:
    """Whether a tail's outputs are those of a family."""
    given = [
        Level(
            raw[parts[0].name],
            raw[parts[1].name],
            raw[parts[2].name] if len(parts) > 2 else None,
            stride,
        )
        for parts, stride in zip(levels, strides, strict=True)
    ]
    if family.boxes == "centre" and len(given[0].boxes) != 4:
        return False
    expected = family.outputs(given)
    return [e.shape for e in expected] == [o.shape for o in outputs] and all(
        np.allclose(e, o, rtol=1e-4, atol=1e-3) for e, o in zip(expected, outputs, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What the user states about the images of a network; None: as its family has it.

    Attributes:
        order: of the colours that the network reads.
        mean, std: of the pixels, 0..255, in that order; a network whose pixels are divided by 255
            has the std 255.
        resize, border, centred: as of `DetectorConfig`.
        several_labels: as of `CellOutput`.
        score_threshold, nms_threshold, max_detections: of the detections.
    """

    order: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: str | None = None
    border: int | None = None
    centred: bool | None = None
    several_labels: bool | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_detections: int | None = None


def normalisation(
    order: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Normalise:
    """The first operation of a network that reads colours in that order."""
    if order not in ("rgb", "bgr"):
        raise InputError(f"order is {order!r}, expected 'rgb' or 'bgr'")
    if order == "bgr":
        return Normalise(mean, std)
    return Normalise((mean[2], mean[1], mean[0]), (std[2], std[1], std[0]), rgb=True)


def detector_config(
    path: str,
    network: NetworkConfig,
    found: Found,
    metadata: Mapping[str, str],
    stated: Preprocessing | None = None,
) -> DetectorConfig:
    """The detector that a network is.

    Raises:
        InputError: the metadata disagree with the graph, or a stated value is out of range.
    """
    stated = stated or Preprocessing()
    family = found.family

    def chosen(field: str) -> Any:
        value = getattr(stated, field)
        return getattr(family, field, None) if value is None else value

    classes = found.levels[0][0].channels
    names, ids = class_names(path, classes, metadata)
    several = True if stated.several_labels is None else stated.several_labels
    output = CellOutput(
        num_classes=classes,
        strides=found.strides,
        boxes=family.boxes,
        bins=found.levels[0][1].channels // 4,
        offset=family.offset,
        objectness=family.objectness,
        several_labels=several,
        pre_nms=1000,
        score_threshold=chosen("score_threshold"),
        nms_threshold=chosen("nms_threshold"),
        max_detections=chosen("max_detections"),
    )
    kinds = zip(*found.levels, strict=True)
    inputs = tuple(part.name for kind in kinds for part in kind)
    try:
        graph = _with_detections(
            network.graph,
            found,
            normalisation(chosen("order"), chosen("mean"), chosen("std")),
            Operation("detections", (*inputs, IMAGE), output),
        )
        return DetectorConfig(
            name=network.name,
            graph=graph,
            resize=chosen("resize"),
            class_names=names,
            category_ids=ids,
            border=chosen("border"),
            centred=chosen("centred"),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _with_detections(
    graph: Graph, found: Found, normalise: Normalise, detections: Operation
) -> Graph:
    """The graph that ends in detections: predictors make logits, and what nobody reads is gone."""
    logits = {part.name for level in found.levels for part in level if part.sigmoid}
    operations = []
    for operation in graph.operations:
        attributes = operation.attributes
        if isinstance(attributes, Normalise):
            operation = replace(operation, attributes=normalise)
        elif isinstance(attributes, Conv) and operation.name in logits:
            operation = replace(operation, attributes=replace(attributes, activation="none"))
        operations.append(operation)
    wanted, kept = set(detections.inputs), [detections]
    for operation in reversed(operations):
        if operation.name in wanted:
            wanted.update(operation.inputs)
            kept.append(operation)
    return Graph(graph.image, tuple(kept[::-1]))


def class_names(
    path: str, count: int, metadata: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of the classes: those of the metadata, or COCO's, or numbers.

    Raises:
        InputError: the metadata have other than plain names, or of another number of classes.
    """
    names = _names(path, metadata.get("names", ""))
    if names and len(names) != count:
        raise InputError(
            f"{path}: its metadata name {len(names)} classes, its graph has {count}; "
            "--raw converts it with its outputs as they are"
        )
    if count == len(COCO_NAMES) and (not names or names == COCO_NAMES):
        return COCO_NAMES, COCO_CATEGORY_IDS
    return names or tuple(f"class {i}" for i in range(1, count + 1)), tuple(range(1, count + 1))


def _names(path: str, text: str) -> tuple[str, ...]:
    """The names of a dictionary or list, written as a literal; it is never evaluated."""
    if not text:
        return ()
    try:
        if len(text) > 100_000:
            raise ValueError("is too long")
        value = ast.literal_eval(text)
        names = list(value.values()) if isinstance(value, dict) else list(value)
        if isinstance(value, dict) and list(value) != list(range(len(value))):
            raise ValueError("does not count from 0 on")
        if not all(isinstance(name, str) and name.isprintable() and name for name in names):
            raise ValueError("has something else than names")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        why = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError(f"{path}: metadata 'names' is no plain list of names ({why})") from None
    return tuple(names)
