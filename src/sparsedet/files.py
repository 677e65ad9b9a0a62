"""Writing files so that nothing is ever half-written or lost."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import InputError


def write_atomic(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write `data` to a temporary file beside `path`, then move it there.

    Raises:
        InputError: `path` exists and `overwrite` is not asked for, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already and is not overwritten")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 is not what a user expects
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from None


def check_output(path: Path, *, overwrite: bool = False, flag: str = "--overwrite") -> None:
    """Refuse before the work what could not be written after it.

    Args:
        path: the file that will be written.
        overwrite: an existing file may be replaced.
        flag: what the message names as the way to replace it; "": there is none.

    Raises:
        InputError: the file exists, or its folder does not.
    """
    if path.exists() and not overwrite:
        way = f"another name or {flag}" if flag else "another name"
        raise InputError(f"{path}: exists already; give {way}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written ({path.parent} is not a folder)")


def make_folder(path: Path) -> None:
    """Create a folder that results will be written into, before the work is done.

    Raises:
        InputError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: cannot be written")


def weights_file(path: Path) -> Path:
    """The file that holds a model's weights: of an OpenVINO IR (.xml) the .bin beside it."""
    return path.with_suffix(".bin") if path.suffix == ".xml" else path


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Of a file's bytes, in hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file's content.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a number too long to hold
        raise InputError(f"{path}: not valid JSON ({error})") from None


def cache_folder() -> Path:
    """Folder of downloads and packed weights: SPARSEDET_CACHE, else ~/.cache/sparsedet."""
    chosen = os.environ.get("SPARSEDET_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "sparsedet"
