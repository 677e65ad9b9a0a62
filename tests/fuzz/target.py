"""What a target is: a reader of a stranger's bytes, its seeds, and how they are changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .mutate import Mutator


@dataclass(frozen=True)
class FuzzTarget:
    """Attributes:
    run: reads bytes, as the program reads a file of them.
    seeds: files to start from.
    mutate: makes other files of them.
    check_runs: executions in the check of the repository, some seconds of them.
    reader: the source files that `run` is for, below src/sparsedet, as FILE or FILE:FUNCTIONS.
    attacks: the folder below tests/attacks with further seeds.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterator[bytes]]
    mutate: Mutator
    check_runs: int
    reader: tuple[str, ...]
    attacks: str = ""


_folder = tempfile.TemporaryDirectory(prefix="sparsedet-fuzz-")
FOLDER = Path(_folder.name)
"""For the files that readers get."""


def place(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path
