"""The cache of published models: download into it, list it, remove from it.

A file is at CACHE/NAME/FILE, with NAME and FILE from the catalogue. Only such files are listed and
removed; other files in the folder are left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from os import environ
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError, UsageError
from ..files import cache_folder
from . import catalogue
from .catalogue import entry
from .fetch import Note, RetryPolicy, fetch

Progress = Callable[[str, int, "int | None"], None]
"""Called with a file's name, its bytes on disk and the bytes of the whole file (None: unknown)."""


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file in the cache.

    Attributes:
        name: key of `CATALOGUE`.
        path: the file.
        size: bytes.
        last_used: last access in seconds since the epoch, as exact as the file system records it
            (often to the day).
        complete: False: a broken download that a later run resumes.
    """

    name: str
    path: Path
    size: int
    last_used: float
    complete: bool


def offline_requested() -> bool:
    """Whether SPARSEDET_OFFLINE forbids connections: set, and neither empty nor 0."""
    return environ.get("SPARSEDET_OFFLINE", "0") not in ("", "0")


def is_cached(name: str, folder: Path | None = None) -> bool:
    """Whether all files of a model are in the cache; their digests are not checked.

    Args:
        name: key of `CATALOGUE`.
        folder: the cache; default: `cache_folder()`.
    """
    folder = (folder or cache_folder()) / name
    return all((folder / remote.name).is_file() for remote in entry(name).files)


def download_model(
    name: str,
    *,
    folder: Path | None = None,
    mirror: str | None = None,
    offline: bool = False,
    policy: RetryPolicy | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> list[Path]:
    """Download the files of a published model into the cache, and verify them.

    Args:
        name: key of `CATALOGUE`.
        folder: the cache; default: `cache_folder()`.
        mirror: http or https address that replaces the publisher's scheme and host; the path of
            the publisher's address is appended.
        offline: use only what is in the cache; SPARSEDET_OFFLINE does the same.
        policy: default: `RetryPolicy()`.

    Returns:
        Paths in the order of `CatalogueEntry.files`.

    Raises:
        InputError: unknown name, bad mirror, or a file that cannot be downloaded or verified.
    """
    paths = []
    for remote in entry(name).files:
        target = (folder or cache_folder()) / name / remote.name
        source = remote if mirror is None else replace(remote, url=_mirrored(remote.url, mirror))
        fetch(
            source,
            target,
            offline=offline or offline_requested(),
            policy=policy,
            progress=None if progress is None else partial(progress, remote.name),
            note=note,
        )
        paths.append(target)
    return paths


def list_cached(name: str | None = None, folder: Path | None = None) -> list[CachedFile]:
    """Downloaded files, in the order of the catalogue; broken downloads included.

    Args:
        name: key of `CATALOGUE`; default: all models.
        folder: the cache; default: `cache_folder()`.

    Raises:
        InputError: unknown name.
    """
    folder = folder or cache_folder()
    files = []
    for key in catalogue.CATALOGUE if name is None else (name,):
        for remote in entry(key).files:
            for suffix in ("", ".part", ".part.from"):
                path = folder / key / (remote.name + suffix)
                if path.is_file():
                    status = path.stat()
                    last_used = max(status.st_atime, status.st_mtime)
                    files.append(CachedFile(key, path, status.st_size, last_used, not suffix))
    return files


def remove_cached(name: str | None = None, folder: Path | None = None) -> list[CachedFile]:
    """Remove downloaded files, and the folders that this empties.

    Args:
        name: key of `CATALOGUE`; default: all models.
        folder: the cache; default: `cache_folder()`.

    Returns:
        The removed files.

    Raises:
        InputError: unknown name, or a file that cannot be removed.
    """
    files = list_cached(name, folder)
    for file in files:
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{file.path}: cannot be removed ({error.strerror or error})"
            ) from None
    for parent in {file.path.parent for file in files}:
        with contextlib.suppress(OSError):  # it has other files
            parent.rmdir()
    return files


def _mirrored(url: str, mirror: str) -> str:
    """An address with the mirror in place of its scheme and host."""
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"mirror is {mirror!r}, expected an address: https://HOST or http://HOST")
    return mirror.rstrip("/") + urlsplit(url).path
