"""Detectors in ONNX files, recognised by what their tail computes, not by its nodes.

The maps that a tail reads are taken apart into predictors: of each level one of class logits, one
of boxes and at most one of objectness. If the outputs for random numbers are those of a known
family (`decoding`), the tail is replaced by one operation, which decodes what passes its threshold.
"""

from __future__ import annotations

import ast
import itertools
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
    CellOutput,
    Conv,
    Graph,
    Normalise,
    Operation,
    Slice,
)
from ...model.network import NetworkConfig
from ...model.tail import run_tail
from .anchors import Anchors, find_anchors
from .decoding import FAMILIES, Family
from .predictors import Found, Levels, Predictor, find_levels

F32 = NDArray[np.float32]
_MOST_CLASSES = 1000


def _arrangements(parts: Sequence[Sequence[Predictor]]) -> Iterator[list[tuple[Predictor, ...]]]:
    """Each way in which the predictors of all levels may be logits, boxes and objectness."""
    count = len(parts[0])
    for order in itertools.permutations(range(count)):
        levels = [tuple(level[i] for i in order) for level in parts]
        first = levels[0]
        same = all(tuple(p.channels for p in o) == tuple(p.channels for p in first) for o in levels)
        boxes = first[1].channels % 4 == 0 and first[0].channels <= _MOST_CLASSES
        if same and boxes and (count == 2 or first[2].channels == 1):
            yield levels


def find_detections(
    path: str,
    config: NetworkConfig,
    constants: Mapping[str, F32],
    anchors: Anchors | None = None,
) -> Found | None:
    """The family of a detector, and its predictors; None: it is none that is known.

    Args:
        path: the file, for messages.
        config, constants: the network, and the tensors of its tail.
        anchors: as of `Preprocessing`.

    Raises:
        InputError: as `find_anchors`.
    """
    levels = find_levels(config)
    if levels is None or len(levels.parts[0]) > 3:
        return None
    wanted = [value for _, value in config.outputs]
    outputs = run_tail(config.steps, levels.values, constants, wanted)
    if len(levels.parts[0]) == 1:
        return find_anchors(path, levels, outputs, anchors)
    for family in FAMILIES:
        for parts in _arrangements(levels.parts):
            if family.objectness == (len(parts[0]) == 3) and _agrees(
                family, levels, parts, outputs
            ):
                return Found(family, tuple(parts), levels.strides)
    return None


def _agrees(
    family: Family,
    levels: Levels,
    parts: Sequence[tuple[Predictor, ...]],
    outputs: Sequence[F32],
) -> bool:
    """Whether a tail's outputs are those of a family."""
    if family.outputs is None or (family.boxes == "centre" and parts[0][1].channels != 4):
        return False
    given = [levels.level(part, stride) for part, stride in zip(parts, levels.strides, strict=True)]
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
        anchors: width and height in pixels of all anchors, the finest level first, of a file of
            YOLOv5's outputs before decoding, which does not have them.
        score_threshold, nms_threshold, max_detections: of the detections.
    """

    order: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: str | None = None
    border: int | None = None
    centred: bool | None = None
    several_labels: bool | None = None
    anchors: Anchors | None = None
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
        anchors=found.anchors,
    )
    normalise = normalisation(chosen("order"), chosen("mean"), chosen("std"))
    try:
        graph = _with_detections(network.graph, found, normalise, output)
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


def _with_detections(graph: Graph, found: Found, normalise: Normalise, output: CellOutput) -> Graph:
    """The graph that ends in detections: predictors make logits, and what nobody reads is gone."""
    slices: list[Operation] = []
    inputs: list[str] = []
    for part in (part for kind in zip(*found.levels, strict=True) for part in kind):
        if part.channels == part.whole:
            inputs.append(part.name)
            continue
        cut = Slice(part.first, part.channels)
        slices.append(Operation(f"{part.name}.from{part.first}", (part.name,), cut))
        inputs.append(slices[-1].name)
    detections = Operation("detections", (*inputs, IMAGE), output)
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
    for operation in reversed([*operations, *slices]):
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
