"""Tensors of a foreign file, and the bookkeeping that verifies an importer.

A `Source` hands out each tensor once and checks it: it exists, has the expected shape (before its
values are read, so that a file cannot claim more memory than the network needs), holds floats and
is finite. At the end every tensor must have been taken or ignored by name; a tensor that is left
means that the file belongs to another network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.batch_norm import fold_batch_norm
from ..model.c4 import build_graph
from ..model.config import COCO_CATEGORY_IDS, COCO_NAMES, ModelConfig, current_names
from ..model.detector_config import Config
from ..model.file import ModelFile, Tensors
from ..model.int8_ranges import ClippingThreshold

MAX_PARAMETERS = 500_000_000
"""Largest model to import, ten times r101-c4: a hostile file may declare any width."""


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """An imported model.

    Attributes:
        config: configuration, with the source's conventions.
        tensors: `NAME.weight` and `NAME.bias` of every layer of `config`, batch norm folded,
            float32, as `model.file.check_tensors` accepts them.
        provenance: origin of the weights, JSON-ready, for the model file.
        ignored: names of the source's tensors that the network does not use.
        notes: lines for the user: assumed conventions and known differences.
        clipping_thresholds: for int8, where the source states them; see `model.int8_ranges`.
    """

    config: Config
    tensors: Tensors
    provenance: dict[str, Any]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    clipping_thresholds: dict[str, ClippingThreshold] | None = None

    def as_model(self) -> ModelFile:
        """The content of its model file."""
        return ModelFile(
            self.config, self.tensors, self.provenance, "float32", self.clipping_thresholds
        )


@dataclass(frozen=True, slots=True, eq=False)
class SourceTensor:
    """A tensor in a file, not read yet.

    Attributes:
        shape: declared shape.
        dtype_kind: numpy's `dtype.kind`, "f" for floats.
        read: reads the values; floats are float16, float32 or float64.
        unusable: what it is instead of a plain tensor, as "a sparse tensor"; "": it is plain.
    """

    shape: tuple[int, ...]
    dtype_kind: str
    read: Callable[[], NDArray[Any]]
    unusable: str = ""


class Source:
    """The tensors of one model by name; each is taken once or ignored by name.

    Attributes:
        path: the file.
        left: the tensors that are neither taken nor ignored yet.
        ignored: names of the tensors that are not the model's.
        notes: lines for the user about how the file was read.
    """

    def __init__(self, path: str | os.PathLike[str], tensors: Mapping[str, SourceTensor]) -> None:
        self.path = path
        self.left = dict(tensors)
        self.ignored: list[str] = []
        self.notes: list[str] = []

    def error(self, text: str) -> InputError:
        return InputError(f"{self.path}: {text}")

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str) -> tuple[int, ...]:
        """The declared shape.

        Raises:
            InputError: the tensor is missing, or is no plain tensor.
        """
        if f"{name}_orig" in self.left and f"{name}_mask" in self.left:
            raise self.error(
                f"tensor {name!r} is stored as weights and a mask: make it one tensor before "
                "saving, by torch.nn.utils.prune.remove"
            )
        if name not in self.left:
            raise self.error(f"tensor {name!r} is missing")
        if what := self.left[name].unusable:
            raise self.error(f"tensor {name!r} is {what}, expected a plain tensor of floats")
        return self.left[name].shape

    def length(self, name: str, axis: int) -> int:
        """Length of one axis of the declared shape.

        Raises:
            InputError: the tensor is missing, or has no axes.
        """
        shape = self.shape(name)
        if not shape:
            raise self.error(f"tensor {name!r} has shape (), expected a layer's weights")
        return shape[axis]

    def take(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The values as float32; the tensor cannot be taken again.

        Raises:
            InputError: the tensor is missing, unreadable, of another shape, not of floats, or has
                NaN or infinite values.
        """
        if self.shape(name) != shape:
            raise self.error(f"tensor {name!r} has shape {self.shape(name)}, expected {shape}")
        tensor = self.left.pop(name)
        if tensor.dtype_kind != "f":
            raise self.error(f"tensor {name!r} does not hold floats")
        with np.errstate(over="ignore"):  # float64 beyond float32: reported below
            value = tensor.read().astype(np.float32)
        if not np.isfinite(value).all():
            raise self.error(f"tensor {name!r} holds NaN or infinite values")
        return value

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other names.

        Raises:
            InputError: two tensors would have one name.
        """
        left = {names.get(name, name): tensor for name, tensor in self.left.items()}
        if len(left) < len(self.left):
            raise self.error("has tensors of two releases of its project")
        self.left = left

    def ignore(self, *patterns: str) -> list[str]:
        """Ignore the tensors whose whole name matches one of the regular expressions."""
        names = [n for n in self.left if any(re.fullmatch(p, n) for p in patterns)]
        for name in names:
            del self.left[name]
        self.ignored += names
        return names

    def fold(self, tensors: Mapping[str, NDArray[Any]], config: Config) -> Tensors:
        """`fold_batch_norm`; its errors name the file."""
        try:
            return fold_batch_norm(tensors, config)
        except InputError as error:
            raise self.error(str(error)) from None

    def finish(self, name: str) -> tuple[str, ...]:
        """Check that nothing is left of the file, and list the ignored tensors.

        Args:
            name: the network's name, for the message.

        Raises:
            InputError: a tensor is neither taken nor ignored.
        """
        if self.left:
            more = f" (and {len(self.left) - 1} more)" if len(self.left) > 1 else ""
            raise self.error(f"tensor {min(self.left)!r}{more} belongs to no layer of {name}")
        return tuple(sorted(self.ignored))


def take_transposed(
    source: Source, name: str, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A transposed convolution of 2x2 and stride 2 as a 1x1 before `DepthToSpace`.

    Args:
        name: of the layer in the file.
        shape: of the 1x1's weights.

    Raises:
        InputError: a tensor is missing or has the wrong shape or values.
    """
    channels = shape[0] // 4
    weight = source.take(f"{name}.weight", (shape[1], channels, 2, 2))
    weight = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(shape)
    return weight, np.tile(source.take(f"{name}.bias", (channels,)), 4)


