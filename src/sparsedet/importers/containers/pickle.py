"""Reads pickles of arrays and plain containers; refuses all others and runs no code of theirs.

A pickle is a program: it names functions and calls them. Here it can name only those of `_allowed`,
and these are small functions of this module that record a shape and some bytes. Code of numpy and
torch is not called, and the values of an array are read only on request. What torch's own reader of
weights accepts is read; other things that trainers store beside weights, as paths, dates and
settings (`_INERT`), become stand-ins that keep nothing and do nothing.

Uses Python's unpickler written in Python: the one in C allocates as many memo entries as an index
in the file states, up to 2^31.
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
from ..tensor_source import SourceTensor, printable


class NotPlain(pickle.UnpicklingError):
    """The pickle names something that arrays and plain containers do not need."""


@dataclass(frozen=True, slots=True)
class StorageType:
    """A storage class of torch: type of its elements; bfloat16 is read as uint16 bits."""

    dtype: np.dtype[Any]
    bfloat16: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage of torch.

    Attributes:
        type: type of the elements.
        numel: declared number of elements.
        read: reads all bytes.
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
    "ComplexFloatStorage": StorageType(np.dtype("<c8")),
    "ComplexDoubleStorage": StorageType(np.dtype("<c16")),
    "QInt8Storage": StorageType(np.dtype("i1")),
    "QUInt8Storage": StorageType(np.dtype("u1")),
    "QInt32Storage": StorageType(np.dtype("<i4")),
    "UntypedStorage": StorageType(np.dtype("u1")),
}


def read_pickle(
    data: io.BytesIO, path: object, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read one pickle: containers, strings, numbers and `SourceTensor` arrays.

    Args:
        data: read from its current position on.
        path: file name for messages.
        persistent: resolves persistent ids; default: they are refused.

    Raises:
        InputError: the pickle is damaged, or names anything else; the message says what.
    """
    try:
        return _Unpickler(data, persistent).load()
    except NotPlain as error:
        raise InputError(f"{path}: {error}") from None
    except MemoryError:
        raise InputError(f"{path}: a damaged pickle (asks for too much memory)") from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: a damaged or truncated pickle ({printable(reason[:200])})"
        ) from None


