"""What a detector is beside its weights: its graph, how images are prepared, names of classes.

A `ModelConfig` describes a Faster R-CNN C4, whose graph `c4` builds; a `DetectorConfig` holds a
graph of any kind. `build_graph` gives the graph of either, and most code needs no more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_type_hints

from ..errors import InputError
from . import c4, graph_json
from .config import ModelConfig, check_names, coerce
from .graph import (
    Conv,
    Detecting,
    DetectionOutput,
    Graph,
    MaskOutput,
    Normalise,
    Operation,
    Pasting,
    Proposals,
    RoiAlign,
    typed,
)
from .record import Record

_OPTIONAL = {"border", "centred"}
"""Fields that a stored configuration leaves out where they have their default."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class DetectorConfig(Record):
    """A detector that is described by its graph.

    Attributes:
        name: of the detector.
        graph: for the size of network input that it is made for; it runs at others, too.
        resize: as `ModelConfig.resize`; or "shorter": an image is resized to a shorter side of
            `min_size` pixels, or less if its longer side would exceed `max_size`, and its network
            input is as small as multiples of `divisor` allow.
        class_names, category_ids: of the labels 1, 2, ...
        border: value of the pixels beside a letterboxed image, 0..255.
        centred: a letterboxed image is in the middle, not in the upper left corner.

    Raises:
        InputError: the graph does not end in detections, or the names do not fit it.
    """

    name: str
    graph: Graph
    resize: Literal["letterbox", "stretch", "shorter"] = "letterbox"
    min_size: int = 800
    max_size: int = 1333
    divisor: int = 32
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    border: int = 0
    centred: bool = False

    def __post_init__(self) -> None:
        if self.resize not in ("letterbox", "stretch", "shorter"):
            raise InputError(
                f"resize is {self.resize!r}, expected 'letterbox', 'stretch' or 'shorter'"
            )
        ranges = (("min_size", 1, 8192), ("max_size", 1, 8192), ("divisor", 1, 256))
        for field, low, high in (*ranges, ("border", 0, 255)):
            value = getattr(self, field)
            if not low <= value <= high:
                raise InputError(f"{field} is {value}, expected {low}..{high}")
        check_names(self.name, self.class_names, self.category_ids)
        rows = [o.name for o in self.graph.operations if isinstance(o.attributes, Detecting)]
        last = self.graph.operations[-1]
        ends = isinstance(last.attributes, MaskOutput) or [last.name] == rows
        if len(rows) != 1 or not ends:
            raise InputError("the graph does not end in detections")
        if self._detections.num_classes != self.num_classes:
            raise InputError(
                f"class_names has {self.num_classes} names, expected those of the graph's "
                f"{self._detections.num_classes} classes"
            )

    @property
    def _detections(self) -> Detecting:
        attributes = rows_of(self.graph).attributes
        assert isinstance(attributes, Detecting)
        return attributes

    @property
    def masks(self) -> bool:
        """Whether detections have masks."""
        return makes_masks(self.graph)

    @property
    def fill(self) -> tuple[float, float, float]:
        """The pixel, BGR, that normalisation makes zero."""
        return self.graph.only(Normalise)[1].mean

    @property
    def input_height(self) -> int:
        return self.graph.image.height

    @property
    def input_width(self) -> int:
        return self.graph.image.width

    @property
    def num_classes(self) -> int:
        """Number of object classes, without the background."""
        return len(self.class_names)

    @property
    def proposals(self) -> int:
        """RoIs of an image, at most."""
        return self.graph.rois

    @property
    def score_threshold(self) -> float:
        return self._detections.score_threshold

    @property
    def nms_threshold(self) -> float:
        return self._detections.nms_threshold

    @property
    def max_detections(self) -> int:
        return self._detections.max_detections

    def to_stored(self) -> dict[str, Any]:
        """JSON-ready values of all fields but the graph."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["graph"]
        # Left out where it says nothing: files that are older do not have it.
        return {k: v for k, v in values.items() if v or k not in _OPTIONAL}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any], graph: Graph) -> DetectorConfig:
        """Rebuild a configuration from the values of `to_stored`.

        Raises:
            InputError: a key is unknown or missing, or a value has the wrong type or range.
        """
        hints = get_type_hints(cls)
        del hints["graph"]
        if unknown := sorted((set(values) ^ set(hints)) - (set(hints) & _OPTIONAL)):
            raise InputError(f"unknown or no configuration key {unknown[0]!r}")
        known = {key: coerce(key, value, hints[key]) for key, value in values.items()}
        return cls(graph=graph, **known)


def makes_masks(graph: Graph) -> bool:
    """Whether a graph ends in masks, not in rows."""
    return isinstance(graph.operations[-1].attributes, MaskOutput)


def mask_pasting(config: Config) -> Pasting:
    """How a detector's masks are pasted into images; without masks it has no meaning."""
    if isinstance(config, DetectorConfig) and config.masks:
        return typed(config.graph.operations[-1], MaskOutput).pasting
    return "whole"


def rows_of(graph: Graph) -> Operation:
    """The operation that makes the rows."""
    return next(o for o in graph.operations if isinstance(o.attributes, Detecting))


Config: TypeAlias = ModelConfig | DetectorConfig


