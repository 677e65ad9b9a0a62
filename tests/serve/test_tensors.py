"""Tensors of the KServe protocol, as JSON and as binary data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sparsedet.errors import InputError
from sparsedet.serve.tensors import DATATYPES, InferenceCall, read_call, write_answer


def body(entry: dict[str, Any], data: bytes = b"", **more: Any) -> tuple[bytes, str]:
    """A request with one input, and the length of its JSON."""
    text = json.dumps({"inputs": [{"name": "x", **entry}], **more}).encode()
    return text + data, str(len(text))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_tensor_is_the_same_in_both_forms(datatype: str) -> None:
    array = np.arange(6).reshape(1, 2, 3).astype(DATATYPES[datatype])
    entry = {"datatype": datatype, "shape": [1, 2, 3]}
    data = array.tobytes()
    binary = {**entry, "parameters": {"binary_data_size": len(data)}}
    for request in (
        read_call(*body(binary, data)),
        read_call(body({**entry, "data": array.tolist()})[0], None),
        read_call(body({**entry, "data": array.reshape(-1).tolist()})[0], None),
    ):
        got = request.inputs["x"]
        assert got.dtype == array.dtype and (got == array).all() and got.shape == array.shape


@pytest.mark.parametrize("binary", [False, True])
def test_an_answer_reads_as_a_request(binary: bool) -> None:
    array = np.array([[0.1, -1, 3e38]], np.float32)
    call = InferenceCall("7", {}, {"x": binary}, not binary)
    content, length = write_answer("m", "1", call, {"x": array})
    assert (length is not None) == binary
    answer = json.loads(content[:length])
    assert answer["id"] == "7" and answer["model_name"] == "m" and answer["model_version"] == "1"
    request = json.dumps({"inputs": answer["outputs"]}).encode()
    tail = b"" if length is None else content[length:]
    again = read_call(request + tail, str(len(request))).inputs["x"]
    assert (again == array).all() and again.dtype == array.dtype


U8 = {"datatype": "UINT8", "shape": [2]}
BINARY = {**U8, "parameters": {"binary_data_size": 2}}


@pytest.mark.parametrize(
    ("request_body", "words"),
    [
        ((b"[" * 100_000, None), "not JSON"),
        ((b"\xff\xfe", None), "not JSON"),
        ((b"[]", None), "no JSON object"),
        ((b"{}", None), "no inputs"),
        ((b'{"inputs": 3}', None), "no list"),
        ((b'{"inputs": [3]}', None), "no JSON object"),
        ((b'{"inputs": [{"name": 3}]}', None), "needs a name"),
        (body({"datatype": "BYTES", "shape": [1], "data": ["x"]}), "expected BOOL, UINT8"),
        (body({**U8, "shape": [-2], "data": [1, 2]}), "needs a shape"),
        (body({**U8, "shape": [], "data": []}), "needs a shape"),
        (body({**U8, "shape": [True], "data": [1]}), "needs a shape"),
        (body({**U8, "shape": [1 << 31], "data": [1]}), "needs a shape"),
        (body({**U8, "shape": [1 << 30] * 8, "data": [1]}), "expected [1073741824"),
        (body(U8), "neither"),
        (body({**U8, "data": [1]}), "shape [1], expected [2]"),
        (body({**U8, "data": [[1], [2]]}), "expected [2], or flat"),
        (body({**U8, "data": [1, [2]]}), "not numbers"),
        (body({**U8, "data": ["1", "2"]}), "not numbers"),
        (body({**U8, "data": [1.5, 2.0]}), "not numbers"),
        (body({**U8, "data": [1, 10**30]}), "not numbers"),
        (body({**U8, "data": [1, 256]}), "outside of its datatype"),
        (body({**BINARY, "data": [1, 2]}, b"12"), "both"),
        (body(BINARY, b"1"), "1 bytes of binary data, expected 2"),
        (body(BINARY, b"123"), "1 bytes follow"),
        (body({**U8, "parameters": {"binary_data_size": 3}}, b"123"), "expected 2 bytes"),
        (body({**U8, "parameters": {"binary_data_size": "2"}}, b"12"), "expected 2 bytes"),
        (body({**U8, "parameters": 5}), "no JSON object"),
        ((body(BINARY, b"12")[0], "x"), "expected the length of the JSON"),
        ((body(BINARY, b"12")[0], "9999"), "expected the length of the JSON"),
        ((body(BINARY, b"12")[0], "5"), "not JSON"),
        (body({**U8, "data": [1, 2]}, outputs=[{"name": 1}]), "needs a name"),
        (body({**U8, "data": [1, 2]}, parameters={"binary_data_output": 1}), "neither true"),
    ],
)
def test_bad_requests(request_body: tuple[bytes, str | None], words: str) -> None:
    with pytest.raises(InputError) as error:
        read_call(*request_body)
    assert words in str(error.value) and len(str(error.value)) < 300


def test_an_input_that_is_there_twice() -> None:
    entry = {"name": "x", **U8, "data": [1, 2]}
    with pytest.raises(InputError, match="twice"):
        read_call(json.dumps({"inputs": [entry, entry]}).encode(), None)
