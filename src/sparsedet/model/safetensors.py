"""The safetensors container: header and tensors of a file.

Own code instead of the safetensors library, which orders metadata at random (so the same model
would give different bytes) and accepts a tensor that is named twice. The files are ordinary
safetensors; a test reads them with that library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .record import Record

_HEADER_LIMIT = 1 << 20  # bytes; r101-c4 needs about 36 thousand


DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
}


def container(metadata: Mapping[str, str], stored: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of a safetensors file; tensors with the widest elements first, so that all are
    aligned, then by name."""
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    names = sorted(stored, key=lambda name: (-stored[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        begin, end = end, end + stored[name].nbytes
        shape = list(stored[name].shape)
        kind = kinds[stored[name].dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _HEADER_LIMIT:
        raise InputError(
            f"the header would be {len(text)} bytes, expected at most {_HEADER_LIMIT}: "
            "shorten the provenance"
        )
    return b"".join([len(text).to_bytes(8, "little"), text, *(stored[n].data for n in names)])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Entry(Record):
    """A tensor in a header; its bytes are begin..end of the data after the header."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def read_header(
    file: BinaryIO, size: int, limit: int = _HEADER_LIMIT
) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and tensors of a safetensors file; reading goes on at its first data byte.

    Args:
        file: at its beginning.
        size: of the file, bytes.
        limit: largest header, bytes.

    Raises:
        ValueError: not a safetensors file, damaged, a tensor named twice, or bytes that belong to
            no tensor.
    """
    if size == 0:
        raise ValueError("the file is empty")
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and limit < length < size:
        raise ValueError(f"its header has {length:,} bytes, expected at most {limit:,}")
    if start[8:] != b"{" or length > limit:
        raise ValueError(_foreign(start))
    file.seek(8)
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"truncated: {size} bytes, its header alone has {length}")
    header = parse_json("the header", text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise ValueError("the metadata is not a table of strings")
    entries = {name: _parse_entry(name, value) for name, value in header.items()}
    position, available = 0, size - 8 - length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise ValueError(
                f"tensor {name!r} is at bytes {entry.begin}..{entry.end}, expected to start at "
                f"{position}"
            )
        position = entry.end
    if position > available:
        raise ValueError(f"truncated: has {available} of {position} bytes of tensors")
    if position < available:
        raise ValueError(f"has {available - position} bytes after its last tensor")
    return metadata, entries


def _foreign(start: bytes) -> str:
    """What another file may be, judged by its first nine bytes."""
    kind = "not a safetensors file"
    if start.startswith(b"PK"):
        kind = "a PyTorch or ZIP file"
    elif start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5":
        kind = "a pickle (PyTorch or Detectron2) file"
    elif start[:1] == b"\x08" and start[2:3] in b"\x12\x1a\x22\x2a\x32\x3a":
        kind = "an ONNX file"  # protobuf: field 1 (IR version), then another early field
    hint = "" if kind.startswith("not") else "; first: sparsedet convert FILE -o MODEL"
    return f"{kind}, so not a sparsedet model{hint}"


def _parse_entry(name: str, value: Any) -> Entry:
    if isinstance(value, dict) and set(value) == {"dtype", "shape", "data_offsets"}:
        shape, offsets = value["shape"], value["data_offsets"]
        numbers = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if numbers and all(type(n) is int and n >= 0 for n in shape + offsets):
            return Entry(str(value["dtype"]), shape, *offsets)
    raise ValueError(f"tensor {name!r}: expected dtype, shape and data_offsets, all in range")


def parse_json(what: str, text: str | bytes) -> dict[str, Any]:
    """A JSON object in UTF-8; repeated keys, NaN and infinities are errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ValueError(f"{key!r} occurs twice")
            values[key] = value
        return values

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is not a finite number")
        return value

    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value
