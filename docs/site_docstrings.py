"""Docstrings as griffe reads them for the site: one parameter an entry, examples in fences."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n.*\S.*)*", re.M)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n        .*)*)", re.M)


class ForReaders(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = for_readers(obj.docstring.value)


def for_readers(text: str) -> str:
    """`a, b: both` becomes an entry for each of them, and a doctest a block of code."""
    text = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
    return _ENTRY.sub(
        lambda found: "\n".join(f"    {name}: {found[2]}" for name in found[1].split(", ")), text
    )
