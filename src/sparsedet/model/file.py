"""The model file: configuration, weights and provenance in one safetensors file.

`docs/format.md` describes the bytes. The reader does not trust the file: whatever the bytes, it
returns a complete model or raises an InputError, and it allocates no more than the graph
needs and the file can fill.

Tensors are `NAME.weight` and `NAME.bias` of each layer NAME of the graph, float32,
batch norm folded.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, warn_renamed
from ..files import write_atomic
from . import graph_json
from .config import ModelConfig
from .detector_config import Config, DetectorConfig
from .int8_ranges import (
    INT8_BIAS,
    ClippingThreshold,
    check_clipping_thresholds,
    check_int8_biases,
)
from .network import AnyConfig, NetworkConfig, graph_of
from .safetensors import DTYPES, container, parse_json, read_header
from .tail import steps_from_json, steps_to_json
from .tensors import ByteRange, LazyTensors

StorageDtype = Literal["float32", "float16"]
Tensors = dict[str, NDArray[np.float32]]

_FORMAT = "sparsedet"
_STORED_AS = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True, slots=True, eq=False)
class NetworkFile:
    """The content of a model file of a network without detections; fields as of `ModelFile`."""

    config: NetworkConfig
    tensors: Mapping[str, NDArray[np.float32]]
    provenance: dict[str, Any]
    storage_dtype: StorageDtype
    clipping_thresholds: dict[str, ClippingThreshold] | None = None
    int8_biases: dict[str, NDArray[np.float32]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """The content of a model file.

    Attributes:
        config: the model's configuration.
        tensors: `NAME.weight` and `NAME.bias` of every weighted layer, dense float32; tensors of
            a file are decoded on first use.
        provenance: JSON-ready values: recipe, data, licences, dates.
        storage_dtype: type of the weights in the file; its biases are always float32.
        clipping_thresholds: for int8, of the values that bytes hold, see `int8_ranges`; None: the
            model is not calibrated.
        int8_biases: for int8, by layer: its bias where it runs on bytes, which makes up for what
            rounding its weights adds on average; layers that are not there have their own.
    """

    config: Config
    tensors: Mapping[str, NDArray[np.float32]]
    provenance: dict[str, Any]
    storage_dtype: StorageDtype
    clipping_thresholds: dict[str, ClippingThreshold] | None = None
    int8_biases: dict[str, NDArray[np.float32]] | None = None

    @property
    def ranges(self) -> dict[str, ClippingThreshold] | None:
        """Deprecated: `clipping_thresholds`."""
        warn_renamed("ranges", "clipping_thresholds")
        return self.clipping_thresholds


AnyFile: TypeAlias = ModelFile | NetworkFile


def tensor_shapes(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every folded tensor of the model, in the graph's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    graph = graph_of(config)
    for layer in graph.layers:
        shapes[f"{layer.name}.weight"] = layer.weight_shape
        # index(), because a hand-written configuration may say 64.0 channels.
        shapes[f"{layer.name}.bias"] = (operator.index(layer.out_channels),)
    for name, channels in graph.norms.items():
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)
    if isinstance(config, NetworkConfig):
        shapes |= config.constants
    return shapes


def check_tensors(config: AnyConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check that `tensors` are exactly the folded tensors of `config`.

    Raises:
        InputError: a tensor is missing, belongs to no layer, is not float32, has the wrong shape,
            or holds NaN or infinity.
    """
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if name not in tensors:
            raise InputError(f"tensor {name!r} is missing")
        if isinstance(tensors, LazyTensors) and tensors.is_stored(name):
            check_shape(name, tensors.shape(name), shape)  # the reader checked the rest
            continue
        check_shape(name, tensors[name].shape, shape)
        if tensors[name].dtype != np.float32:
            raise InputError(f"tensor {name!r} is {tensors[name].dtype}, expected float32")
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"tensor {name!r} holds NaN or infinity")
    if extra := sorted(set(tensors) - set(shapes)):
        raise InputError(f"tensor {extra[0]!r} belongs to no layer of {config.name!r}")


