"""Initial weights of a model, from a start that may be a model of another family or other classes.

Of another family only the backbone is taken; of other classes all but the predictors, of which the
rows are taken if the start knows all classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.detector_config import Config, build_graph, predictors
from ..model.graph import DetectionOutput, Graph, Normalise
from .start import Start

Weights = Mapping[str, NDArray[Any]]

BACKBONE = ("stem.", "res")
"""What the names of a ResNet's layers begin with."""


def initial_tensors(start: Start, config: Config) -> tuple[Weights, str]:
    """The tensors of a start that a model takes over, and a note on what it does not.

    Returns:
        Tensors by name; the note, without the start's name, is empty if all are taken.

    Raises:
        InputError: the start fits the model neither as a whole nor with its backbone.
    """
    tensors = start.tensors(config)
    if start.config is None:
        return tensors, ""
    own, other = build_graph(config), build_graph(start.config)
    if own.layer.keys() != other.layer.keys():
        _check_backbone(start, own, other, config.name)
        taken = {name: value for name, value in tensors.items() if name.startswith(BACKBONE)}
        return taken, f"is another detector than {config.name}: its backbone alone is taken"
    if start.config.class_names == config.class_names:
        return tensors, ""
    names = tuple(f"{name}." for name in predictors(own))
    rest = {name: value for name, value in tensors.items() if not name.startswith(names)}
    kept = _predictors_of(start.config, config, tensors)
    if kept is None:
        return rest, "has other classes: the box predictors are initialised randomly"
    return {**rest, **kept}, "has more classes: the box predictors keep the rows of yours"


def _check_backbone(start: Start, own: Graph, other: Graph, name: str) -> None:
    """Raise InputError unless both graphs have the same backbone, pixel statistics included."""
    for operation in own.operations:
        pixels = isinstance(operation.attributes, Normalise)
        if not pixels and not operation.name.startswith(BACKBONE):
            continue
        same = other.by_name.get(operation.name)
        if same is None or same.attributes != operation.attributes:
            raise InputError(
                f"{start.path}: neither it nor its backbone fits {name}, which has another "
                f"{operation.name}"
            )


def _predictors_of(source: Config, config: Config, tensors: Weights) -> Weights | None:
    """The predictors' tensors with the rows of the classes of `config`; None if one is unknown, or
    the predictors have another form."""
    if not set(config.class_names) <= set(source.class_names):
        return None
    output = build_graph(config).only(DetectionOutput)[1]
    other = build_graph(source).only(DetectionOutput)[1]
    form = other.background, other.background_deltas
    if form != (output.background, output.background_deltas):
        return None
    classes = [source.class_names.index(name) for name in config.class_names]
    first = output.background == "first"
    order = [0, *(i + 1 for i in classes)] if first else [*classes, len(source.class_names)]
    logits, deltas = predictors(build_graph(config))
    kept: dict[str, NDArray[Any]] = {}
    for leaf in ("weight", "bias"):
        kept[f"{logits}.{leaf}"] = np.asarray(tensors[f"{logits}.{leaf}"])[order]
        value = np.asarray(tensors[f"{deltas}.{leaf}"])
        of_class = value.reshape(len(value) // 4, 4, *value.shape[1:])
        chosen = of_class[order if output.background_deltas else classes]
        kept[f"{deltas}.{leaf}"] = chosen.reshape(-1, *value.shape[1:])
    return kept
