"""Writing files so that nothing is ever half-written or lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from .errors import InputError


def write_atomic(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write a file completely or not at all.

    A regular file is written beside its place and then moved there. A symbolic link is followed:
    its target is replaced, or made where it is missing, and the link stays. A device, pipe, socket
    or `/dev/stdout` is written into, never replaced, and needs no `overwrite`.

    Raises:
        InputError: the file exists and `overwrite` is False, or it cannot be written.
    """
    try:
        if is_stream(path):
            _write_into(path, data)
            return
        target = Path(os.path.realpath(path))
        if target.exists() and not overwrite:
            raise InputError(f"{path}: exists already and is not overwritten")
        _replace(target, data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is written into: a device, pipe, socket, or an open file of this process."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode):
        return not stat.S_ISDIR(mode)
    link = os.fspath(path)  # `/dev/stdout` of `sparsedet ... > file` leads to a regular file
    for _ in range(40):  # Linux's limit of links in a row
        if os.path.realpath(os.path.dirname(link) or ".").startswith("/proc/"):
            return True
        if not os.path.islink(link):
            return False
        link = os.path.join(os.path.dirname(link), os.readlink(link))
    return False


def _write_into(path: str | os.PathLike[str], data: bytes) -> None:
    if stat.S_ISSOCK(os.stat(path).st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(os.fspath(path))
            connection.sendall(data)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _replace(target: Path, data: bytes) -> None:
    """Write to a temporary file beside `target`, then move it there."""
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            mode = stat.S_IMODE(target.stat().st_mode)
        else:  # mkstemp's 0600 is not what a user expects
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def check_output(path: Path, *, overwrite: bool = False, flag: str = "--overwrite") -> None:
    """Refuse before the work what `write_atomic` could not write after it.

    Args:
        path: the file that will be written.
        overwrite: an existing file may be replaced.
        flag: what the message names as the way to replace it; "": there is none.

    Raises:
        InputError: the file exists or is a folder, or its folder is missing or read-only.
    """
    if is_stream(path):
        return
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file to write")
    target = Path(os.path.realpath(path))
    if target.exists() and not overwrite:
        way = f"another name or {flag}" if flag else "another name"
        raise InputError(f"{path}: exists already; give {way}")
    if not target.parent.is_dir():
        raise InputError(f"{path}: cannot be written ({target.parent} is not a folder)")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written ({target.parent} is read-only)")


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
        with open(path, encoding="utf-8-sig") as file:  # Windows tools write a byte order mark
            return json.load(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a number too long to hold
        raise InputError(f"{path}: not valid JSON ({error})") from None


def cache_folder() -> Path:
    """Folder of downloads and packed weights: SPARSEDET_CACHE, else ~/.cache/sparsedet."""
    chosen = os.environ.get("SPARSEDET_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "sparsedet"
