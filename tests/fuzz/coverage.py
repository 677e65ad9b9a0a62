"""Which lines of a target's reader its corpus reaches, by Python's own trace; and what is kept."""

from __future__ import annotations

import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from .child import BUILD, filled
from .processes import SEEDS

SOURCE = Path(__file__).parents[2] / "src" / "sparsedet"
LARGEST = 8192
"""Bytes of a file in the corpus of the repository."""


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


def show(name: str) -> None:
    """Print which lines of a target's reader its corpus reaches."""
    from .targets import TARGETS

    target = TARGETS[name]
    inputs = [path.read_bytes() for path in sorted(filled(BUILD / "corpus" / name, name).iterdir())]
    found = measure(target.run, inputs, target.reader)
    all_lines = sum(len(lines) for lines, _ in found.values())
    ran = sum(len(reached) for _, reached in found.values())
    print(f"{name}: {ran} of {all_lines} lines, {100 * ran / all_lines:.0f} %")
    for file, (lines, reached) in found.items():
        if missed := sorted(lines - reached):
            print(f"  {file.relative_to(SOURCE)}: {', '.join(map(str, missed))}")


def merge(name: str) -> None:
    """Greedily, smallest first: a file stays in the repository if it reaches a line of the reader
    that no seed and no smaller file does."""
    from .targets import TARGETS

    target = TARGETS[name]
    kept = SEEDS / name
    before = [path.read_bytes() for path in kept.iterdir()] if kept.exists() else []
    with tempfile.TemporaryDirectory() as empty:
        if kept.exists():
            shutil.move(str(kept), empty)
    paths = list(filled(BUILD / "corpus" / name, name).iterdir())
    seeds = [path.read_bytes() for path in paths if path.name.startswith("seed-")]
    others = [path.read_bytes() for path in paths if not path.name.startswith("seed-")] + before

    def lines(inputs: list[bytes]) -> set[tuple[str, int]]:
        found = measure(target.run, inputs, target.reader)
        return {(str(file), line) for file, (_, reached) in found.items() for line in reached}

    reached = lines(seeds)
    kept.mkdir(parents=True)
    for data in sorted(others, key=len):
        if len(data) <= LARGEST and (new := lines([data]) - reached):
            reached |= new
            (kept / f"{len(list(kept.iterdir())):03}").write_bytes(data)
    print(f"{name}: {len(list(kept.iterdir()))} files")