def build_graph(config: Config, input_size: tuple[int, int] | None = None) -> Graph:
    """The graph of a detector.

    Args:
        config: the detector.
        input_size: (height, width) in pixels; default: that of the configuration.

    Raises:
        InputError: the network input is too small for the network.
    """
    if isinstance(config, ModelConfig):
        return c4.build_graph(config, input_size)
    return config.graph if input_size is None else config.graph.resized(*input_size)


def require_c4(config: Config, what: str) -> ModelConfig:
    """The configuration, for what works on a Faster R-CNN C4 alone.

    Raises:
        InputError: the detector is described by its graph.
    """
    if isinstance(config, ModelConfig):
        return config
    raise InputError(f"{config.name} is described by its graph, and cannot be {what} here yet")


def require_faster_rcnn(config: Config) -> Graph:
    """The graph of a Faster R-CNN, C4 or with a Feature Pyramid Network: what is trained here.

    Raises:
        InputError: it is another detector.
    """
    graph = build_graph(config)
    kinds = (Proposals, RoiAlign, DetectionOutput)
    if all(len(list(graph.of_kind(kind))) == 1 for kind in kinds) and graph.output == "detections":
        operations = [graph.by_name[name] for name in graph.only(DetectionOutput)[0].inputs[:2]]
        if all(
            isinstance(o.attributes, Conv) and len(o.attributes.layers) == 1 for o in operations
        ):
            return graph
    raise InputError(
        f"{config.name} is no Faster R-CNN: RetinaNet, FCOS and Mask R-CNN are trained in their "
        "owner's code and pruned at once here (sparsedet prune --method)"
    )


def predictors(graph: Graph) -> tuple[str, str]:
    """The layers of a Faster R-CNN that make class logits and deltas of RoIs."""
    logits, deltas = graph.only(DetectionOutput)[0].inputs[:2]
    names = [typed(graph.by_name[name], Conv).layers[0] for name in (logits, deltas)]
    return names[0], names[1]


def with_classes(
    config: Config, class_names: tuple[str, ...], category_ids: tuple[int, ...]
) -> Config:
    """The same Faster R-CNN for other classes."""
    names: dict[str, Any] = {"class_names": class_names, "category_ids": category_ids}
    if isinstance(config, ModelConfig):
        return dataclasses.replace(config, **names)
    graph, count = config.graph, len(class_names)
    rows, output = graph.only(DetectionOutput)
    outputs = dict(
        zip(rows.inputs, (count + 1, 4 * (count + output.background_deltas)), strict=False)
    )
    changed = []
    for operation in graph.operations:
        attributes = operation.attributes
        if operation.name in outputs:
            conv = typed(operation, Conv)
            attributes = dataclasses.replace(conv, out_channels=outputs[operation.name])
        elif operation is rows:
            attributes = dataclasses.replace(output, num_classes=count)
        changed.append(dataclasses.replace(operation, attributes=attributes))
    return dataclasses.replace(config, graph=Graph(graph.image, tuple(changed)), **names)


def config_to_json(config: Config) -> str:
    """A whole configuration as JSON, for the metadata of exported graphs."""
    values = config.to_stored()
    if isinstance(config, DetectorConfig):
        values["graph"] = graph_json.to_json(config.graph)
    return json.dumps(values)


def config_from_json(text: str) -> Config:
    """The configuration of `config_to_json`.

    Raises:
        ValueError: the text is no such configuration.
    """
    values = json.loads(text)
    if isinstance(values, dict) and "graph" in values:
        graph = graph_json.from_json(values.pop("graph"))
        return DetectorConfig.from_stored(values, graph)
    return ModelConfig.from_dict(values)


def with_form(
    config: Config,
    *,
    input_size: tuple[int, int] | None = None,
    resize: str | None = None,
    max_detections: int | None = None,
) -> Config:
    """The same detector for another network input or number of rows; None: no change."""
    changes: dict[str, Any] = {} if resize is None else {"resize": resize}
    if isinstance(config, ModelConfig):
        if input_size is not None:
            changes |= {"input_height": input_size[0], "input_width": input_size[1]}
        if max_detections is not None:
            changes["max_detections"] = max_detections
        return dataclasses.replace(config, **changes)
    graph = config.graph if input_size is None else config.graph.resized(*input_size)
    if max_detections is not None:
        if not 1 <= max_detections <= 1_000_000:
            raise InputError(f"max_detections is {max_detections}, expected 1..1000000")
        attributes = dataclasses.replace(config._detections, max_detections=max_detections)
        rows = rows_of(graph)
        changed = dataclasses.replace(rows, attributes=attributes)
        graph = Graph(graph.image, tuple(changed if o is rows else o for o in graph.operations))
    return dataclasses.replace(config, graph=graph, **changes)


def with_fixed_input(config: Config) -> Config:
    """The same detector with one size of network input for all images, for runtimes that need it.

    An image that would be resized by its shorter side is put into the configuration's size.
    """
    return with_form(config, resize="letterbox") if config.resize == "shorter" else config


def as_detector_config(config: Config) -> DetectorConfig:
    """The same detector, described by its graph."""
    if isinstance(config, DetectorConfig):
        return config
    return DetectorConfig(
        name=config.name,
        graph=c4.build_graph(config),
        resize=config.resize,
        class_names=config.class_names,
        category_ids=config.category_ids,
    )
