"""The checkpoint format of a run, as far as its writer and its readers share it; no torch.

A run folder holds `checkpoint-NNNNNNN.safetensors`, one for each kept step. The metadata `sha256`
covers everything else in the file, so that a flipped bit is noticed. `torch_model.checkpoint`
writes and reads such files; `importers.checkpoint` reads the model out of one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import make_folder

T = TypeVar("T")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint after `step` optimizer steps."""
    return folder / f"checkpoint-{step:07d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run folder, oldest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"))


def check_run_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds another run.

    Raises:
        InputError: it holds one, and `resume` is False.
    """
    if not resume and checkpoints(folder):
        raise InputError(f"{folder}: holds a run already; resume it or choose another folder")


def prepare_run_folder(folder: Path, resume: bool) -> None:
    """Create the run folder, or delete the unfinished files of a killed run in it.

    Raises:
        InputError: it cannot be written, or holds another run and `resume` is False.
    """
    check_run_folder(folder, resume)
    make_folder(folder)


def read_newest(folder: Path, read: Callable[[Path], T]) -> T | None:
    """The newest checkpoint of a run folder that `read` accepts; warns of each newer one.

    Args:
        read: returns the content of a checkpoint, or raises InputError if it is damaged.

    Returns:
        what `read` returned; None: the folder holds no checkpoint.

    Raises:
        InputError: all checkpoints are damaged; names the folder and the oldest one's damage.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            return read(path)
        except InputError as error:
            if path == paths[0]:
                raise InputError(f"{folder}: holds no readable checkpoint; {error}") from None
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    return None


def digest(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """SHA-256 of a checkpoint's names, types, shapes, values and metadata, in hexadecimal."""
    sha = hashlib.sha256()
    for key in sorted(set(metadata) - {"sha256"}):
        sha.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(tensors):
        values = tensors[name]
        sha.update(f"{name} {values.dtype} {values.shape}\n".encode())
        sha.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
