"""Cache of packed weights: one file for each model and way of packing, so that loading is faster.

A file holds what the native core packed from one model file for one instruction set, precision and
choice of algorithms. It is mapped, not read, so that processes share its pages. Nothing in it is
trusted: SHA-256 protects its table and checksums its weights, and the core checks the bounds of
everything that a kernel reads. A file that is damaged, does not fit or cannot be written costs
time, but never changes a result. (The exception is a file that another program changes in place
while it is mapped; this module only replaces files.)

The folder is kept below `cache_limit()`: after writing a file, the least recently used ones are
deleted. Using a file sets its modification time.

Layout: 64 bytes (magic, offset and length of the table as u64, SHA-256 of the table), the packed
weights of each operation, each at a multiple of 64 bytes, and the table as JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._native import pack_version
from ..errors import InputError
from ..files import cache_folder, replacing
from ..model.file import ModelFile, load_model
from ..model.tensors import LazyTensors
from ..version import VERSION
from . import Engine, PackedWeights, choose_isa
from .precision import choose_precision

DEFAULT_LIMIT = 10 * 10**9
"""Limit of the cache in bytes, unless SPARSEDET_CACHE_LIMIT says otherwise. Source: choice; about a
hundred models of the size of r101-c4."""

_MAGIC = b"SDPACKED"
_START = struct.Struct("<8sQQ32s8x")
_NAME = re.compile(r".+-[a-z0-9]+-(f32|bf16|int8)-[0-9a-f]{16}\.packed", re.DOTALL)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A file of packed weights.

    Attributes:
        path: the file.
        bytes: its size.
        last_used: time of the last use, in seconds since 1970.
    """

    path: Path
    bytes: int
    last_used: float


def packed_folder(cache: Literal[True] | str | os.PathLike[str]) -> Path:
    """The folder of packed weights: `cache`, or for True `packed` in `files.cache_folder()`."""
    return cache_folder() / "packed" if cache is True else Path(cache)


def cache_limit() -> int:
    """Limit of the cache in bytes, from SPARSEDET_CACHE_LIMIT or `DEFAULT_LIMIT`; 0: no limit.

    Raises:
        InputError: the variable is not a size.
    """
    text = os.environ.get("SPARSEDET_CACHE_LIMIT", "").strip()
    if not text:
        return DEFAULT_LIMIT
    size = _SIZE.fullmatch(text)
    if size is None:
        raise InputError(
            f"SPARSEDET_CACHE_LIMIT is {text!r}, expected a size in bytes, as 500MB or 10GB; "
            "0 means no limit"
        )
    return int(float(size[1]) * _UNITS[size[2].upper()])


def entries(folder: Path) -> list[CacheEntry]:
    """Files of packed weights in a folder, the least recently used one first.

    Other files are not listed: a file of packed weights is recognised by its name and its first
    bytes. A folder that does not exist or cannot be read has no entries.
    """
    listed = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name) and (entry := _entry(path)):
                listed.append(entry)
    return sorted(listed, key=lambda entry: (entry.last_used, entry.path))


def _entry(path: Path) -> CacheEntry | None:
    with contextlib.suppress(OSError):  # it may be gone, or belong to another user
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return CacheEntry(path, status.st_size, status.st_mtime)
    return None


def remove(entries: Iterable[CacheEntry]) -> None:
    """Delete files of packed weights; a process that has one mapped can still use it.

    Raises:
        InputError: a file cannot be deleted; one that is gone already is no error.
    """
    for entry in entries:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{entry.path}: cannot be deleted ({error.strerror})") from None


