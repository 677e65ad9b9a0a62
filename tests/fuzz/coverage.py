"""Which lines of a target's reader its corpus reaches: Python's own trace, and no other package."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src" / "sparsedet"


def lines_of(file: Path, functions: Collection[str]) -> set[int]:
    """The lines of a file's functions that can run; `def` lines and docstrings are none.

    Args:
        functions: those that count; none: all.
    """
    found: set[int] = set()

    def walk(code: types.CodeType, inside: bool) -> None:
        inside = inside and (not functions or code.co_name in functions)
        if inside:
            found.update(
                line for _, _, line in code.co_lines() if line and line > code.co_firstlineno
            )
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                # The body of a class runs when its module is imported.
                walk(constant, "__qualname__" not in constant.co_names)

    walk(compile(file.read_text(), str(file), "exec"), False)
    return found


def measure(
    run: Callable[[bytes], object], inputs: Iterable[bytes], reader: Iterable[str]
) -> dict[Path, tuple[set[int], set[int]]]:
    """(lines that can run, lines that ran) of each file of a reader, "FILE" or "FILE:FUNCTIONS"."""
    files = {}
    for entry in reader:
        name, _, functions = entry.partition(":")
        files[str(SOURCE / name)] = lines_of(SOURCE / name, functions.split())
    ran: dict[str, set[int]] = {name: set() for name in files}

    def trace(frame: types.FrameType, event: str, _: Any) -> Any:
        seen = ran.get(frame.f_code.co_filename)
        if seen is None:
            return None
        seen.add(frame.f_lineno)
        return trace

    for data in inputs:
        sys.settrace(trace)
        try:
            run(data)
        except Exception:  # whether it may is not the question here
            pass
        finally:
            sys.settrace(None)
    return {Path(name): (lines, lines & ran[name]) for name, lines in files.items()}
