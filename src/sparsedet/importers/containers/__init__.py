"""Opens containers of weights: PyTorch's files, plain pickles, .npz, safetensors.

Returns a `Source` of tensors that are not read yet: only names, shapes and sizes are read, and an
entry's size is checked before it is unpacked. Knows no models, except that `sniff` recognises
their formats by tensor names.
"""

from __future__ import annotations

import functools
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...files import what_it_is
from ...model.safetensors import read_header
from ..tensor_source import Source, SourceTensor, printable
from .pickle import STORAGES, NotPlain, Storage, StorageType, flatten, read_pickle, widen
from .state_dicts import choose_weights

MAX_PICKLE = 64 << 20
"""Largest pickle inside a PyTorch file, bytes; it has only names and shapes (r101-c4: 0.1 MB)."""
MAX_HEADER = 16 << 20
"""Largest header of another program's safetensors file, bytes; its metadata may be long."""
MAX_FILE = 8 << 30
"""Largest file, bytes."""

# PyTorch files from before version 1.6 begin with a pickle of this number.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_SHARD = re.compile(r"(.+)-(\d{2,6})-of-(\d{2,6})\.\w+")
"""Name of one file of a model that is stored in several, as Hugging Face's libraries write them."""


def sniff(path: Path, weights: str | None = None) -> str:
    """See `importers.detect_format`."""
    if path.is_dir():
        if any(path.glob("*.distcp")):
            raise InputError(
                f"{path}: is a checkpoint in many files; join them: python -m "
                f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} joined.pth"
            )
        return "checkpoint"
    start = _read_start(path)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<net")):
        return "openvino"
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if path.suffix == ".bin" and path.with_suffix(".xml").exists():
        raise InputError(f"{path}: give the .xml beside it")
    metadata, source = open_source(path, weights)
    if "recipe" in metadata:
        return "checkpoint"
    if metadata.get("format") == "sparsedet":
        return "model"
    names = list(source.left)
    if any(n.startswith("backbone.body.") for n in names) and any(
        n.startswith(("roi_heads.box_head.", "head.classification_head.")) for n in names
    ):
        return "torchvision-detector"
    if any(n.startswith(("backbone.bottom_up.", "head.cls_subnet.")) for n in names):
        return "detectron2"
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


_EXPECTED = (
    "expected a detector of Detectron2 or torchvision, or a Faster R-CNN C4 of TensorPack or "
    "OpenVINO"
)

_OTHERS = {
    r"(backbone\.)?fpn[_/.].*|backbone\.bottom_up\..*|neck\.fpn.*": (
        "a detector with a feature pyramid (FPN), which does not run here"
    ),
    r"backbone\.body\..*|rpn\.head\..*": "a detector of torchvision",
    r"model\.0\.(conv\.|cv).*|model\.model\.0\..*|module_list\.0\..*": "a YOLO model",
    r"backbone\.0\.body\..*|transformer\..*": "a DETR model",
    r"neck\..*|bbox_head\..*|roi_head\.bbox_head\..*": "a model of MMDetection",
    r"conv1_w.*|res2_0_branch2a.*|blobs\..*": "a Caffe2 model",
    r"backbone\.net\..*": "a detector with a vision transformer",
}
"""Names of tensors -> the kind of model that has them, after any prefix."""


def _other_model(names: Iterable[str]) -> str | None:
    """Name of an unsupported kind of model, recognised by tensor names; None for all others."""
    for name in names:
        if ".fpn_" in name:
            return f"{next(iter(_OTHERS.values()))} ({printable(name)})"
        for pattern, kind in _OTHERS.items():
            if re.fullmatch(rf"((model|net|network|detector|student|teacher)\.)*({pattern})", name):
                return f"{kind} ({printable(name)})"
    return None


def _examples(names: list[str]) -> str:
    """Number of tensors and the first names."""
    if not names:
        return "no tensors"
    return f"{len(names)} tensors, as {', '.join(map(printable, sorted(names)[:3]))}"


def open_source(path: Path, weights: str | None = None) -> tuple[dict[str, str], Source]:
    """Open any of the containers.

    Args:
        path: the file.
        weights: which of several models in it, as `choose_weights` takes it.

    Returns:
        Metadata (of safetensors, else empty) and the tensors of one model.

    Raises:
        InputError: the file is unreadable, damaged, hostile or of another container, or holds
            several models.
    """
    start = _read_start(path)
    part = _SHARD.fullmatch(path.name)
    if part and int(part[3]) > 1:
        raise InputError(
            f"{path}: is part {int(part[2])} of {int(part[3])} of a model; load all parts, put "
            "their tensors into one state dict and save that as one file"
        )
    metadata: dict[str, str] = {}
    try:
        if start.startswith(b"PK"):
            tensors = _open_zip(path)
        elif start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5":
            tensors = _open_pickle(path)
        elif start[8:9] == b"{":
            metadata, tensors = _open_safetensors(path)
        else:
            raise InputError(f"{path}: {_not_weights(start)}")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except InputError:
        raise
    except zipfile.BadZipFile:  # it begins like an archive; the list of its entries is at the end
        raise InputError(
            f"{path}: the file is truncated or damaged (its end is missing): copy it again"
        ) from None
    except (NotPlain, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        what = str(error) or type(error).__name__
        raise InputError(f"{path}: {printable(what[:300])}") from None
    return metadata, choose_weights(path, tensors, weights)


def _not_weights(start: bytes) -> str:
    """What a file is that has none of the containers, by its first bytes."""
    if kind := what_it_is(start):
        return kind
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "is JSON, not weights; an index lists the parts of a model, which must be one file"
    return "is not a pickle, PyTorch, .npz, safetensors or .xml file"


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
        raise InputError(
            f"{path}: entry {info.filename!r} cannot be read ({what}): the file is truncated or "
            "damaged"
        ) from None
    if len(data) != info.file_size:
        raise InputError(f"{path}: entry {info.filename!r} is truncated or damaged")
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
    """The arrays of a checkpoint, named by their keys joined with dots."""
    if not isinstance(content, dict):
        raise ValueError(
            f"holds {type(content).__name__}, expected a dict of tensors: save a state dict"
        )
    return flatten(content)


# ---------------------------------------------------------------------- safetensors


def _open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, SourceTensor]]:
    dtypes = {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "?",
    }
    with open(path, "rb") as file:
        metadata, entries = read_header(file, path.stat().st_size, MAX_HEADER)
        start = file.tell()
    tensors = {}
    for name, entry in entries.items():
        if entry.dtype not in dtypes:  # as of 8-bit floats; the network may not need it
            what = f"a tensor of type {printable(entry.dtype)}"
            tensors[name] = SourceTensor(tuple(entry.shape), "V", lambda: np.empty(0), what)
            continue
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
    return metadata, tensors


def _read_range(
    path: Path, begin: int, dtype: np.dtype[Any], shape: tuple[int, ...], bfloat16: bool
) -> NDArray[Any]:
    value = np.fromfile(path, dtype, math.prod(shape), offset=begin).reshape(shape)
    return widen(value) if bfloat16 else value
