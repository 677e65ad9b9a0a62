"""Tensors in requests and answers of the KServe v2 protocol: as JSON, and as binary data.

Binary data follows the JSON of a body: the header `Inference-Header-Content-Length` says where it
begins, and each tensor's parameter `binary_data_size` how long it is. Source: Open Inference
Protocol, its binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

DATATYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Name in the protocol -> numpy's, in the byte order of binary data."""

MAX_AXES = 8
"""Axes of a tensor. Source: choice; a batch of images has four."""


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """What a request asks for.

    Attributes:
        id: the client's own, given back; None: it has none.
        inputs: name -> tensor.
        outputs: name -> whether it is wanted as binary data; empty: all outputs.
        binary: whether outputs that are not named are wanted as binary data.
    """

    id: str | None
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, bool]
    binary: bool


def read_call(body: bytes, header_length: str | None) -> InferenceCall:
    """The request in a body.

    Args:
        body: JSON, and binary data behind it.
        header_length: the header `Inference-Header-Content-Length`; None: all of it is JSON.

    Raises:
        InputError: the body is no such request.
    """
    size = len(body)
    if header_length is not None:
        word = header_length.strip()
        if not (word.isascii() and word.isdigit() and len(word) < 20 and 0 < int(word) <= size):
            raise InputError(
                f"Inference-Header-Content-Length is {word[:40]!r}, expected the length of the "
                f"JSON in this body of {size} bytes"
            )
        size = int(word)
    call = _object(_parse(body[:size] if size < len(body) else body), "the request")
    inputs: dict[str, NDArray[Any]] = {}
    for entry in _list(call, "inputs", required=True):
        name = _word(entry, "name", "an input")
        if name in inputs:
            raise InputError(f"the input {name!r} is there twice")
        inputs[name], size = _tensor(entry, name, body, size)
    if size != len(body):
        raise InputError(f"{len(body) - size} bytes follow the binary data of the last input")
    binary = _flag(call, "binary_data_output", False)
    outputs = {}
    for entry in _list(call, "outputs"):
        parameters = _parameters(entry, "an output")
        if parameters.get("classification"):
            raise InputError("classification is not done here: the outputs are detections")
        outputs[_word(entry, "name", "an output")] = _flag(entry, "binary_data", binary)
    identity = call.get("id")
    return InferenceCall(None if identity is None else str(identity)[:200], inputs, outputs, binary)


def write_answer(
    model: str, version: str, call: InferenceCall, outputs: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """The answer to a request.

    Args:
        outputs: those that are asked for, in their order.

    Returns:
        The body, and the length of its JSON where binary data follows it.
    """
    entries, binary = [], []
    for name, array in outputs.items():
        datatype = _datatype(array.dtype)
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if call.outputs.get(name, call.binary):
            data = array.astype(DATATYPES[datatype]).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            entry["data"] = array.reshape(-1).tolist()
        entries.append(entry)
    identity = {} if call.id is None else {"id": call.id}
    answer = {"model_name": model, "model_version": version, **identity, "outputs": entries}
    text = json.dumps(answer).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        detail = str(error).splitlines()[0][:120]
        raise InputError(f"the request is not JSON ({detail})") from None


def _tensor(entry: dict[str, Any], name: str, body: bytes, start: int) -> tuple[NDArray[Any], int]:
    """An input, and where the binary data behind its own begins."""
    datatype = _word(entry, "datatype", f"the input {name!r}")
    if datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise InputError(f"the input {name!r} has datatype {datatype[:40]!r}, expected {known}")
    dtype = np.dtype(DATATYPES[datatype])
    shape = entry.get("shape")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= MAX_AXES
        or not all(type(length) is int and 0 <= length < 1 << 31 for length in shape)
    ):
        raise InputError(f"the input {name!r} needs a shape: a list of 1 to {MAX_AXES} lengths")
    count = math.prod(shape)
    size = _parameters(entry, f"the input {name!r}").get("binary_data_size")
    if size is None:
        return _from_json(entry, name, dtype, shape), start
    if "data" in entry:
        raise InputError(f"the input {name!r} has both data and binary_data_size")
    if type(size) is not int or size != count * dtype.itemsize:
        raise InputError(
            f"the input {name!r} has binary_data_size {str(size)[:40]}, expected "
            f"{count * dtype.itemsize} bytes for {datatype} {shape}"
        )
    if start + size > len(body):
        raise InputError(
            f"the input {name!r} has {len(body) - start} bytes of binary data, expected {size}; "
            "Inference-Header-Content-Length says where they begin"
        )
    return np.frombuffer(body, dtype, count, start).reshape(shape), start + size


def _from_json(
    entry: dict[str, Any], name: str, dtype: np.dtype[Any], shape: list[int]
) -> NDArray[Any]:
    data = entry.get("data")
    if not isinstance(data, list):
        raise InputError(f"the input {name!r} has neither a list of data nor binary_data_size")
    try:
        array = np.array(data)
    except (ValueError, OverflowError, RecursionError):  # lists of different lengths
        array = np.array(None)
    kinds = {"b": "b", "u": "ui", "i": "ui", "f": "uif"}[dtype.kind]
    if array.size and array.dtype.kind not in kinds:
        raise InputError(f"the input {name!r} has data that are not numbers of its datatype")
    if array.size != math.prod(shape) or array.shape not in ((array.size,), tuple(shape)):
        raise InputError(
            f"the input {name!r} has data of shape {list(array.shape)}, expected {shape}, or flat"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if dtype.kind in "ui" and not (converted == array).all():
        raise InputError(f"the input {name!r} has values outside of its datatype")
    return converted.reshape(shape)


def _datatype(dtype: np.dtype[Any]) -> str:
    return next(name for name, other in DATATYPES.items() if np.dtype(other) == dtype)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} is no JSON object")
    return value


def _list(value: dict[str, Any], key: str, required: bool = False) -> list[dict[str, Any]]:
    entries = value.get(key, [])
    if not isinstance(entries, list) or (required and not entries):
        raise InputError(f"{key} is no list of tensors" if entries else f"there are no {key}")
    return [_object(entry, f"an entry of {key}") for entry in entries]


def _word(value: dict[str, Any], key: str, what: str) -> str:
    word = value.get(key)
    if not isinstance(word, str):
        raise InputError(f"{what} needs a {key}, a string")
    return word


def _parameters(value: dict[str, Any], what: str) -> dict[str, Any]:
    return _object(value.get("parameters", {}), f"parameters of {what}")


def _flag(value: dict[str, Any], key: str, default: bool) -> bool:
    flag = _parameters(value, "the request").get(key, default)
    if not isinstance(flag, bool):
        raise InputError(f"the parameter {key} is neither true nor false")
    return flag