def printable(text: str) -> str:
    """`text` for a terminal: names in a file may have any characters."""
    return text if text.isprintable() else ascii(text)


def count_blocks(names: Iterable[str], patterns: Iterable[str]) -> tuple[int, int, int, int]:
    """Count the blocks of res2 ... res5 by tensor names.

    Args:
        names: names of the file's tensors.
        patterns: one regular expression for each stage, with the block's number as its group.

    Returns:
        Different block numbers of each stage.
    """
    names = list(names)
    counts = []
    for pattern in patterns:
        matches = (re.match(pattern, name) for name in names)
        counts.append(len({match.group(1) for match in matches if match}))
    one, two, three, four = counts
    return one, two, three, four


def resolve_config(
    source: Source,
    base: ModelConfig,
    read: Mapping[str, Any],
    classes: int,
    fields: Mapping[str, Any],
) -> ModelConfig:
    """Merge the configuration: `fields` override `read`, which overrides `base`.

    Args:
        source: the file, for messages.
        base: configuration of all that the source does not state.
        read: fields that the source states.
        classes: number of classes of the source; without names they are numbered.
        fields: fields from the user.

    Raises:
        InputError: the fields are not a valid model, or the model is too large.
    """
    names: tuple[str, ...] = tuple(f"class {n}" for n in range(1, classes + 1))
    ids = tuple(range(1, classes + 1))
    if classes == base.num_classes:
        names, ids = base.class_names, base.category_ids
    elif classes == len(COCO_NAMES):
        names, ids = COCO_NAMES, COCO_CATEGORY_IDS
    if "class_names" in fields:  # other classes: COCO's ids do not fit
        ids = tuple(range(1, classes + 1))
    values = {**base.to_dict(), **read, "class_names": names, "category_ids": ids}
    values |= current_names(fields)
    given_names = values["class_names"]
    if isinstance(given_names, list | tuple) and len(given_names) != classes:
        raise source.error(f"has {classes} classes, class_names gives {len(given_names)}")
    try:
        config = ModelConfig.from_dict(values)
        if sum(config.blocks) > 1000:  # each block is a few operations of the graph
            raise InputError(f"blocks is {config.blocks}, expected at most 1000 together")
        parameters = build_graph(config).parameters
    except ValueError as error:
        raise source.error(str(error)) from None
    if parameters > MAX_PARAMETERS:
        raise source.error(
            f"would have {parameters:,} parameters, expected at most {MAX_PARAMETERS:,}"
        )
    return config
