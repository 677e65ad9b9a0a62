"""Packed weights in a file of their own, so that the next start needs no packing.

A file holds what the native core packed from one model file for one instruction set, precision and
algorithms. It is mapped, not read: processes share its pages. Nothing in it is trusted: the table by its
SHA-256, the weights by checksums and, in the core, by the bounds of everything that a kernel reads.
A file that does not fit, is damaged or cannot be written costs time, never a result. (One that is
changed in place while it is mapped is not guarded against; this module only ever replaces files.)

Layout: 64 bytes (magic, then offset and length of the table as u64, and its SHA-256), the packed
weights of each operation, each at a multiple of 64 bytes, and the table, JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import pack_version
from ..errors import InputError
from ..model.file import ModelFile, load_model
from ..model.tensors import LazyTensors
from ..version import VERSION
from . import Engine, PackedWeights, choose_isa, choose_precision

_MAGIC = b"SDPACKED"
_START = struct.Struct("<8sQQ32s8x")


def cache_folder(cache: bool | str | os.PathLike[str]) -> Path | None:
    """Where packed weights are kept.

    Args:
        cache: a folder; True: `packed` in the folder that the environment's SPARSEDET_CACHE names,
            default ~/.cache/sparsedet; False: nowhere.
    """
    if cache is False:
        return None
    if cache is True:
        root = os.environ.get("SPARSEDET_CACHE") or Path.home() / ".cache" / "sparsedet"
        return Path(root) / "packed"
    return Path(cache)


def load_engine(
    path: str | os.PathLike[str],
    folder: Path,
    *,
    isa: str,
    precision: str,
    algorithms: Mapping[str, str] | None,
    threads: int,
) -> tuple[ModelFile, Engine]:
    """A model file and its engine, from packed weights in `folder` if they are there.

    Else they are put there; if that cannot be done, nothing is said.

    Args:
        path: the model file.
        isa, precision, algorithms, threads: as `Engine` takes them.

    Raises:
        InputError: as `load_model` and `Engine`.
    """
    precision = choose_precision(precision, isa)
    try:
        isa = choose_isa(isa)
    except ValueError as error:
        raise InputError(str(error)) from None
    options: dict[str, Any] = {
        "isa": isa,
        "precision": precision,
        "algorithms": algorithms,
        "threads": threads,
    }
    model = load_model(path, check=False)
    assert isinstance(model.tensors, LazyTensors)
    key = _key(model.tensors, isa, precision, algorithms)
    file = folder / f"{Path(path).stem}-{isa}-{precision}-{key[:16]}.packed"
    try:
        operations = _open(file, key, model.tensors)
        if operations is not None:
            return model, Engine(model.config, model.tensors, packed=operations, **options)
    except ValueError as error:  # among them the core's, an InputError
        warnings.warn(
            f"{file}: packed weights are damaged ({error}); they are packed and written again",
            RuntimeWarning,
            stacklevel=3,
        )
    engine = Engine(model.config, model.tensors, **options)
    with contextlib.suppress(OSError):  # a read-only folder, a full disk
        _save(file, key, model.tensors, engine)
    return model, engine


def _key(
    tensors: LazyTensors, isa: str, precision: str, algorithms: Mapping[str, str] | None
) -> str:
    """What packed weights depend on, but for the values of the weights."""
    parts = [VERSION, pack_version, isa, precision, sorted((algorithms or {}).items())]
    return hashlib.sha256(json.dumps(parts).encode() + tensors.header()).hexdigest()


def _open(file: Path, key: str, tensors: LazyTensors) -> dict[str, PackedWeights] | None:
    """The operations in a file; None if there is no such file or it is of another model.

    Raises:
        ValueError: it is damaged.
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
        raise ValueError("truncated or no such file")
    table = content[offset : offset + length]
    if hashlib.sha256(table).digest() != digest:
        raise ValueError("its table is damaged")
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
        raise ValueError("its table is damaged") from None


def _save(file: Path, key: str, tensors: LazyTensors, engine: Engine) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(bytes(_START.size))
            operations = {}
            for name, *_ in engine.native.planned_ops:
                algorithm, nonzero, checksum, parts = engine.native.packed(name)
                begin = stream.tell()
                stream.writelines(parts)
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
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
