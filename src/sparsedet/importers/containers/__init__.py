"""Opens containers of weights: PyTorch's files, plain pickles, .npz, safetensors.

Returns a `Source` of tensors that are not read yet: only names, shapes and sizes are read, and an
entry's size is checked before it is unpacked. Knows no models, except that `sniff` recognises
their formats by tensor names.
"""

from __future__ import annotations

import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...model.safetensors import read_header
from ..tensor_source import Source, SourceTensor, printable
from .pickle import STORAGES, NotPlain, Storage, StorageType, flatten, read_pickle, widen

MAX_PICKLE = 64 << 20
"""Largest pickle inside a PyTorch file, bytes; it has only names and shapes (r101-c4: 0.1 MB)."""
MAX_FILE = 8 << 30
"""Largest file, bytes."""

# PyTorch files from before version 1.6 begin with a pickle of this number.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_WRAPPERS = ("model", "state_dict", "model_state")


def sniff(path: Path) -> str:
    """See `importers.detect_format`."""
    if path.is_dir():
        return "checkpoint"
    start = _read_start(path)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<net")):
        return "openvino"
    if path.suffix == ".bin" and path.with_suffix(".xml").exists():
        raise InputError(f"{path}: give the .xml beside it")
    metadata, source = open_source(path)
    if "recipe" in metadata:
        return "checkpoint"
    if metadata.get("format") == "sparsedet":
        return "model"
    names = list(source.left)
    other = _other_model(names)
    if other is not None:
        raise InputError(f"{path}: is {other}; {_EXPECTED}")
    if "conv0/W" in source:
        return "tensorpack"
    if any(n.startswith(("backbone.res", "proposal_generator.", "roi_heads.")) for n in names):
        return "detectron2"
    if any(n.startswith("layer1.0.") for n in names):
        return "torchvision"
    raise InputError(f"{path}: unknown model format ({_examples(names)}); {_EXPECTED}")


_EXPECTED = "expected a Faster R-CNN C4 of Detectron2, TensorPack or OpenVINO"


def _other_model(names: Iterable[str]) -> str | None:
    """Name of an unsupported kind of model, recognised by tensor names; None for all others."""
    for name in map(printable, names):
        if ".fpn_" in name or name.startswith(("fpn/", "backbone.fpn.", "neck.fpn")):
            return f"a detector with a feature pyramid ({name})"
        if name.startswith(("backbone.body.", "rpn.head.")):
            return f"a detector of torchvision ({name})"
        if name.startswith(("model.0.conv.", "model.0.cv", "model.model.0.", "module_list.0.")):
            return f"a YOLO model ({name})"
        if name.startswith(("backbone.0.body.", "transformer.")):
            return f"a DETR model ({name})"
        if name.startswith(("neck.", "bbox_head.", "roi_head.bbox_head.")):
            return f"a model of MMDetection ({name})"
        if name.startswith(("conv1_w", "res2_0_branch2a", "blobs.")):
            return f"a Caffe2 model ({name})"
    return None


def _examples(names: list[str]) -> str:
    """Number of tensors and the first names."""
    if not names:
        return "no tensors"
    return f"{len(names)} tensors, as {', '.join(map(printable, sorted(names)[:3]))}"


