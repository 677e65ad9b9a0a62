"""ONNX files -> networks of this package: what convolutional networks are made of, and no more.

`reader` parses a file and trusts nothing; `fold` does what is constant and brings nodes into few
forms; `patterns` finds activations and the like; `build` makes a graph and a tail; `fuse` puts
batch norms, activations and sums into convolutions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...model.detector_config import DetectorConfig
from ...model.file import NetworkFile, check_tensors
from ...model.graph import CellOutput, Graph, Normalise, Shape
from ...model.int8_ranges import ClippingThreshold
from ...model.network import NetworkConfig
from ...model.tail import TailStep
from ..tensor_source import Imported
from .anchors import anchors_text
from .build import INPUT, NetworkBuilder
from .build_tail import MapValue
from .coverage import PICKING, find_picking
from .decoding import IMAGENET
from .detectors import (
    Preprocessing,
    class_names,
    detector_config,
    find_detections,
    normalisation,
)
from .fold import fold, known_kinds
from .fuse import fuse, mark_prunable
from .patterns import find_patterns
from .predictors import Found
from .program import DAMAGE, Program
from .reader import read

F32 = NDArray[np.float32]
Built = tuple[NetworkConfig, dict[str, F32], dict[str, ClippingThreshold] | None]


def load_program(path: str | os.PathLike[str], shape: Sequence[int] | None = None) -> Program:
    """The graph of a file, folded, with its patterns found.

    Raises:
        InputError: as `load_onnx_network`.
    """
    program = read(path, shape, known_kinds())
    try:
        fold(program)
        find_patterns(program)
    except DAMAGE as error:
        raise _damaged(path, error) from None
    return program


def _damaged(path: str | os.PathLike[str], error: BaseException) -> InputError:
    if isinstance(error, InputError):
        return error
    why = " ".join(str(error).split())[:100] or type(error).__name__
    return InputError(f"{path}: has nodes that do not fit each other ({why})")


def build_network(program: Program) -> Built:
    """The network of a folded program, its tensors, and the ranges that a quantised file states.

    Raises:
        InputError: as `load_onnx_network`.
    """
    picking = find_picking(program)
    if picking is not None:
        raise program.refuse(picking, PICKING)
    builder = NetworkBuilder(program)
    builder.run()
    outputs = [builder.array(name) for name in program.outputs]
    read_by_tail = {name for step in builder.steps for name in step.inputs} | set(outputs)
    operations, renamed = fuse(builder.operations, builder.tensors, read_by_tail)
    operations = mark_prunable(operations, INPUT)
    steps = tuple(
        replace(step, inputs=tuple(renamed.get(name, name) for name in step.inputs))
        for step in builder.steps
    )
    _, _, height, width = program.shapes[program.input]
    names = [
        name if name.isprintable() and name else f"output_{i}"
        for i, name in enumerate(program.outputs)
    ]
    try:
        config = NetworkConfig(
            name=Path(program.path).stem,
            graph=Graph(Shape("image", 3, height, width), tuple(operations)),
            steps=_used(steps, [renamed.get(name, name) for name in outputs]),
            outputs=tuple(
                (name, renamed.get(value, value))
                for name, value in zip(names, outputs, strict=True)
            ),
        )
        tensors = builder.tensors | {name: builder.constants[name] for name in config.constants}
        check_tensors(config, tensors)
    except InputError as error:
        raise InputError(f"{program.path}: {error}") from None
    except DAMAGE as error:
        raise _damaged(program.path, error) from None
    return config, tensors, _ranges(program, builder, renamed) or None


def _ranges(
    program: Program, builder: NetworkBuilder, renamed: Mapping[str, str]
) -> dict[str, ClippingThreshold]:
    """The ranges of the graph's values: an operation has that of the last node which it became."""
    found: dict[str, ClippingThreshold] = {}
    for node in program.nodes if program.ranges else ():
        value = builder.values.get(node.out)
        if not isinstance(value, MapValue):
            continue
        name = renamed.get(value.name, value.name)
        source = builder.values.get(node.inputs[0])
        moved = isinstance(source, MapValue) and source.name == value.name
        if node.out in program.ranges:
            found[name] = program.ranges[node.out]
        elif not moved:
            found.pop(name, None)
    return found


def _used(steps: Sequence[TailStep], outputs: Sequence[str]) -> tuple[TailStep, ...]:
    """The steps that lead to the outputs."""
    wanted, kept = set(outputs), []
    for step in reversed(steps):
        if step.name in wanted:
            wanted.update(step.inputs)
            kept.append(step)
    return tuple(kept[::-1])


