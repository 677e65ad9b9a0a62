"""The model file: configuration, weights and provenance in one safetensors file.

Writes and reads it, folds batch norm, and counts zeros. `docs/format.md` describes the bytes.
Trains, prunes and runs nothing. The reader trusts nothing that it is given: whatever the bytes,
it returns a complete model or raises an InputError, and allocates no more than the layer table
asks for and the file has bytes to fill.

The container is written and read here instead of by the safetensors library, which orders
metadata at random (other bytes for the same model each time) and takes a tensor that is named
twice. The files are ordinary safetensors all the same; a test reads them with that library.

Glossary: tensors are `NAME.weight` and `NAME.bias` of each weighted layer NAME of the layer
table, batch norm folded, float32. Sparsity is the fraction of zeros among all of them.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_atomic
from .config import ModelConfig
from .graph import build_network
from .tensors import Place, StoredTensors

StorageDtype = Literal["float32", "float16"]
Tensors = dict[str, NDArray[np.float32]]

_FORMAT, _VERSION = "sparsedet", "1"
_HEADER_LIMIT = 1 << 20  # bytes; r101-c4 needs about 36 thousand
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
}
_STORED_AS = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """What a model file holds.

    Attributes:
        config: the model.
        tensors: `NAME.weight` and `NAME.bias` of every weighted layer, dense float32. Those of
            a file are decoded when first asked for.
        provenance: JSON-ready values: recipe, data, licences, dates.
        storage_dtype: of the weights in the file; biases are always float32 there.
        ranges: for int8, of the output of each of `byte_layers`; None if there are none.
    """

    config: ModelConfig
    tensors: Mapping[str, NDArray[np.float32]]
    provenance: dict[str, Any]
    storage_dtype: StorageDtype
    ranges: dict[str, float] | None = None


def byte_layers(config: ModelConfig) -> list[str]:
    """Layers whose outputs are bytes in int8: all but the stem and the predictors."""
    layers = build_network(config).layers
    return [layer.name for layer in layers if layer.prunable or not layer.weights]


def check_ranges(config: ModelConfig, ranges: Mapping[str, Any]) -> None:
    """Check that there is exactly one range for each of `byte_layers`.

    Raises:
        InputError: one is missing, left over, or not a finite number from 0 on.
    """
    names = byte_layers(config)
    if different := sorted(set(names) ^ set(ranges)):
        what = "missing" if different[0] in names else "of no layer that needs it"
        raise InputError(f"the int8 range of {different[0]!r} is {what}")
    for name, value in ranges.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < 3e38:  # of float32
            raise InputError(f"the int8 range of {name!r} is {value!r}, no number from 0 on")


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every folded tensor of the model, in the layer table's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in build_network(config).weighted:
        shapes[f"{layer.name}.weight"] = layer.weight_shape
        # index() because a hand-written configuration may say 64.0 channels.
        shapes[f"{layer.name}.bias"] = (operator.index(layer.out_channels),)
    return shapes


def check_tensors(config: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check that `tensors` are exactly the folded tensors of `config`.

    Raises:
        InputError: a tensor is missing, left over, not float32, of the wrong shape, or holds
            NaN or infinity.
    """
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if name not in tensors:
            raise InputError(f"tensor {name!r} is missing")
        if isinstance(tensors, StoredTensors) and tensors.is_stored(name):
            _check_shape(name, tensors.shape(name), shape)  # the rest was checked by the reader
            continue
        _check_shape(name, tensors[name].shape, shape)
        if tensors[name].dtype != np.float32:
            raise InputError(f"tensor {name!r} is {tensors[name].dtype}, expected float32")
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"tensor {name!r} holds NaN or infinity")
    if extra := sorted(set(tensors) - set(shapes)):
        raise InputError(f"tensor {extra[0]!r} belongs to no layer of {config.name!r}")