def load_engine(
    path: str | os.PathLike[str],
    folder: Path,
    *,
    isa: str,
    precision: str,
    algorithms: Mapping[str, str] | None,
    threads: int,
) -> tuple[ModelFile, Engine]:
    """Load a model file and its engine, with packed weights from `folder`.

    Packed weights that are not in the folder are packed and written there. If that fails, a
    warning says so.

    Args:
        path: the model file.
        folder: the cache; created if necessary.
        isa, precision, algorithms, threads: as for `Engine`.

    Raises:
        InputError: as `load_model`, `Engine` and `cache_limit`.
    """
    limit = cache_limit()
    model = load_model(path, check=False)
    thresholds = model.clipping_thresholds
    chosen = choose_precision(precision, isa, thresholds=bool(thresholds))
    try:
        isa = choose_isa(isa)
    except ValueError as error:
        raise InputError(str(error)) from None
    options: dict[str, Any] = {
        "isa": isa,
        "precision": precision,
        "algorithms": algorithms,
        "threads": threads,
        "clipping_thresholds": thresholds,
    }
    assert isinstance(model.tensors, LazyTensors)
    if chosen == "int8":  # its packed weights are not kept
        return model, Engine(model.config, model.tensors, **options)
    key = _key(model.tensors, isa, chosen, algorithms)
    file = folder / f"{Path(path).stem}-{isa}-{chosen}-{key[:16]}.packed"
    try:
        operations = _open(file, key, model.tensors)
        if operations is not None:
            engine = Engine(model.config, model.tensors, packed=operations, **options)
            with contextlib.suppress(OSError):  # the file of another user
                os.utime(file)
            return model, engine
    except ValueError as error:  # also an InputError of the core
        warnings.warn(
            f"{file}: packed weights are damaged ({error}); they are packed and written again",
            RuntimeWarning,
            stacklevel=3,
        )
    engine = Engine(model.config, model.tensors, **options)
    try:
        _save(file, key, model.tensors, engine)
    except OSError as error:  # a read-only folder, a full disk
        warnings.warn(
            f"{folder}: packed weights cannot be kept there ({error.strerror or error}); each load "
            "packs them again",
            RuntimeWarning,
            stacklevel=3,
        )
    else:
        _trim(folder, limit, file)
    return model, engine


def _trim(folder: Path, limit: int, keep: Path) -> None:
    """Delete the least recently used files until the rest is within `limit`, but never `keep`."""
    if not limit:
        return
    listed = entries(folder)
    total = sum(entry.bytes for entry in listed)
    for entry in listed:
        if total <= limit:
            return
        if entry.path != keep:
            with contextlib.suppress(InputError):  # the file of another user
                remove([entry])
                total -= entry.bytes


def _key(
    tensors: LazyTensors, isa: str, precision: str, algorithms: Mapping[str, str] | None
) -> str:
    """Digest of everything that packed weights depend on, except the values of the weights."""
    inputs = [VERSION, pack_version, isa, precision, sorted((algorithms or {}).items())]
    return hashlib.sha256(json.dumps(inputs).encode() + tensors.header()).hexdigest()


def _open(file: Path, key: str, tensors: LazyTensors) -> dict[str, PackedWeights] | None:
    """Packed weights by operation; None if the file does not exist or is of another model.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < _START.size:
                raise ValueError("truncated")
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    magic, offset, length, digest = _START.unpack_from(content)
    if magic != _MAGIC or offset + length != size:
        raise ValueError("truncated, or not a file of packed weights")
    table = content[offset : offset + length]
    if hashlib.sha256(table).digest() != digest:
        raise ValueError("the table is damaged")
    try:
        values = json.loads(table)
        if values["key"] != key:
            return None
        if values["version"] != list(tensors.version()) and values["sha256"] != tensors.digest():
            return None
        array: NDArray[np.uint8] = np.frombuffer(content, np.uint8)
        operations = {}
        for name, numbers in values["operations"].items():
            begin, end, algorithm, nonzero, checksum = numbers
            if any(type(n) is not int for n in (begin, end, nonzero, checksum)):
                raise ValueError
            if not 0 <= begin <= end <= offset or not 0 <= nonzero < 1 << 63 or checksum >> 64:
                raise ValueError
            operations[name] = PackedWeights(array[begin:end], str(algorithm), nonzero, checksum)
        return operations
    except (LookupError, RecursionError, TypeError, AttributeError, ValueError):
        raise ValueError("the table is damaged") from None


def _save(file: Path, key: str, tensors: LazyTensors, engine: Engine) -> None:
    """Write the packed weights of an engine.

    Raises:
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        stream.write(bytes(_START.size))
        operations = {}
        for name in engine.packed_operations:
            algorithm, nonzero, checksum, pieces = engine.native.packed(name)
            begin = stream.tell()
            stream.writelines(pieces)
            operations[name] = (begin, stream.tell(), algorithm, nonzero, checksum)
        table = json.dumps(
            {
                "key": key,
                "version": tensors.version(),
                "sha256": tensors.digest(),
                "operations": operations,
            }
        ).encode()
        offset = stream.tell()
        stream.write(table)
        stream.seek(0)
        digest = hashlib.sha256(table).digest()
        stream.write(_START.pack(_MAGIC, offset, len(table), digest))
