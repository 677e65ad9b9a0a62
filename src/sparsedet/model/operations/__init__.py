"""The operations of a graph: kinds with typed attributes, and the shapes of what they make.

An operation makes one value, which has its name. Its attributes are a class, whose `kind` is the
kind of the operation; the classes are in `KINDS`. Code takes these names from `graph`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, get_args

from ..record import Record
from .boxes import (
    CellAnchors,
    CellOutput,
    Detecting,
    DetectionOutput,
    FcosOutput,
    MaskOutput,
    Pasting,
    Proposals,
    RetinaNetOutput,
    RoiAlign,
)
from .maps import (
    Activate,
    Activation,
    Add,
    Affine,
    Attention,
    AveragePool,
    Concat,
    Conv,
    DepthToSpace,
    GroupNorm,
    MaxPool,
    Mean,
    Multiply,
    Normalise,
    Resize,
    Shuffle,
    Slice,
)
from .shape import IMAGE, Domain, Padding, Shape, output_length

Attributes = (
    Normalise
    | Conv
    | GroupNorm
    | Activate
    | Multiply
    | MaxPool
    | Mean
    | Resize
    | Slice
    | DepthToSpace
    | Proposals
    | RoiAlign
    | DetectionOutput
    | RetinaNetOutput
    | FcosOutput
    | MaskOutput
    | CellOutput
    | AveragePool
    | Affine
    | Add
    | Concat
    | Shuffle
    | Attention
)
KINDS: dict[str, type[Attributes]] = {kind.kind: kind for kind in get_args(Attributes)}
Kind = TypeVar("Kind", bound=Attributes)

__all__ = [
    "IMAGE",
    "KINDS",
    "Activate",
    "Activation",
    "Add",
    "Affine",
    "Attention",
    "Attributes",
    "AveragePool",
    "CellAnchors",
    "CellOutput",
    "Concat",
    "Conv",
    "DepthToSpace",
    "Detecting",
    "DetectionOutput",
    "Domain",
    "FcosOutput",
    "GroupNorm",
    "Kind",
    "MaskOutput",
    "MaxPool",
    "Mean",
    "Multiply",
    "Normalise",
    "Operation",
    "Padding",
    "Pasting",
    "Proposals",
    "Resize",
    "RetinaNetOutput",
    "RoiAlign",
    "Shape",
    "Shuffle",
    "Slice",
    "output_length",
    "typed",
]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Operation(Record):
    """One operation, and the value that it makes.

    Attributes:
        name: its name and that of its value.
        inputs: names of the values that it reads; `IMAGE` is the network input.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: Attributes

    @property
    def kind(self) -> str:
        return self.attributes.kind


def typed(operation: Operation, kind: type[Kind]) -> Kind:
    """The attributes of an operation that is of that kind."""
    assert isinstance(operation.attributes, kind)
    return operation.attributes
