"""Tensors of a model file, decoded to arrays on first use.

The engine packs the stored form, so loading a detector never makes dense arrays of its weights.
This module knows masks, values and the bytes of an open file; `model.file` checks headers and the
list of tensors.

Stored form: a sparse tensor is a mask (one bit per element, least significant bit first) and the
values whose bit is set; a dense tensor is its values alone (docs/format.md).
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .record import Record


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """One tensor in its stored form.

    Attributes:
        shape: shape of the dense tensor.
        mask: uint8, ceil(elements / 8) bytes; None: all elements are stored.
        values: float32 or float16, in C order.
    """

    shape: tuple[int, ...]
    mask: NDArray[np.uint8] | None
    values: NDArray[Any]

    def check(self, name: str) -> None:
        """Raise ValueError if mask, values and shape disagree, or a value is not finite."""
        count = math.prod(self.shape)
        if self.mask is not None:
            bits = _set_bits(self.mask)
            past_its_end = int.from_bytes(self.mask[count // 8 :], "little") >> count % 8
            if bits != len(self.values) or past_its_end:
                raise ValueError(
                    f"tensor {name!r}: its mask has {bits} bits set for "
                    f"{len(self.values)} values and {count} elements"
                )
        if not _all_finite(self.values):
            raise ValueError(f"tensor {name!r} holds NaN or infinity")

    def dense(self) -> NDArray[np.float32]:
        """A new float32 array."""
        if self.mask is None:
            return self.values.astype(np.float32).reshape(self.shape)
        count = math.prod(self.shape)
        dense = np.zeros(count, np.float32)
        dense[np.unpackbits(self.mask, count=count, bitorder="little").view(np.bool_)] = self.values
        return dense.reshape(self.shape)


def _set_bits(mask: NDArray[np.uint8]) -> int:
    if hasattr(np, "bitwise_count"):  # from numpy 2 on, and twice as fast
        return int(np.bitwise_count(mask).sum())
    return int.from_bytes(mask, "little").bit_count()


def _all_finite(values: NDArray[Any]) -> bool:
    if values.dtype == np.float16:  # numpy converts each number; the bits take a sixth of the time
        exponents = values.view(np.uint16) & 0x7C00
        return int(exponents.max(initial=0)) < 0x7C00
    return bool(np.isfinite(values).all())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ByteRange(Record):
    """Where a tensor is in the file: (first byte, length) of its values, and of its mask if any."""

    shape: tuple[int, ...]
    mask: tuple[int, int] | None
    values: tuple[int, int]
    dtype: np.dtype[Any]


class LazyTensors(MutableMapping[str, NDArray[np.float32]]):
    """Mapping from name to dense float32 array, decoded on first use and then kept.

    Arrays may be changed and replaced, as in a dict.

    Args:
        path: named in messages.
        descriptor: descriptor of the open file; a duplicate stays open as long as this mapping, so
            the file may be moved or deleted meanwhile.
        byte_ranges: byte range of each tensor, in order.

    Raises:
        InputError: (when a tensor is used) mask, values and shape disagree, a value is not finite,
            the file has changed, or it cannot be read.
    """

    def __init__(
        self, path: str | os.PathLike[str], descriptor: int, byte_ranges: Mapping[str, ByteRange]
    ) -> None:
        self._path = os.fspath(path)
        self._descriptor = os.dup(descriptor)
        # Not when the interpreter exits: a daemon thread may still be reading.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._state = self._size_and_time()
        self._byte_ranges: dict[str, ByteRange | None] = dict(
            byte_ranges
        )  # None: decoded or replaced
        self._unchecked = set(byte_ranges)
        self._start = min(byte_range.values[0] for byte_range in byte_ranges.values())
        self._arrays: dict[str, NDArray[np.float32]] = {}

    def stored(self, name: str, into: NDArray[np.uint8] | None = None) -> StoredTensor | None:
        """The stored form; None if the array was decoded before, since it may have been changed.

        Args:
            into: buffer of `largest` bytes to read into; the result is valid until the buffer is
                used again. Reusing one buffer saves the time of allocating for each tensor.
        """
        byte_range = self._byte_ranges[name]
        if byte_range is None:
            return None
        if self._size_and_time() != self._state:
            raise InputError(f"{self._path}: the file has changed since it was opened")
        data: list[Any]
        if into is None or not hasattr(os, "preadv"):
            data = [self._bytes(*span) for span in (byte_range.values, byte_range.mask) if span]
        else:
            data = self._read_into(into, byte_range)
        values = np.frombuffer(data[0], byte_range.dtype)
        mask = np.frombuffer(data[1], np.uint8) if byte_range.mask else None
        tensor = StoredTensor(byte_range.shape, mask, values)
        if name in self._unchecked:
            try:
                tensor.check(name)
            except ValueError as error:
                raise InputError(f"{self._path}: {error}") from None
            self._unchecked.discard(name)
        return tensor

    def nonzero(self, name: str) -> int:
        """Number of nonzero elements."""
        stored = self.stored(name)
        return int(np.count_nonzero(self[name] if stored is None else stored.values))

    def is_stored(self, name: str) -> bool:
        """Whether the tensor is still as in the file."""
        return self._byte_ranges[name] is not None

    def shape(self, name: str) -> tuple[int, ...]:
        byte_range = self._byte_ranges[name]
        return self._arrays[name].shape if byte_range is None else byte_range.shape

    def _size_and_time(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns  # not the time of a rename

    def version(self) -> tuple[int, ...]:
        """Identity and time stamps of the file; they differ if the content does."""
        s = os.fstat(self._descriptor)
        return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns

    def header(self) -> bytes:
        """The bytes of the file before its first tensor."""
        return self._bytes(0, self._start)

    def digest(self) -> str:
        """SHA-256 of the whole file, hexadecimal."""
        import hashlib  # a detection needs none of OpenSSL

        digest = hashlib.sha256()
        size = os.fstat(self._descriptor).st_size
        for start in range(0, size, 1 << 20):
            digest.update(self._bytes(start, min(1 << 20, size - start)))
        return digest.hexdigest()

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor that is not decoded yet."""
        return max(
            (p.values[1] + (p.mask[1] if p.mask else 0) for p in self._byte_ranges.values() if p),
            default=0,
        )

    def _read_into(
        self, buffer: NDArray[np.uint8], byte_range: ByteRange
    ) -> list[NDArray[np.uint8]]:
        data: list[Any] = []  # arrays, but mypy does not know that they are buffers
        for start, length in [byte_range.values] + ([byte_range.mask] if byte_range.mask else []):
            data.append(buffer[:length])  # values first, so that they are aligned
            buffer = buffer[length:]
            try:
                count = os.preadv(self._descriptor, [memoryview(data[-1])], start)
            except OSError as error:
                raise InputError(f"{self._path}: {error.strerror or error}") from None
            if count != length:
                raise InputError(f"{self._path}: the file was truncated after it was opened")
        return data

    def _bytes(self, start: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, start)
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror or error}") from None
        if len(data) != length:
            raise InputError(f"{self._path}: the file was truncated after it was opened")
        return data

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        stored = self.stored(name)
        if stored is not None:
            self[name] = stored.dense()
        return self._arrays[name]

    def __setitem__(self, name: str, array: NDArray[np.float32]) -> None:
        self._arrays[name], self._byte_ranges[name] = array, None

    def __delitem__(self, name: str) -> None:
        del self._byte_ranges[name]
        self._arrays.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._byte_ranges  # does not decode it

    def __iter__(self) -> Iterator[str]:
        return iter(self._byte_ranges)

    def __len__(self) -> int:
        return len(self._byte_ranges)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)