def _check_shape(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise InputError(f"tensor {name!r} has shape {found}, expected {shape}")


# ------------------------------------------------------------------------ writing


def save_model(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, NDArray[np.float32]],
    provenance: Mapping[str, Any],
    *,
    dtype: StorageDtype = "float16",
    ranges: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model file; the same arguments give the same bytes.

    Args:
        path: the file; it appears complete or not at all.
        config: the model.
        tensors: as in `ModelFile`.
        provenance: JSON-ready values.
        dtype: of the stored weights. float16 rounds them to 11 bits; those under 3e-8 become
            zeros.
        ranges: as in `ModelFile`.
        overwrite: replace an existing file.

    Raises:
        InputError: the file exists or cannot be written, a tensor does not fit the model or
            exceeds float16, or the provenance is not JSON-ready.
    """
    if dtype not in _STORED_AS:
        raise InputError(f"dtype is {dtype!r}, expected 'float16' or 'float32'")
    check_tensors(config, tensors)
    if ranges is not None:
        check_ranges(config, ranges)

    stored: dict[str, NDArray[Any]] = {}
    sparse: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_shapes(config).items():
        kind = "F32" if name.endswith(".bias") else _STORED_AS[dtype]
        with np.errstate(over="ignore"):
            value = tensors[name].astype(_DTYPES[kind], order="C")
        if not np.isfinite(value).all():
            peak = np.abs(tensors[name]).max()
            raise InputError(f"tensor {name!r} holds {peak:.6g}, too much for float16: use float32")
        mask = value != 0  # after rounding, so that mask and values agree
        bits, kept = np.packbits(mask, axis=None, bitorder="little"), value[mask]
        if not name.endswith(".bias") and bits.nbytes + kept.nbytes < value.nbytes:
            sparse[name] = shape
            stored[f"{name}.mask"], stored[f"{name}.values"] = bits, kept
        else:
            stored[name] = value
    metadata = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "config": _to_json("config", config.to_dict()),
        "provenance": _to_json("provenance", dict(provenance)),
        "sparse": _to_json("sparse", sparse),
    }
    if ranges is not None:
        metadata["int8_ranges"] = _to_json("ranges", dict(ranges))
    write_atomic(path, _container(metadata, stored), overwrite=overwrite)


def _to_json(what: str, value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be written as JSON: {error}") from None


def _container(metadata: Mapping[str, str], stored: Mapping[str, NDArray[Any]]) -> bytes:
    """A safetensors file: widest elements first (so that all are aligned), then by name."""
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
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


# ------------------------------------------------------------------------ reading


def load_model(path: str | os.PathLike[str], *, check: bool = True) -> ModelFile:
    """Read a model file.

    Args:
        check: look at all values at once; otherwise at those of a tensor when it is first asked
            for.

    Raises:
        InputError: it cannot be read or is not a complete, valid model file.
    """
    try:
        with open(path, "rb") as file:
            model = _read(path, file, os.fstat(file.fileno()).st_size)
        if check and isinstance(model.tensors, StoredTensors):
            for name in model.tensors:
                model.tensors.stored(name)
        return model
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except InputError:  # names the file
        raise
    except ValueError as error:
        raise InputError(f"{path}: {str(error)[:300]}") from None


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as a header describes it; bytes begin..end of the data after the header."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def _read(path: str | os.PathLike[str], file: BinaryIO, size: int) -> ModelFile:
    """`load_model` on an open file of `size` bytes; raises ValueError without the file's name."""
    metadata, entries = read_header(file, size)
    start = file.tell()
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"a safetensors file, but not a sparsedet model (no format {_FORMAT!r})")
    if metadata.get("format_version") != _VERSION:
        raise ValueError(
            f"format version {metadata.get('format_version')!r}, this program reads {_VERSION!r}"
        )
    for key in ("config", "provenance", "sparse"):
        if key not in metadata:
            raise ValueError(f"the metadata has no {key!r}")
    config, shapes = _parse_config(metadata["config"], len(entries))
    provenance = _parse_json("the provenance", metadata["provenance"])
    sparse = _parse_json("the list of sparse tensors", metadata["sparse"])
    ranges = None
    if "int8_ranges" in metadata:
        ranges = _parse_json("the int8 ranges", metadata["int8_ranges"])
        check_ranges(config, ranges)
    half = any(entry.dtype == "F16" for entry in entries.values())
    weights_kind = "F16" if half else "F32"

    def take(name: str, kind: str, shape: tuple[int, ...] | None) -> tuple[int, int]:
        """Place of the stored tensor of that name; shape None: one axis, any length."""
        entry = entries.pop(name, None)
        if entry is None:
            raise ValueError(f"tensor {name!r} is missing")
        if entry.dtype != kind:
            raise ValueError(f"tensor {name!r} is {entry.dtype!r}, expected {kind!r}")
        length = entry.end - entry.begin
        shape = shape or (length // _DTYPES[kind].itemsize,)
        if entry.shape != list(shape):
            raise ValueError(f"tensor {name!r} has shape {entry.shape}, expected {list(shape)}")
        if length != math.prod(shape) * _DTYPES[kind].itemsize:
            raise ValueError(f"tensor {name!r} has {length} bytes, which does not fit its shape")
        return start + entry.begin, length

    places: dict[str, Place] = {}
    for name, shape in shapes.items():
        kind = "F32" if name.endswith(".bias") else weights_kind
        if name not in sparse:
            places[name] = Place(shape, None, take(name, kind, shape), _DTYPES[kind])
        elif sparse.pop(name) != list(shape):
            raise ValueError(f"tensor {name!r}: expected shape {list(shape)} in the sparse list")
        else:
            mask = take(f"{name}.mask", "U8", (-(-math.prod(shape) // 8),))
            places[name] = Place(shape, mask, take(f"{name}.values", kind, None), _DTYPES[kind])
    if left := sorted(entries) or sorted(sparse):
        raise ValueError(f"tensor {left[0]!r} comes twice or belongs to no layer")
    tensors = StoredTensors(path, file.fileno(), places)
    return ModelFile(config, tensors, provenance, "float16" if half else "float32", ranges)


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and tensors of a safetensors file, which then stands at its first data byte.

    Raises:
        ValueError: not one, damaged, a tensor named twice, or bytes that belong to none.
    """
    if size == 0:
        raise ValueError("the file is empty")
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > _HEADER_LIMIT:
        raise ValueError(_foreign(start))
    file.seek(8)
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"truncated: {size} bytes, its header alone has {length}")
    header = _parse_json("the header", text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise ValueError("the metadata is not a table of strings")
    entries = {name: _parse_entry(name, value) for name, value in header.items()}
    position, available = 0, size - 8 - length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise ValueError(
                f"tensor {name!r} lies at bytes {entry.begin}..{entry.end}, expected a start at "
                f"{position}"
            )
        position = entry.end
    if position > available:
        raise ValueError(f"truncated: has {available} of {position} bytes of tensors")
    if position < available:
        raise ValueError(f"has {available - position} bytes after its last tensor")
    return metadata, entries


def _foreign(start: bytes) -> str:
    """What a file that is no safetensors file may be, by its first nine bytes."""
    kind = "no safetensors file"
    if start.startswith(b"PK"):
        kind = "a PyTorch or ZIP file"
    elif start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5":
        kind = "a pickle (PyTorch or Detectron2) file"
    elif start[:1] == b"\x08" and start[2:3] in b"\x12\x1a\x22\x2a\x32\x3a":
        kind = "an ONNX file"  # protobuf: field 1 (IR version), then another early field
    return f"{kind}, not a sparsedet model"


def _parse_entry(name: str, value: Any) -> Entry:
    if isinstance(value, dict) and set(value) == {"dtype", "shape", "data_offsets"}:
        shape, offsets = value["shape"], value["data_offsets"]
        numbers = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if numbers and all(type(n) is int and n >= 0 for n in shape + offsets):
            return Entry(str(value["dtype"]), shape, *offsets)
    raise ValueError(f"tensor {name!r}: expected dtype, shape and data_offsets, all in range")


def _parse_json(what: str, text: str | bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 without doubled keys, NaN or infinities."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ValueError(f"{key!r} comes twice")
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


def _parse_config(text: str, entries: int) -> tuple[ModelConfig, dict[str, tuple[int, ...]]]:
    """The configuration and its tensors' shapes; `entries` bounds the table's length."""
    try:
        config = ModelConfig.from_dict(_parse_json("it", text))
        if sum(config.blocks) > entries:
            raise ValueError(f"blocks {config.blocks!r} do not fit a file of {entries} tensors")
        return config, tensor_shapes(config)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"its configuration cannot be used: {error}") from None


# ------------------------------------------------------------------- batch norm, sparsity


def fold_batch_norm(tensors: Mapping[str, NDArray[Any]], config: ModelConfig) -> Tensors:
    """Fold `NAME.norm.{weight,bias,running_mean,running_var}` into `NAME.weight` and `NAME.bias`.

    Layers without `NAME.norm.weight` pass through. Exact zeros stay zeros. Computed in float64.

    Raises:
        InputError: a tensor is missing, left over, of the wrong shape or not finite, or a
            variance is negative.
    """
    rest = dict(tensors)

    def take(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        if name not in rest:
            raise InputError(f"tensor {name!r} is missing")
        value = np.asarray(rest.pop(name), np.float64)
        _check_shape(name, value.shape, shape)
        return value

    folded: Tensors = {}
    for layer in build_network(config).weighted:
        channels = (layer.out_channels,)
        weight = take(f"{layer.name}.weight", layer.weight_shape)
        norm = f"{layer.name}.norm"
        if layer.norm and f"{norm}.weight" in rest:
            variance = take(f"{norm}.running_var", channels) + config.batch_norm_eps
            if not (variance > 0).all():
                raise InputError(f"tensor '{norm}.running_var' is negative or not a number")
            scale = take(f"{norm}.weight", channels) / np.sqrt(variance)
            mean, offset = take(f"{norm}.running_mean", channels), take(f"{norm}.bias", channels)
            weight, bias = weight * scale[:, None, None, None], offset - mean * scale
        else:
            bias = take(f"{layer.name}.bias", channels)
        with np.errstate(over="ignore"):  # reported below
            folded[f"{layer.name}.weight"] = weight.astype(np.float32)
            folded[f"{layer.name}.bias"] = bias.astype(np.float32)
    if rest:
        raise InputError(f"tensor {min(rest)!r} belongs to no layer of {config.name!r}")
    check_tensors(config, folded)
    return folded


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One row of a `SparsityReport`.

    Attributes:
        shape: of the weight.
        parameters, zeros: of weight and bias together.
        macs, sparse_macs: of one image (all its regions for res5 and predictors): dense, and by
            nonzero weights alone.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    zeros: int
    macs: int
    sparse_macs: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.parameters


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """Zeros and cost of a model; totals are over all folded weights and biases.

    Attributes:
        layers: one row for each weighted layer, in the layer table's order.
        rois: regions an image for which costs are counted.
    """

    layers: tuple[LayerSparsity, ...]
    rois: int

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def zeros(self) -> int:
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        return self.zeros / self.parameters

    @property
    def gflops(self) -> float:
        """Dense, 2 FLOPs a MAC."""
        return 2e-9 * sum(layer.macs for layer in self.layers)

    @property
    def sparse_gflops(self) -> float:
        """By nonzero weights alone, 2 FLOPs a MAC."""
        return 2e-9 * sum(layer.sparse_macs for layer in self.layers)


def sparsity_report(
    config: ModelConfig, tensors: Mapping[str, NDArray[np.float32]], rois: int | None = None
) -> SparsityReport:
    """Count the zeros of folded tensors, and what they save.

    Args:
        config: the model.
        tensors: as in `ModelFile`.
        rois: regions an image; default: the configuration's `proposals`.

    Raises:
        InputError: the tensors are not those of `config`.
    """
    check_tensors(config, tensors)
    rois = config.proposals if rois is None else rois
    rows = []
    for layer in build_network(config).weighted:
        weights, biases = (
            tensors.nonzero(name) if isinstance(tensors, StoredTensors)
            else int(np.count_nonzero(tensors[name]))
            for name in (f"{layer.name}.weight", f"{layer.name}.bias")
        )  # fmt: skip
        runs = layer.out_size[0] * layer.out_size[1] * (rois if layer.part == "roi" else 1)
        rows.append(
            LayerSparsity(
                layer.name, layer.weight_shape, layer.parameters,
                layer.parameters - weights - biases, layer.weights * runs, weights * runs,
            )
        )  # fmt: skip
    return SparsityReport(tuple(rows), rois)