def open_source(path: Path) -> tuple[dict[str, str], Source]:
    """Open any of the containers.

    Returns:
        Metadata (of safetensors, else empty) and the tensors.

    Raises:
        InputError: the file is unreadable, damaged, hostile or of another container.
    """
    start = _read_start(path)
    try:
        if start.startswith(b"PK"):
            return {}, Source(path, _open_zip(path))
        if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5":
            return {}, Source(path, _open_pickle(path))
        if start[8:9] == b"{":
            return _open_safetensors(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except InputError:
        raise
    except (
        NotPlain,
        ValueError,
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        what = str(error) or type(error).__name__
        raise InputError(f"{path}: {printable(what[:300])}") from None
    raise InputError(f"{path}: is not a pickle, PyTorch, .npz, safetensors or .xml file")


def _read_start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            size = file.seek(0, io.SEEK_END)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not start:
        raise InputError(f"{path}: the file is empty")
    if size > MAX_FILE:
        raise InputError(f"{path}: has {size:,} bytes, expected at most {MAX_FILE:,}")
    return start


# ------------------------------------------------------------------------- archives


def _open_zip(path: Path) -> dict[str, SourceTensor]:
    """PyTorch's or numpy's archive."""
    archive = zipfile.ZipFile(path)
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise ValueError(f"entry {info.filename!r} occurs twice")
        entries[info.filename] = info
    if pickles := [name for name in entries if name.endswith("data.pkl")]:
        return _open_torch(path, archive, entries, pickles[0].removesuffix("data.pkl"))
    if entries and all(name.endswith(".npy") for name in entries):
        return {n.removesuffix(".npy"): _open_npy(path, archive, entries[n]) for n in entries}
    raise ValueError("a ZIP file that is neither PyTorch's nor numpy's")


def _entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The unpacked bytes of an entry; its size is checked before."""
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size)
    except Exception as error:  # zlib's, a wrong checksum, an end too early, encryption
        what = str(error) or type(error).__name__
        raise InputError(f"{path}: entry {info.filename!r} cannot be read ({what})") from None
    if len(data) != info.file_size:
        raise InputError(f"{path}: entry {info.filename!r} is truncated")
    return data


def _open_npy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> SourceTensor:
    """numpy's .npy: reads the header now, the values later. Never a pickle."""
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
            begin = file.tell()
    except Exception as error:  # zlib's, and whatever numpy's parser meets
        raise ValueError(
            f"array {info.filename!r} has no readable header ({type(error).__name__})"
        ) from None
    if dtype.hasobject:
        raise ValueError(f"array {info.filename!r} holds Python objects, which only a pickle can")
    if info.file_size != begin + math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"array {info.filename!r} has {info.file_size} bytes, which does not fit its "
            f"shape {shape}"
        )

    def read() -> NDArray[Any]:
        data = np.frombuffer(_entry(path, archive, info), dtype, offset=begin)
        return data.reshape(shape, order="F" if fortran else "C")

    return SourceTensor(shape, dtype.kind, read)


def _open_torch(
    path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], prefix: str
) -> dict[str, SourceTensor]:
    """A file of `torch.save`: a pickle, and an entry for each storage."""
    if any(name.startswith(f"{prefix}code/") for name in entries):
        raise ValueError("a TorchScript program, expected a checkpoint")
    order = entries.get(f"{prefix}byteorder")
    if order is not None and (order.file_size > 16 or _entry(path, archive, order) != b"little"):
        raise ValueError("written on a big-endian machine, which is not supported")
    main = entries[f"{prefix}data.pkl"]
    if main.file_size > MAX_PICKLE:
        raise ValueError(
            f"{main.filename!r} would unpack to {main.file_size:,} bytes, expected "
            f"at most {MAX_PICKLE:,}"
        )

    def storage(kind: StorageType, key: str, numel: int) -> Storage:
        info = entries.get(f"{prefix}data/{key}")
        size = numel * kind.dtype.itemsize
        if info is None:
            raise NotPlain(f"truncated: storage {key!r} is missing")
        if info.file_size != size:
            raise NotPlain(f"storage {key!r} has {info.file_size} bytes, expected {size}")
        return Storage(kind, numel, lambda: _entry(path, archive, info))

    data = io.BytesIO(_entry(path, archive, main))
    return _arrays(read_pickle(data, path, _persistent(storage)))


# -------------------------------------------------------------------------- pickles