def load_onnx_network(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    stated: Preprocessing | None = None,
) -> NetworkFile:
    """The network of an ONNX file, with its outputs as they are.

    Args:
        path: the file.
        shape: of its input, [1, 3, height, width], where the file leaves it open.
        stated: what the user says of the images; default: of a classifier as torchvision's.

    Raises:
        InputError: onnx is not installed, the file cannot be read, or its network cannot run here;
            the message names the node.
    """
    program = load_program(path, shape)
    built = build_network(program)
    try:
        return _network(path, program, built, stated)
    except InputError:
        program.metadata.pop("names", None)  # of other classes, or no names at all
    return _network(path, program, built, stated)


def _network(
    path: str | os.PathLike[str],
    program: Program,
    built: Built,
    stated: Preprocessing | None,
) -> NetworkFile:
    """A network with its outputs; of a classifier, or where it is stated, also what its images are.

    Raises:
        InputError: the metadata name other classes, or a stated value is out of range.
    """
    config, tensors, ranges = built
    if config.class_count or (stated and (stated.order or stated.mean or stated.std)):
        stated = stated or Preprocessing()
        first, *others = config.graph.operations
        normalise = normalisation(
            stated.order or "rgb", stated.mean or IMAGENET[0], stated.std or IMAGENET[1]
        )
        graph = Graph(config.graph.image, (replace(first, attributes=normalise), *others))
        names: tuple[str, ...] = ()
        if "names" in program.metadata:
            names, _ = class_names(str(path), config.class_count, program.metadata)
        resize: Literal["stretch", "crop"] = "stretch" if stated.resize == "stretch" else "crop"
        config = replace(config, graph=graph, class_names=names, resize=resize)
    return NetworkFile(config, tensors, provenance(path), "float32", ranges)


def load_onnx(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    stated: Preprocessing | None = None,
) -> Imported | NetworkFile:
    """The detector of an ONNX file, or, if it is none that is known, the network with its outputs.

    Args:
        path, shape, stated: as of `load_onnx_detector`.

    Raises:
        InputError: as of `load_onnx_network`, or its metadata say that it is for another task.
    """
    program = load_program(path, shape)
    task = program.metadata.get("task", "detect")
    if task not in ("detect", "classify"):
        raise InputError(
            f"{path}: its task is {task[:40]!r}, which has no detections here; --raw, or "
            "sparsedet.Model.load, gives its outputs as they are"
        )
    built = build_network(program)
    config, tensors, ranges = built
    anchors = None if stated is None else stated.anchors
    found = find_detections(str(path), config, tensors, anchors)
    if found is None and anchors is not None:
        raise InputError(f"{path}: --anchors are for YOLOv5, whose outputs it does not have")
    if found is None:
        return _network(path, program, built, stated)
    detector = detector_config(str(path), config, found, program.metadata, stated)
    layers = (*detector.graph.layer, *detector.graph.norms)
    wanted = {f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias")}
    kept = {name: tensor for name, tensor in tensors.items() if name in wanted}
    values = {n for n, shape in detector.graph.shapes.items() if shape.domain in ("map", "rois")}
    known = {name: r for name, r in (ranges or {}).items() if name in values}
    return Imported(
        detector,
        kept,
        provenance(path),
        notes=(_note(found, detector),),
        clipping_thresholds=known or None,
    )


def load_onnx_detector(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    stated: Preprocessing | None = None,
) -> Imported:
    """The detector of an ONNX file.

    Args:
        path, shape: as of `load_onnx_network`.
        stated: what the user says of its images and detections; default: as its family has it.

    Raises:
        InputError: as of `load_onnx`, or its outputs are those of no known detector.
    """
    loaded = load_onnx(path, shape=shape, stated=stated)
    if isinstance(loaded, Imported):
        return loaded
    shapes = list(loaded.config.output_shapes.items())[:4]
    outputs = ", ".join(f"{name} {list(sizes)}" for name, sizes in shapes)
    raise InputError(
        f"{path}: its outputs ({outputs}) are those of no detector that is known here; "
        "sparsedet.Model.load gives them as they are"
    )


def _note(found: Found, detector: DetectorConfig) -> str:
    """What was found out, and what was assumed of the images."""
    first, output = detector.graph.only(Normalise)[1], detector.graph.only(CellOutput)[1]
    order = "RGB" if first.rgb else "BGR"
    where = " in the middle" if detector.centred else ""
    strides = dict.fromkeys(found.strides)
    anchors = f", anchors {anchors_text(found.anchors)}" if found.anchors else ""
    return (
        f"a detector as {found.family.name}: strides {', '.join(map(str, strides))}{anchors}; "
        f"images: {detector.resize}{where}, border {detector.border}, {order}, mean "
        f"{', '.join(f'{x:g}' for x in first.mean)}, std {', '.join(f'{x:g}' for x in first.std)} "
        f"(BGR); scores from {output.score_threshold:g} on, NMS {output.nms_threshold:g}"
    )


def provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Where a network came from."""
    return {"converted_from": f"ONNX file {Path(path).name}"}
