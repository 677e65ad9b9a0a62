"""Records: frozen dataclasses that share the methods of comparison and display.

A dataclass compiles a set of these for each class, when its module is imported: for the classes
that a first detection needs it took a twentieth of the time to it.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any


class Record:
    """Equal, hashed and shown by its fields, as a frozen dataclass is.

    A kind of it is `@dataclass(frozen=True, slots=True, eq=False, repr=False)`.
    """

    __slots__ = ()

    def named_values(self) -> dict[str, Any]:
        """Name -> value of each field; values are not copied."""
        return {name: getattr(self, name) for name in self._names()}

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self._names()])

    def _names(self) -> tuple[str, ...]:
        kind: Any = type(self)  # mypy takes no class whose objects have a __hash__ for hashable
        return _fields_of(kind)

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        assert isinstance(other, Record)
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.named_values().items())
        return f"{type(self).__qualname__}({shown})"


@cache
def _fields_of(kind: type) -> tuple[str, ...]:
    """The fields of a record, those given by keyword alone included."""
    return tuple(field.name for field in fields(kind))
