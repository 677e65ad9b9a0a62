"""Writing files so that nothing is ever half-written or lost."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

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
        target = follow(path)
        if target.exists() and not overwrite:
            raise InputError(f"{path}: exists already and is not overwritten")
        with replacing(target) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is written into: a device, pipe, socket, or an open file of this process."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISDIR(mode) and (not stat.S_ISREG(mode) or _descriptor(path) is not None)


def follow(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, all links followed; it need not exist.

    Raises:
        OSError: the system cannot say, as for links in a circle or a name too long.
    """
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)
    return Path(os.path.realpath(path))


def _descriptor(path: str | os.PathLike[str]) -> int | None:
    """The number of the open file of this process that a path leads to, as `/dev/stdout` does."""
    link, table = os.fspath(path), os.path.realpath("/proc/self/fd")
    for _ in range(40):  # Linux's limit of links in a row
        folder, name = os.path.split(link)
        if os.path.realpath(folder or ".") == table and name.isdecimal():
            return int(name)
        if not os.path.islink(link):
            return None
        link = os.path.join(folder, os.readlink(link))
    return None


def _write_into(path: str | os.PathLike[str], data: bytes) -> None:
    """Write to what stays as it is. A reader that stops reading has what it wanted."""
    with contextlib.ExitStack() as stack, contextlib.suppress(BrokenPipeError):
        number = _descriptor(path)
        if number is None and stat.S_ISSOCK(os.stat(path).st_mode):
            import socket  # here, because few need it, and `detect` starts often

            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.connect(os.fspath(path))
            connection.sendall(data)
            return
        if number is None:
            number = os.open(path, os.O_WRONLY)
            stack.callback(os.close, number)
        else:  # opened again, a file would be written from its start: `--json /dev/stdout > file`
            sys.stdout.flush()
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(number, rest) :]


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file beside `target`, moved there when all is written, else deleted.

    Raises:
        OSError: it cannot be written.
    """
    with replacing_path(target) as temporary, open(temporary, "wb") as file:
        yield file


@contextlib.contextmanager
def replacing_path(target: Path) -> Iterator[Path]:
    """As `replacing`, for writers that open their files themselves: the path of the new file.

    A process that is killed leaves it there, and the next that writes into the folder deletes it.
    """
    _remove_leftovers(target.parent)
    name = os.fsdecode(os.fsencode(target.name)[:200])  # 255 bytes are the limit
    while True:
        import tempfile  # reading needs none of it

        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=_PARTIAL, dir=target.parent)
        if not _lock(handle, wait=True) or os.path.exists(temporary):
            break
        os.close(handle)  # another process took it for a leftover before it was locked
    try:
        try:
            yield Path(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        finally:
            os.close(handle)
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


_PARTIAL = ".partial"
_cleaned: set[str] = set()


def _remove_leftovers(folder: Path) -> None:
    """Delete what killed processes have not finished writing, once a process and folder.

    A file is locked as long as it is written.
    """
    key = os.path.realpath(folder)
    if key in _cleaned:
        return
    _cleaned.add(key)
    with contextlib.suppress(OSError):
        for path in folder.glob(f".*.????????{_PARTIAL}"):
            handle = os.open(path, os.O_RDWR)
            try:
                if _lock(handle):
                    path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int, wait: bool = False) -> bool:
    """Lock a file for as long as it is open; False: another process has it, or none can."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):  # Windows; some network file systems
        return False
    return True


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
    check_name(path, overwrite=overwrite, flag=flag)
    _check_writable(follow(path).parent, path)


def check_name(path: Path, *, overwrite: bool = False, flag: str = "--overwrite") -> None:
    """`check_output` without the question whether the folder is read-only."""
    if is_stream(path):
        return
    try:
        target = follow(path)
        if target.is_dir():
            raise InputError(f"{path}: is a folder, expected a file to write")
        if target.exists() and not overwrite:
            way = f"another name or {flag}" if flag else "another name"
            raise InputError(f"{path}: exists already; give {way}")
        if not target.parent.is_dir():
            raise InputError(f"{path}: cannot be written ({target.parent} is not a folder)")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _check_writable(folder: Path, path: Path) -> None:
    """Try it: the permissions say less than the system does, above all to root."""
    try:
        import tempfile

        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def make_folder(path: Path) -> None:
    """Create a folder that results will be written into, before the work is done.

    Raises:
        InputError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a folder ({error.strerror})") from None
    _check_writable(path, path)


def check_folder(path: Path) -> None:
    """Refuse before the work what `make_folder` could not make after it; makes nothing.

    Raises:
        InputError: it, or what is above it, is no folder.
    """
    try:
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a folder ({error.strerror})") from None
    if not existing.is_dir():
        raise InputError(f"{path}: cannot be used as a folder ({existing} is not one)")


def weights_file(path: Path) -> Path:
    """The file that holds a model's weights: of an OpenVINO IR (.xml) the .bin beside it."""
    return path.with_suffix(".bin") if path.suffix == ".xml" else path


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Of a file's bytes, in hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    try:
        import hashlib

        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def what_it_is(start: bytes) -> str:
    """What a file is that should be another, by its first bytes, and what to do; "": unknown."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: fetch it with git lfs pull"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file itself: download the file"
    if start.startswith(b"PK\3\4"):
        return "is a ZIP file: unpack it first"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")):
        return "is a compressed file: unpack it first"
    return ""


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file's content. UTF-8, UTF-16 and UTF-32 are told apart, as Windows tools write them.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    try:
        data = Path(path).read_bytes()
        if kind := what_it_is(data[:128]):
            raise InputError(f"{path}: {kind}")
        return json.loads(data)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a number too long to hold
        raise InputError(f"{path}: not valid JSON ({error})") from None


def cache_folder() -> Path:
    """Folder of downloads and packed weights: SPARSEDET_CACHE, else ~/.cache/sparsedet.

    Raises:
        InputError: there is no home folder, as for a user that only a container knows.
    """
    chosen = os.environ.get("SPARSEDET_CACHE") or "~/.cache/sparsedet"
    try:
        return Path(chosen).expanduser()
    except RuntimeError:
        raise InputError(f"{chosen}: no home folder; give a folder by SPARSEDET_CACHE") from None
