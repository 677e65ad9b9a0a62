"""Reads pickles that hold arrays and plain containers; refuses all others and runs nothing.

A pickle is a program: it names functions and calls them. Here only the names below can be named,
and what stands behind them are small functions of this module that note a shape and some bytes.
Neither numpy's nor torch's own code is called, and arrays are read when they are asked for.

Python's unpickler in Python is used, not the one in C, which makes room for as many memo entries
as an index in the file says, be it 2^31.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..tensor_source import Stored, printable


class NotPlain(pickle.UnpicklingError):
    """The pickle names something that no array or plain container needs."""


@dataclass(frozen=True, slots=True)
class StorageType:
    """A storage class of torch: the type of its elements; bfloat16 as the bits, in uint16."""

    dtype: np.dtype[Any]
    bfloat16: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage of torch, by its key in the file.

    Attributes:
        numel: elements it is said to have.
        read: all its bytes.
    """

    type: StorageType
    numel: int
    read: Callable[[], bytes]


STORAGES: dict[str, StorageType] = {
    "FloatStorage": StorageType(np.dtype("<f4")),
    "HalfStorage": StorageType(np.dtype("<f2")),
    "DoubleStorage": StorageType(np.dtype("<f8")),
    "BFloat16Storage": StorageType(np.dtype("<u2"), bfloat16=True),
    "LongStorage": StorageType(np.dtype("<i8")),
    "IntStorage": StorageType(np.dtype("<i4")),
    "ShortStorage": StorageType(np.dtype("<i2")),
    "CharStorage": StorageType(np.dtype("i1")),
    "ByteStorage": StorageType(np.dtype("u1")),
    "BoolStorage": StorageType(np.dtype("?")),
}


def read_pickle(
    data: io.BytesIO, path: object, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """One pickle, from where `data` stands: containers, strings, numbers and `Stored` arrays.

    Args:
        path: for messages.
        persistent: gives what a persistent id stands for; without it there may be none.

    Raises:
        InputError: it is damaged, or names anything else; the message says what.
    """
    try:
        return _Unpickler(data, persistent).load()
    except NotPlain as error:
        raise InputError(f"{path}: {error}") from None
    except MemoryError:
        raise InputError(f"{path}: a damaged pickle (asks for too much memory)") from None
    except Exception as error:  # a damaged pickle can fail in any way
        what = str(error) or type(error).__name__
        raise InputError(
            f"{path}: a damaged or truncated pickle ({printable(what[:200])})"
        ) from None


class _Unpickler(pickle._Unpickler):
    """Finds the names of `_allowed` and no others."""

    def __init__(self, data: io.BytesIO, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(data, encoding="latin1")  # of Python 2, as numpy asks for
        self._persistent = persistent
        self._allowed = _allowed()

    def load_bytearray8(self: Any) -> None:
        """As bytes, and no more of them than there are: Python's makes room for what is said."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core.
        found = self._allowed.get((module.replace("numpy._core.", "numpy.core."), name))
        if found is None:
            wanted = printable(f"{module}.{name}")
            raise NotPlain(f"refused: this pickle wants {wanted}; nothing was run")
        return found

    def get_extension(self, code: int) -> Any:
        raise NotPlain(f"refused: this pickle wants the registered extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise NotPlain("refused: this pickle refers to something outside of it")
        return self._persistent(pid)


def _allowed() -> dict[tuple[str, str], Any]:
    """Names and what stands behind them: made anew for each file, which could change them."""

    class Array:
        """numpy's array while it is built: made empty, then given its state."""

        stored: Stored

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, fortran, data = state
            self.stored = _array(data, dtype, shape, bool(fortran))

    class DType:
        """numpy's dtype, of plain numbers."""

        def __init__(self, code: str, *_: Any) -> None:
            self.plain = np.dtype(code)
            if self.plain.kind not in "fiub":
                raise NotPlain(f"refused: this pickle holds an array of type {code!r}")

        def __setstate__(self, state: Any) -> None:
            self.plain = self.plain.newbyteorder("=" if state[1] == "|" else state[1])

    def frombuffer(data: Any, dtype: Any, shape: Any, order: str) -> Array:
        array = Array()
        array.stored = _array(data, dtype, shape, order == "F")
        return array

    def scalar(dtype: Any, data: Any) -> Any:
        return np.frombuffer(_bytes(data), dtype.plain, 1)[0].item()

    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise NotPlain(f"refused: this pickle encodes as {encoding!r}")
        return text.encode("latin1")

    def tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> Array:
        array = Array()
        array.stored = _tensor(storage, offset, tuple(size), tuple(stride))
        return array

    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "Counter"): dict,
        ("_codecs", "encode"): encode,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(),
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): frombuffer,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch", "Size"): tuple,
        **{("torch", name): kind for name, kind in STORAGES.items()},
    }


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):  # Python 2 knew no other bytes
        return data.encode("latin1")
    return bytes(memoryview(data))


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> Stored:
    plain: np.dtype[Any] = dtype.plain
    shape, raw = tuple(shape), _bytes(data)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    if len(raw) != math.prod(shape) * plain.itemsize:
        raise ValueError(f"an array of shape {shape} with {len(raw)} bytes")

    def read() -> NDArray[Any]:
        return np.frombuffer(raw, plain).reshape(shape, order="F" if fortran else "C")

    return Stored(shape, plain.kind, read)


def _tensor(storage: Storage, offset: int, size: Any, stride: Any) -> Stored:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"a tensor of size {size}, stride {stride} and offset {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.numel:
        raise ValueError(f"a tensor of size {size} in a storage of {storage.numel} elements")

    def read() -> NDArray[Any]:
        raw = np.frombuffer(storage.read(), storage.type.dtype)
        steps = [step * raw.itemsize for step in stride]
        value = np.lib.stride_tricks.as_strided(raw[offset:], size, steps, writeable=False)
        return widen(value) if storage.type.bfloat16 else value

    return Stored(size, "f" if storage.type.bfloat16 else storage.type.dtype.kind, read)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, which numpy does not know: it is the upper half of a float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def flatten(content: Mapping[Any, Any]) -> dict[str, Stored]:
    """The arrays in nested dicts and lists, named by their keys joined with dots.

    Raises:
        ValueError: two have the same name, or they are too many or too deep.
    """
    out: dict[str, Stored] = {}
    todo: list[tuple[str, int, Any]] = [(str(key), 1, value) for key, value in content.items()]
    steps = 0
    while todo:
        name, depth, value = todo.pop()
        steps += 1
        # Containers may hold each other, or themselves, over and over.
        if steps > 1_000_000 or depth > 8 or len(name) > 1000:
            raise ValueError("holds too many values, or too deeply nested ones")
        if isinstance(stored := getattr(value, "stored", None), Stored):
            if name in out:
                raise ValueError(f"tensor {name!r} comes twice")
            out[name] = stored
        elif isinstance(value, Mapping):
            todo += [(f"{name}.{key}", depth + 1, item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            todo += [(f"{name}.{index}", depth + 1, item) for index, item in enumerate(value)]
    return out