def _open_pickle(path: Path) -> dict[str, SourceTensor]:
    """A plain pickle, or PyTorch's format before 1.6, which begins with three small pickles."""
    data = io.BytesIO(path.read_bytes())
    storages: dict[str, tuple[StorageType, int]] = {}
    offsets: dict[str, int] = {}  # filled after all pickles are read

    def storage(kind: StorageType, key: str, numel: int) -> Storage:
        if storages.setdefault(key, (kind, numel)) != (kind, numel):
            raise NotPlain(f"storage {key!r} comes with two types or sizes")

        def read() -> bytes:
            data.seek(offsets[key])
            return data.read(numel * kind.dtype.itemsize)

        return Storage(kind, numel, read)

    content = read_pickle(data, path)
    if content != _LEGACY_MAGIC:
        return _arrays(content)
    read_pickle(data, path)  # version
    system = read_pickle(data, path)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("written on a big-endian machine, which is not supported")
    content = read_pickle(data, path, _persistent(storage))
    for key in read_pickle(data, path):
        if key not in storages:
            raise ValueError(f"storage {key!r} belongs to no tensor")
        kind, numel = storages[key]
        if len(count := data.read(8)) < 8:
            raise ValueError(f"truncated: storage {key!r} is missing")
        if int.from_bytes(count, "little") != numel:
            raise ValueError(f"storage {key!r} has another size than its tensors state")
        offsets[key] = data.tell()
        data.seek(numel * kind.dtype.itemsize, io.SEEK_CUR)
    if set(offsets) != set(storages) or data.tell() > len(data.getbuffer()):
        raise ValueError("truncated: storages are missing")
    return _arrays(content)


def _persistent(storage: Callable[[StorageType, str, int], Storage]) -> Callable[[Any], Storage]:
    """Reads torch's persistent ids: ("storage", type, key, device, elements, ...)."""

    def load(pid: Any) -> Storage:
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            kind, key, numel = pid[1], pid[2], pid[4]
            if kind in STORAGES.values() and type(key) is str and type(numel) is int:
                return storage(kind, key, numel)
        raise NotPlain("refused: this pickle refers to something that is not a torch storage")

    return load


def _arrays(content: Any) -> dict[str, SourceTensor]:
    """The arrays of a checkpoint: the model's by name, others by their keys joined with dots."""
    if not isinstance(content, dict):
        raise ValueError(f"holds {type(content).__name__}, expected a dict of tensors")
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            rest = {key: value for key, value in content.items() if key != wrapper}
            inner, outer = flatten(content[wrapper]), flatten(rest)
            if twice := sorted(set(inner) & set(outer)):
                raise ValueError(f"tensor {twice[0]!r} occurs twice")
            return outer | _bare(inner)
    return _bare(flatten(content))


def _bare(tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Names without the prefix "module." of DistributedDataParallel."""
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


# ---------------------------------------------------------------------- safetensors


def _open_safetensors(path: Path) -> tuple[dict[str, str], Source]:
    dtypes = {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }
    with open(path, "rb") as file:
        metadata, entries = read_header(file, path.stat().st_size)
        start = file.tell()
    tensors = {}
    for name, entry in entries.items():
        if entry.dtype not in dtypes:
            raise ValueError(f"tensor {name!r} has type {entry.dtype!r}, which is not supported")
        dtype, shape, half = (
            np.dtype(dtypes[entry.dtype]),
            tuple(entry.shape),
            entry.dtype == "BF16",
        )
        if entry.end - entry.begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"tensor {name!r} has {entry.end - entry.begin} bytes, which does not fit its shape"
            )
        read = functools.partial(_read_range, path, start + entry.begin, dtype, shape, half)
        tensors[name] = SourceTensor(shape, "f" if half else dtype.kind, read)
    return metadata, Source(path, tensors)


def _read_range(
    path: Path, begin: int, dtype: np.dtype[Any], shape: tuple[int, ...], bfloat16: bool
) -> NDArray[Any]:
    value = np.fromfile(path, dtype, math.prod(shape), offset=begin).reshape(shape)
    return widen(value) if bfloat16 else value
