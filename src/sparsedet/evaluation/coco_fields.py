"""Ids and numbers in COCO files, in all forms in which tools write them: 5, 5.0, "5"."""

from __future__ import annotations

import re
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

Id = int | str
"""Of an image or a category; text where the file has text."""

_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")
_NUMBER = re.compile(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*")


def id_key(value: Any) -> Id | None:
    """What an id is compared by: an int for a whole number in any form, else the text.

    Text that is not how an int is written, as "007", stays text: it may be a file's name.
    None: not an id.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value) else value or None
    if isinstance(value, Integral):
        return int(value)
    number = finite_numbers([value], 1)
    return int(number[0]) if number and number[0].is_integer() else None


def id_order(id_: Id) -> tuple[bool, int, str]:
    """Sorts ids: numbers ascending, then text."""
    key = id_key(id_)
    return (False, key, "") if isinstance(key, int) else (True, 0, str(key))


def finite_numbers(value: Any, count: int) -> list[float] | None:
    """A JSON list of exactly `count` finite numbers, or their text, as floats; else None."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(
        (isinstance(v, Real) and not isinstance(v, bool))
        or (isinstance(v, str) and _NUMBER.fullmatch(v))
        for v in value
    ):
        return None
    try:
        numbers = [float(v) for v in value]
    except OverflowError:  # JSON's integers have no upper limit
        return None
    return numbers if np.isfinite(numbers).all() else None


def get_id(path: Path, section: str, entry: Any) -> Id:
    """`entry["id"]` as the file has it; whole floats become integers."""
    value = _field(path, section, entry, "id")
    key = id_key(value)
    if key is None:
        raise InputError(f"{path}: {section}.id is {value!r}, expected a whole number or text")
    return value if isinstance(value, str) else key


def get(path: Path, section: str, entry: Any, key: str, expected: type) -> Any:
    """`entry[key]` of the expected type; whole floats and their text pass as integers."""
    value = _field(path, section, entry, key)
    if expected is int and not isinstance(value, bool):
        number = finite_numbers([value], 1)
        value = int(number[0]) if number and number[0].is_integer() else value
    if not isinstance(value, expected) or isinstance(value, bool):
        raise InputError(f"{path}: {section}.{key} is {value!r}, expected {expected.__name__}")
    return value


def _field(path: Path, section: str, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{path}: an entry of {section!r} has no {key!r}")
    return entry[key]