def check_shape(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise InputError(f"tensor {name!r} has shape {found}, expected {shape}")


# ------------------------------------------------------------------------ writing


def save_model(
    path: str | os.PathLike[str],
    config: AnyConfig,
    tensors: Mapping[str, NDArray[np.float32]],
    provenance: Mapping[str, Any],
    *,
    dtype: StorageDtype = "float16",
    clipping_thresholds: Mapping[str, ClippingThreshold] | None = None,
    int8_biases: Mapping[str, NDArray[np.float32]] | None = None,
    overwrite: bool = False,
    ranges: Mapping[str, ClippingThreshold] | None = None,
) -> None:
    """Write a model file; the same arguments give the same bytes.

    Args:
        path: the file; it is written completely or not at all.
        config: the model's configuration.
        tensors: as in `ModelFile`.
        provenance: JSON-ready values.
        dtype: type of the stored weights. float16 rounds them to 11 bits, and weights below 3e-8
            to zero.
        clipping_thresholds, int8_biases: as in `ModelFile`.
        overwrite: replace an existing file.
        ranges: deprecated name of `clipping_thresholds`.

    Raises:
        InputError: the file exists or cannot be written, a tensor does not fit the model or
            float16, or the provenance is not JSON-ready.
    """
    if ranges is not None:
        warn_renamed("ranges", "clipping_thresholds")
        clipping_thresholds = ranges
    if dtype not in _STORED_AS:
        raise InputError(f"dtype is {dtype!r}, expected 'float16' or 'float32'")
    check_tensors(config, tensors)
    if clipping_thresholds is not None:
        check_clipping_thresholds(config, clipping_thresholds)
    if int8_biases:
        check_int8_biases(config, int8_biases, clipping_thresholds is not None)

    stored: dict[str, NDArray[Any]] = {}
    sparse: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_shapes(config).items():
        exact = not name.endswith(".weight")
        kind = "F32" if exact else _STORED_AS[dtype]
        with np.errstate(over="ignore"):
            value = tensors[name].astype(DTYPES[kind], order="C")
        if not np.isfinite(value).all():
            peak = np.abs(tensors[name]).max()
            raise InputError(
                f"tensor {name!r} holds {peak:.6g}, too large for float16: use float32"
            )
        mask = value != 0  # after rounding, so that mask and values agree
        bits, kept = np.packbits(mask, axis=None, bitorder="little"), value[mask]
        if not exact and bits.nbytes + kept.nbytes < value.nbytes:
            sparse[name] = shape
            stored[f"{name}.mask"], stored[f"{name}.values"] = bits, kept
        else:
            stored[name] = value
    for layer, bias in (int8_biases or {}).items():
        stored[layer + INT8_BIAS] = np.asarray(bias, DTYPES["F32"])
    metadata = {
        "format": _FORMAT,
        "format_version": "1" if isinstance(config, ModelConfig) else "2",
        "config": _to_json("config", config.to_stored()),
        "provenance": _to_json("provenance", dict(provenance)),
        "sparse": _to_json("sparse", sparse),
    }
    if isinstance(config, DetectorConfig | NetworkConfig):
        metadata["graph"] = _to_json("graph", graph_json.to_json(config.graph))
    if isinstance(config, NetworkConfig):
        metadata["tail"] = _to_json("tail", {"steps": steps_to_json(config.steps)})
    if clipping_thresholds is not None:
        metadata["int8_ranges"] = _to_json("clipping thresholds", dict(clipping_thresholds))
    write_atomic(path, container(metadata, stored), overwrite=overwrite)


def _to_json(what: str, value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be written as JSON: {error}") from None


# ------------------------------------------------------------------------ reading


def load_model(path: str | os.PathLike[str], *, check: bool = True) -> ModelFile:
    """Read a model file.

    Args:
        check: check all values now; otherwise each tensor's on its first use.

    Raises:
        InputError: the file cannot be read, or is not a complete and valid model file of a
            detector.
    """
    model = _load(path, check)
    if isinstance(model, NetworkFile):
        raise InputError(
            f"{path}: is a network without detections, expected a detector: load it with "
            "sparsedet.Model.load"
        )
    return model


def load_file(path: str | os.PathLike[str]) -> AnyFile:
    """Read a model file of a detector or of a network without detections.

    Raises:
        InputError: the file cannot be read, or is not a complete and valid model file.
    """
    return _load(path, True)


def load_network(path: str | os.PathLike[str]) -> NetworkFile:
    """Read a model file of a network without detections.

    Raises:
        InputError: the file cannot be read, or is not a complete and valid model file of such a
            network.
    """
    network = _load(path, True)
    if isinstance(network, ModelFile):
        raise InputError(
            f"{path}: is a detector: load it with sparsedet.Detector.load; an ONNX file of one is "
            "converted to its raw outputs with --raw"
        )
    return network


def _load(path: str | os.PathLike[str], check: bool) -> ModelFile | NetworkFile:
    try:
        with open(path, "rb") as file:
            model = _read(path, file, os.fstat(file.fileno()).st_size)
        if check and isinstance(model.tensors, LazyTensors):
            for name in model.tensors:
                model.tensors.stored(name)
        return model
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except InputError:  # names the file already
        raise
    except ValueError as error:
        raise InputError(f"{path}: {str(error)[:300]}") from None


def _read(path: str | os.PathLike[str], file: BinaryIO, size: int) -> ModelFile | NetworkFile:
    """`_load` of an open file of `size` bytes; its ValueErrors do not name the file."""
    metadata, entries = read_header(file, size)
    start = file.tell()
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"a safetensors file, but not a sparsedet model (no format {_FORMAT!r}); a detector of "
            "another project is converted first: sparsedet convert FILE -o MODEL"
        )
    version = metadata.get("format_version")
    if version not in ("1", "2"):
        raise ValueError(f"format version {version!r}, this program reads '1' and '2'")
    for key in ("config", "provenance", "sparse", *(("graph",) if version == "2" else ())):
        if key not in metadata:
            raise ValueError(f"the metadata has no {key!r}")
    graph = metadata["graph"] if version == "2" else None
    tail = metadata.get("tail") if version == "2" else None
    config, shapes = _parse_config(metadata["config"], graph, tail, len(entries))
    provenance = parse_json("the provenance", metadata["provenance"])
    sparse = parse_json("the list of sparse tensors", metadata["sparse"])
    clipping_thresholds = None
    if "int8_ranges" in metadata:
        given = parse_json("the int8 clipping thresholds", metadata["int8_ranges"])
        clipping_thresholds = check_clipping_thresholds(config, given)
    half = any(entry.dtype == "F16" for entry in entries.values())
    weights_kind = "F16" if half else "F32"

    def take(name: str, kind: str, shape: tuple[int, ...] | None) -> tuple[int, int]:
        """(First byte, length) of a stored tensor; shape None: one axis of any length."""
        entry = entries.pop(name, None)
        if entry is None:
            raise ValueError(f"tensor {name!r} is missing")
        if entry.dtype != kind:
            raise ValueError(f"tensor {name!r} is {entry.dtype!r}, expected {kind!r}")
        length = entry.end - entry.begin
        shape = shape or (length // DTYPES[kind].itemsize,)
        if entry.shape != list(shape):
            raise ValueError(f"tensor {name!r} has shape {entry.shape}, expected {list(shape)}")
        if length != math.prod(shape) * DTYPES[kind].itemsize:
            raise ValueError(f"tensor {name!r} has {length} bytes, which does not fit its shape")
        return start + entry.begin, length

    byte_ranges: dict[str, ByteRange] = {}
    for name, shape in shapes.items():
        kind = weights_kind if name.endswith(".weight") else "F32"
        if name not in sparse:
            byte_ranges[name] = ByteRange(shape, None, take(name, kind, shape), DTYPES[kind])
        elif sparse.pop(name) != list(shape):
            raise ValueError(f"tensor {name!r}: expected shape {list(shape)} in the sparse list")
        else:
            mask = take(f"{name}.mask", "U8", (-(-math.prod(shape) // 8),))
            byte_ranges[name] = ByteRange(
                shape, mask, take(f"{name}.values", kind, None), DTYPES[kind]
            )
    biases = {}
    for layer in graph_of(config).layer if clipping_thresholds and version == "2" else ():
        if (name := layer + INT8_BIAS) in entries:
            shape = shapes[f"{layer}.bias"]
            biases[name] = ByteRange(shape, None, take(name, "F32", shape), DTYPES["F32"])
    if left := sorted(entries) or sorted(sparse):
        raise ValueError(f"tensor {left[0]!r} occurs twice or belongs to no layer")
    tensors = LazyTensors(path, file.fileno(), byte_ranges)
    dtype: StorageDtype = "float16" if half else "float32"
    int8_biases = None
    if biases:  # read now: they are small
        extra = LazyTensors(path, file.fileno(), biases)
        int8_biases = {name.removesuffix(INT8_BIAS): np.array(extra[name]) for name in biases}
    int8 = clipping_thresholds, int8_biases
    if isinstance(config, NetworkConfig):
        return NetworkFile(config, tensors, provenance, dtype, *int8)
    return ModelFile(config, tensors, provenance, dtype, *int8)


def _parse_config(
    text: str, graph: str | None, tail: str | None, entries: int
) -> tuple[AnyConfig, dict[str, tuple[int, ...]]]:
    """The configuration and its tensors' shapes.

    Args:
        text: the configuration as JSON.
        graph: the graph as JSON; None: `c4` builds it.
        tail: of a network without detections its steps as JSON; else None.
        entries: tensors of the file; they limit the number of layers.
    """
    try:
        values = parse_json("it", text)
        config: AnyConfig
        if graph is not None:
            parsed = graph_json.from_json(parse_json("the graph", graph))
            if tail is None:
                config = DetectorConfig.from_stored(values, parsed)
            else:
                parts = parse_json("the tail", tail)
                if set(parts) != {"steps"}:
                    raise ValueError("the tail is not {'steps': [...]}")
                steps = steps_from_json(parts["steps"])
                config = NetworkConfig.from_stored(values, parsed, steps)
        else:
            config = ModelConfig.from_dict(values)
            if sum(config.blocks) > entries:
                raise ValueError(f"blocks {config.blocks!r} do not fit a file of {entries} tensors")
        return config, tensor_shapes(config)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"its configuration cannot be used: {error}") from None
