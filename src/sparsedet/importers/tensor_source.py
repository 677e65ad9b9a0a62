"""Tensors of a foreign file, and the bookkeeping by which an importer verifies itself.

A `Source` hands out each tensor once, checked: there, of the expected shape (before its values
are read, so that a file cannot claim more memory than the network needs), floats, finite. What
is left at the end must have been named as ignorable; anything else means that the file is of
another network than the importer took it for.
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
from ..model.c4 import build_network
from ..model.config import COCO_CATEGORY_IDS, COCO_NAMES, ModelConfig, current_names
from ..model.file import Tensors

MAX_PARAMETERS = 500_000_000
"""Of a model to import; ten times r101-c4. A hostile file may declare any widths."""


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A foreign model in our form.

    Attributes:
        config: the model, with the source's conventions.
        tensors: `NAME.weight` and `NAME.bias` of every layer of `config`, batch norm folded,
            float32: what `weights.check_tensors` accepts.
        provenance: JSON-ready, goes into the model file: where the weights come from.
        ignored: names of the source's tensors that the network does not use.
        notes: lines for the user: conventions that the source did not state, and what differs.
    """

    config: ModelConfig
    tensors: Tensors
    provenance: dict[str, Any]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor in a file, not read yet.

    Attributes:
        shape: as declared.
        kind: "f" for floats, as numpy's `dtype.kind`.
        read: gives the values, floats as float16, float32 or float64.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], NDArray[Any]]


class Source:
    """The tensors of one file by name; each is taken once or ignored by name."""

    def __init__(self, path: str | os.PathLike[str], tensors: Mapping[str, Stored]) -> None:
        self.path = path
        self.left = dict(tensors)
        self.ignored: list[str] = []

    def error(self, text: str) -> InputError:
        return InputError(f"{self.path}: {text}")

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str) -> tuple[int, ...]:
        """The declared shape.

        Raises:
            InputError: there is no such tensor.
        """
        if name not in self.left:
            raise self.error(f"tensor {name!r} is missing")
        return self.left[name].shape

    def length(self, name: str, axis: int) -> int:
        """One length of the declared shape.

        Raises:
            InputError: there is no such tensor, or it is a single number.
        """
        shape = self.shape(name)
        if not shape:
            raise self.error(f"tensor {name!r} has shape (), expected a layer's weights")
        return shape[axis]

    def take(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The values as float32, once.

        Raises:
            InputError: missing, of another shape or no floats, unreadable, NaN or infinite.
        """
        if self.shape(name) != shape:
            raise self.error(f"tensor {name!r} has shape {self.shape(name)}, expected {shape}")
        stored = self.left.pop(name)
        if stored.kind != "f":
            raise self.error(f"tensor {name!r} holds no floats")
        with np.errstate(over="ignore"):  # float64 beyond float32: reported below
            value = stored.read().astype(np.float32)
        if not np.isfinite(value).all():
            raise self.error(f"tensor {name!r} holds NaN or infinite values")
        return value

    def ignore(self, *patterns: str) -> list[str]:
        """Set the tensors aside whose whole name one of the regular expressions matches."""
        found = [n for n in self.left if any(re.fullmatch(p, n) for p in patterns)]
        for name in found:
            del self.left[name]
        self.ignored += found
        return found

    def fold(self, tensors: Mapping[str, NDArray[Any]], config: ModelConfig) -> Tensors:
        """`weights.fold_batch_norm`, its errors with the file's name."""
        try:
            return fold_batch_norm(tensors, config)
        except InputError as error:
            raise self.error(str(error)) from None

    def finish(self, name: str) -> tuple[str, ...]:
        """Names of what was ignored, once all is taken for the network `name`.

        Raises:
            InputError: tensors are left that are neither.
        """
        if self.left:
            more = f" (and {len(self.left) - 1} more)" if len(self.left) > 1 else ""
            raise self.error(f"tensor {min(self.left)!r}{more} belongs to no layer of {name}")
        return tuple(sorted(self.ignored))


def printable(text: str) -> str:
    """`text` for a terminal: names in a file may be any characters."""
    return text if text.isprintable() else ascii(text)


def count_blocks(names: Iterable[str], patterns: Iterable[str]) -> tuple[int, int, int, int]:
    """Blocks of res2 ... res5, counted by the names.

    Args:
        patterns: one regular expression a stage with the block's number as its group.

    Returns:
        How many different numbers each of the four finds.
    """
    names = list(names)
    counts = []
    for pattern in patterns:
        found = (re.match(pattern, name) for name in names)
        counts.append(len({match.group(1) for match in found if match}))
    one, two, three, four = counts
    return one, two, three, four


def settle(
    source: Source,
    base: ModelConfig,
    read: Mapping[str, Any],
    classes: int,
    fields: Mapping[str, Any],
) -> ModelConfig:
    """The configuration: `base`, over it what the source says, over that what the user says.

    Args:
        read: values of fields.
        classes: how many the source has; without names from the user or `base` they are numbered.
        fields: the user's.

    Raises:
        InputError: it is no possible model, or too large a one.
    """
    names: tuple[str, ...] = tuple(f"class {n}" for n in range(1, classes + 1))
    ids = tuple(range(1, classes + 1))
    if classes == base.num_classes:
        names, ids = base.class_names, base.category_ids
    elif classes == len(COCO_NAMES):
        names, ids = COCO_NAMES, COCO_CATEGORY_IDS
    if "class_names" in fields:  # another set: COCO's ids do not fit it
        ids = tuple(range(1, classes + 1))
    values = {**base.to_dict(), **read, "class_names": names, "category_ids": ids}
    values |= current_names(fields)
    given = values["class_names"]
    if isinstance(given, list | tuple) and len(given) != classes:
        raise source.error(f"has {classes} classes, class_names gives {len(given)}")
    try:
        config = ModelConfig.from_dict(values)
        if sum(config.blocks) > 1000:  # each is a few rows of the table
            raise InputError(f"blocks is {config.blocks}, expected at most 1000 together")
        parameters = build_network(config).parameters
    except ValueError as error:
        raise source.error(str(error)) from None
    if parameters > MAX_PARAMETERS:
        raise source.error(
            f"would have {parameters:,} parameters, expected at most {MAX_PARAMETERS:,}"
        )
    return config
