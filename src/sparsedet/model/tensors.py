"""Tensors as a model file stores them, decoded only when somebody asks for an array.

The engine packs the stored form; so a model file goes to a running detector without its weights
ever lying in memory as dense arrays. Knows bit masks, values and the bytes of an open file; headers
and the list of tensors are checked by `weights`.

Glossary: the stored form of a sparse tensor is a mask, one bit an element, least significant bit
first, and the values whose bit is set; of a dense tensor its values alone (docs/format.md).
"""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """One tensor as it is stored.

    Attributes:
        shape: of the dense tensor.
        mask: uint8, ceil(elements / 8), or None: all elements are stored.
        values: float32 or float16, in C order.
    """

    shape: tuple[int, ...]
    mask: NDArray[np.uint8] | None
    values: NDArray[Any]

    def check(self, name: str) -> None:
        """Raises ValueError if mask, values and shape disagree or a value is not finite."""
        count = math.prod(self.shape)
        if self.mask is not None:
            bits = int.from_bytes(self.mask, "little")
            if bits.bit_count() != len(self.values) or bits >> count:
                raise ValueError(
                    f"tensor {name!r}: its mask has {bits.bit_count()} bits set for "
                    f"{len(self.values)} values and {count} elements"
                )
        if not np.isfinite(self.values).all():
            raise ValueError(f"tensor {name!r} holds NaN or infinity")

    def dense(self) -> NDArray[np.float32]:
        """A new float32 array."""
        if self.mask is None:
            return self.values.astype(np.float32).reshape(self.shape)
        count = math.prod(self.shape)
        dense = np.zeros(count, np.float32)
        dense[np.unpackbits(self.mask, count=count, bitorder="little").view(np.bool_)] = self.values
        return dense.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: (first byte, bytes) of its mask, if it has one, and of its values."""

    shape: tuple[int, ...]
    mask: tuple[int, int] | None
    values: tuple[int, int]
    dtype: np.dtype[Any]


class LazyTensors(MutableMapping[str, NDArray[np.float32]]):
    """Name -> dense float32 array, decoded when first asked for and kept from then on.

    Arrays may be written to and replaced, as those of a dict.

    Args:
        path: for messages.
        descriptor: of the open file; a duplicate is kept until the tensors are gone, so that
            the file may be moved or deleted meanwhile.
        places: of the tensors, in order.

    Raises:
        InputError: (when a tensor is asked for) mask, values and shape disagree, a value is not
            finite, or the file was changed since or cannot be read.
    """

    def __init__(
        self, path: str | os.PathLike[str], descriptor: int, places: Mapping[str, Place]
    ) -> None:
        self._path = os.fspath(path)
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._size_and_time()
        self._places: dict[str, Place | None] = dict(places)  # None: decoded or replaced
        self._unchecked = set(places)
        self._start = min(place.values[0] for place in places.values())
        self._arrays: dict[str, NDArray[np.float32]] = {}

    def stored(self, name: str, into: NDArray[np.uint8] | None = None) -> StoredTensor | None:
        """The stored form; None if the array was asked for before, and may have been changed.

        Args:
            into: `largest` bytes to read into, if given: the result holds until they are used
                again. Memory that is given back and taken again for each tensor costs time.
        """
        place = self._places[name]
        if place is None:
            return None
        if self._size_and_time() != self._state:
            raise InputError(f"{self._path}: was changed after it was opened")
        data: list[Any]
        if into is None or not hasattr(os, "preadv"):
            data = [self._bytes(*span) for span in (place.values, place.mask) if span]
        else:
            data = self._read_into(into, place)
        values = np.frombuffer(data[0], place.dtype)
        mask = np.frombuffer(data[1], np.uint8) if place.mask else None
        found = StoredTensor(place.shape, mask, values)
        if name in self._unchecked:
            try:
                found.check(name)
            except ValueError as error:
                raise InputError(f"{self._path}: {error}") from None
            self._unchecked.discard(name)
        return found

    def nonzero(self, name: str) -> int:
        """How many elements are not zero."""
        stored = self.stored(name)
        return int(np.count_nonzero(self[name] if stored is None else stored.values))

    def is_stored(self, name: str) -> bool:
        """Whether it is as the file has it: nobody can have changed it."""
        return self._places[name] is not None

    def shape(self, name: str) -> tuple[int, ...]:
        place = self._places[name]
        return self._arrays[name].shape if place is None else place.shape

    def _size_and_time(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns  # not the time of a rename

    def version(self) -> tuple[int, ...]:
        """Which file it is, and when it was last changed; another content has another one."""
        s = os.fstat(self._descriptor)
        return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns

    def header(self) -> bytes:
        """The file up to its first tensor."""
        return self._bytes(0, self._start)

    def digest(self) -> str:
        """SHA-256 of the whole file."""
        found = hashlib.sha256()
        size = os.fstat(self._descriptor).st_size
        for start in range(0, size, 1 << 20):
            found.update(self._bytes(start, min(1 << 20, size - start)))
        return found.hexdigest()

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor that is as the file has it."""
        return max(
            (p.values[1] + (p.mask[1] if p.mask else 0) for p in self._places.values() if p),
            default=0,
        )

    def _read_into(self, buffer: NDArray[np.uint8], place: Place) -> list[NDArray[np.uint8]]:
        data: list[Any] = []  # arrays: mypy does not know that they are buffers
        for start, length in [place.values] + ([place.mask] if place.mask else []):
            data.append(buffer[:length])  # values first, that they are aligned
            buffer = buffer[length:]
            try:
                found = os.preadv(self._descriptor, [memoryview(data[-1])], start)
            except OSError as error:
                raise InputError(f"{self._path}: {error.strerror or error}") from None
            if found != length:
                raise InputError(f"{self._path}: was cut off after it was opened")
        return data

    def _bytes(self, start: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, start)
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror or error}") from None
        if len(data) != length:
            raise InputError(f"{self._path}: was cut off after it was opened")
        return data

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        stored = self.stored(name)
        if stored is not None:
            self[name] = stored.dense()
        return self._arrays[name]

    def __setitem__(self, name: str, array: NDArray[np.float32]) -> None:
        self._arrays[name], self._places[name] = array, None

    def __delitem__(self, name: str) -> None:
        del self._places[name]
        self._arrays.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # without decoding it

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)