class _Unpickler(pickle._Unpickler):
    """Resolves the names of `_allowed` and no others."""

    def __init__(self, data: io.BytesIO, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(data, encoding="latin1")  # numpy needs it for pickles of Python 2
        self._persistent = persistent
        self._allowed = _allowed()

    def load_bytearray8(self: Any) -> None:
        """As bytes; Python's own method allocates whatever length the file states."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core.
        module = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        resolved = self._allowed.get((module.removesuffix("._local"), name))
        if resolved is None:
            named = printable(f"{module}.{name}")
            raise NotPlain(
                f"refused: this pickle wants {named}; nothing was run. Save the weights alone: "
                "torch.save(model.state_dict(), FILE)"
            )
        return resolved

    def get_extension(self, code: int) -> Any:
        raise NotPlain(f"refused: this pickle wants the registered extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise NotPlain("refused: this pickle refers to something outside of it")
        return self._persistent(pid)


_INERT: dict[str, str] = {
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict float frozenset int list long object set str"
    " tuple",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
    "typing": "Any",
    "uuid": "UUID",
    # Settings of a run, which Lightning and Detectron2's forks store as objects.
    "detectron2.config.config": "CfgNode",
    "fvcore.common.config": "CfgNode",
    "yacs.config": "CfgNode",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode FloatNode IntegerNode StringNode",
    "torch": "device Tensor bfloat16 bool complex64 complex128 float16 float32 float64"
    " float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz int8 int16 int32 int64 uint8 uint16"
    " uint32 uint64 per_channel_affine per_channel_symmetric per_tensor_affine per_tensor_symmetric"
    " qint8 qint32 quint8",
    "torch.nn.parameter": "Parameter",
    "torch.serialization": "_get_layout",
    "torch.storage": "TypedStorage",
}
"""Module -> names that become stand-ins: nothing that the weights need."""

_UNUSABLE: dict[str, str] = {
    "_rebuild_sparse_tensor": "a sparse tensor (to_dense() before saving makes it plain)",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values (of torch's device meta)",
    "_rebuild_wrapper_subclass": "a tensor of another library",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "_rebuild_tensor_v3": "a tensor of a type that numpy has not",
}
"""Function of torch._utils -> what it makes, which is no tensor of plain floats."""


def _allowed() -> dict[tuple[str, str], Any]:
    """Allowed names -> our substitutes, made anew for each file: a pickle can modify them."""

    class Inert:
        """Stands for an object that the weights do not need: keeps nothing, does nothing."""

        def __new__(cls, *_: Any, **__: Any) -> Any:
            return object.__new__(cls)

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def nothing(self, *_: Any) -> None:
            pass

        __setstate__ = __setitem__ = append = extend = add = nothing

    class Table(dict[Any, Any]):
        """A dict of another kind, as defaultdict: its items without what makes it special."""

        def __init__(self, *_: Any) -> None:
            super().__init__()

        def __setstate__(self, _: Any) -> None:
            pass

    class Items(list[Any]):
        """A list of another kind, as deque."""

        def __init__(self, *_: Any) -> None:
            super().__init__()

    def unusable(what: str) -> Any:
        def make(*_: Any) -> Array:
            array = Array()
            array.source_tensor = SourceTensor((), "V", lambda: np.empty(0), what)
            return array

        return make

    class Array:
        """A numpy array as it is unpickled: created empty, then given its state."""

        source_tensor: SourceTensor

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, fortran, data = state
            self.source_tensor = _array(data, dtype, shape, bool(fortran))

    class DType:
        """A numpy dtype of plain numbers."""

        def __init__(self, code: str, *_: Any) -> None:
            self.plain = np.dtype(code)
            if self.plain.kind not in "fiub":
                raise NotPlain(f"refused: this pickle holds an array of type {code!r}")

        def __setstate__(self, state: Any) -> None:
            self.plain = self.plain.newbyteorder("=" if state[1] == "|" else state[1])

    def frombuffer(data: Any, dtype: Any, shape: Any, order: str) -> Array:
        array = Array()
        array.source_tensor = _array(data, dtype, shape, order == "F")
        return array

    def scalar(dtype: Any, data: Any) -> Any:
        return np.frombuffer(_bytes(data), dtype.plain, 1)[0].item()

    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise NotPlain(f"refused: this pickle encodes as {encoding!r}")
        return text.encode("latin1")

    def tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> Array:
        array = Array()
        array.source_tensor = _tensor(storage, offset, tuple(size), tuple(stride))
        return array

    def of_type(function: Any, _: Any, arguments: Any, __: Any) -> Any:
        """A tensor of a subclass, with attributes: the plain tensor."""
        return function(*arguments)

    return {
        **{(module, n): Inert for module, names in _INERT.items() for n in names.split()},
        **{("torch._utils", name): unusable(what) for name, what in _UNUSABLE.items()},
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "Counter"): dict,
        ("collections", "defaultdict"): Table,
        ("collections", "deque"): Items,
        ("_codecs", "encode"): encode,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(),
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): frombuffer,
        ("torch._tensor", "_rebuild_from_type_v2"): of_type,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
        ("torch", "Size"): tuple,
        ("torch.storage", "UntypedStorage"): STORAGES["ByteStorage"],
        **{("torch", name): kind for name, kind in STORAGES.items()},
        **{("torch.cuda", name): kind for name, kind in STORAGES.items()},
    }


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):  # bytes of Python 2
        return data.encode("latin1")
    return bytes(memoryview(data))


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> SourceTensor:
    plain: np.dtype[Any] = dtype.plain
    shape, raw = tuple(shape), _bytes(data)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    if len(raw) != math.prod(shape) * plain.itemsize:
        raise ValueError(f"an array of shape {shape} with {len(raw)} bytes")

    def read() -> NDArray[Any]:
        return np.frombuffer(raw, plain).reshape(shape, order="F" if fortran else "C")

    return SourceTensor(shape, plain.kind, read)


def _tensor(storage: Storage, offset: int, size: Any, stride: Any) -> SourceTensor:
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

    return SourceTensor(size, "f" if storage.type.bfloat16 else storage.type.dtype.kind, read)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 of bfloat16 bits, which are the upper half of a float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def flatten(content: Mapping[Any, Any]) -> dict[str, SourceTensor]:
    """The arrays in nested dicts and lists, named by their keys joined with dots.

    Raises:
        ValueError: two arrays have the same name, or there are too many values or levels.
    """
    out: dict[str, SourceTensor] = {}
    todo: list[tuple[str, int, Any]] = [(str(key), 1, value) for key, value in content.items()]
    steps = 0
    while todo:
        name, depth, value = todo.pop()
        steps += 1
        # Containers may hold each other, or themselves, over and over.
        if steps > 1_000_000 or depth > 8 or len(name) > 1000:
            raise ValueError("holds too many values, or too deeply nested ones")
        if isinstance(tensor := getattr(value, "source_tensor", None), SourceTensor):
            if name in out:
                raise ValueError(f"tensor {name!r} occurs twice")
            out[name] = tensor
        elif isinstance(value, Mapping):
            todo += [(f"{name}.{key}", depth + 1, item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            todo += [(f"{name}.{index}", depth + 1, item) for index, item in enumerate(value)]
    return out
