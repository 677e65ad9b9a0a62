"""What a network without detections is beside its weights: a classifier, or one of raw outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_type_hints

from ..errors import InputError
from .config import coerce
from .detector_config import Config, build_graph
from .graph import Graph, Normalise
from .record import Record
from .tail import TailStep, tail_shapes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NetworkConfig(Record):
    """A network that is described by its graph and by what its outputs are made of.

    Attributes:
        name: of the network.
        graph: for its one size of network input; it begins with `Normalise`.
        steps: the tail, see `tail`.
        outputs: names of the outputs, and the value of each: of the graph, or of a step.
        resize: how an image becomes the network input: "stretch", or "crop": its shorter side
            becomes the network input's divided by `crop`, and the centre is cut out.
        crop: share of the shorter side that is cut out, 0..1.
        class_names: of a classifier, whose first output are their logits or scores.

    Raises:
        InputError: the parts do not fit each other.
    """

    name: str
    graph: Graph
    steps: tuple[TailStep, ...] = ()
    outputs: tuple[tuple[str, str], ...]
    resize: Literal["stretch", "crop"] = "stretch"
    crop: float = 0.875
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.resize not in ("stretch", "crop"):
            raise InputError(f"resize is {self.resize!r}, expected 'stretch' or 'crop'")
        if not 0.1 <= self.crop <= 1:
            raise InputError(f"crop is {self.crop}, expected 0.1..1")
        first = self.graph.operations[0]
        starts = isinstance(first.attributes, Normalise)
        if not starts or len(list(self.graph.of_kind(Normalise))) != 1:
            raise InputError("the graph does not begin with the one normalisation of its image")
        names = [name for name, _ in self.outputs]
        if not names or len(set(names)) != len(names) or len(names) > 1000:
            raise InputError("the outputs have no names of their own")
        if not all(name and name.isprintable() for name in names):
            raise InputError("an output has no printable name")
        shapes = self.shapes
        for name, value in self.outputs:
            if value not in shapes:
                raise InputError(f"output {name!r} is {value!r}, which no operation makes")
        for step in self.steps:
            if step.kind == "constant" and step.name.endswith((".weight", ".bias")):
                raise InputError(f"constant {step.name!r} has the name of a layer's tensor")
        if self.class_names and self.class_count != len(self.class_names):
            raise InputError(
                f"class_names has {len(self.class_names)} names, expected those of the "
                f"{self.class_count} numbers of its output"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each map of the graph and of each array of the tail."""
        maps = {
            name: (1, shape.channels, *shape.size)
            for name, shape in self.graph.shapes.items()
            if shape.domain == "map"
        }
        return tail_shapes(self.steps, maps)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Output name -> shape."""
        shapes = self.shapes
        return {name: shapes[value] for name, value in self.outputs}

    @property
    def class_count(self) -> int:
        """Numbers of the first output, if it is one row of them; else 0."""
        shape = self.shapes[self.outputs[0][1]]
        sizes = [n for n in shape if n != 1]
        return sizes[0] if len(self.outputs) == len(sizes) == 1 else 0

    @property
    def constants(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the tail by name."""
        return {step.name: step.numbers for step in self.steps if step.kind == "constant"}

    @property
    def read(self) -> tuple[str, ...]:
        """The values of the graph that tail and outputs read."""
        maps = self.graph.by_name
        names = [name for step in self.steps for name in step.inputs]
        names += [value for _, value in self.outputs]
        return tuple(dict.fromkeys(name for name in names if name in maps))

    def to_stored(self) -> dict[str, Any]:
        """JSON-ready values of all fields but graph and steps."""
        apart = ("graph", "steps")
        fields = (field.name for field in dataclasses.fields(self) if field.name not in apart)
        return {name: getattr(self, name) for name in fields}

    @classmethod
    def from_stored(
        cls, values: Mapping[str, Any], graph: Graph, steps: tuple[TailStep, ...]
    ) -> NetworkConfig:
        """Rebuild a configuration from the values of `to_stored`.

        Raises:
            InputError: a key is unknown or missing, or a value has the wrong type or range.
        """
        hints = get_type_hints(cls)
        del hints["graph"], hints["steps"]
        if unknown := sorted(set(values) ^ set(hints)):
            raise InputError(f"unknown or no configuration key {unknown[0]!r}")
        known = {key: coerce(key, value, hints[key]) for key, value in values.items()}
        return cls(graph=graph, steps=steps, **known)


AnyConfig: TypeAlias = Config | NetworkConfig


def graph_of(config: AnyConfig) -> Graph:
    """The graph of a detector or another network."""
    return config.graph if isinstance(config, NetworkConfig) else build_graph(config)
