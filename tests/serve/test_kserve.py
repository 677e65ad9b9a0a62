"""The KServe v2 protocol, spoken by Triton's client and by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.service import ask, refused_with
from helpers.small import SMALL, picture

from sparsedet.detector import Detector
from sparsedet.images.letterbox import to_network_input
from sparsedet.serve.server import Service


def blob(count: int = 1) -> Any:
    """[count, 3, H, W] uint8, images that differ."""
    network_input, _ = to_network_input(picture(), SMALL.input_height, SMALL.input_width)
    images = [np.roll(network_input, 7 * index, axis=1) for index in range(count)]
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


@pytest.fixture
def client(service: Service) -> Any:
    http = pytest.importorskip("tritonclient.http")
    triton = http.InferenceServerClient(service.address.removeprefix("http://"))
    yield triton
    triton.close()


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("small")
    assert client.is_model_ready("small", "1") and not client.is_model_ready("small", "2")
    assert not client.is_model_ready("large")
    server = client.get_server_metadata()
    assert server["name"] == "sparsedet" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("small")
    shape = [-1, 3, SMALL.input_height, SMALL.input_width]
    assert model["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": shape}]
    assert model["outputs"] == [{"name": "detections", "datatype": "FP32", "shape": [1, 1, -1, 7]}]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [None, False, True])
@pytest.mark.parametrize("dtype", ["UINT8", "FP32"])
def test_rows_are_those_of_the_detector(
    client: Any, detector: Detector, binary_in: bool, binary_out: bool | None, dtype: str
) -> None:
    import tritonclient.http as http

    images = blob(2).astype(np.uint8 if dtype == "UINT8" else np.float32)
    tensor = http.InferInput("input", list(images.shape), dtype)
    tensor.set_data_from_numpy(images, binary_data=binary_in)
    wanted = None
    if binary_out is not None:
        wanted = [http.InferRequestedOutput("detections", binary_data=binary_out)]
    result = client.infer("small", [tensor], outputs=wanted, request_id="abc")
    rows = result.as_numpy("detections")
    expected = detector.infer(images, four_d=True)
    assert rows.dtype == np.float32 and (rows == expected).all() and rows.shape == expected.shape
    assert (rows[0, 0, :, 2] > 0).sum() > 2
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("abc", "small", "1")


def test_images_of_any_size_are_resized_here(client: Any, detector: Detector) -> None:
    import tritonclient.http as http

    image = picture()
    tensor = http.InferInput("input", [1, *image.shape], "UINT8")
    tensor.set_data_from_numpy(image[None])
    rows = client.infer("small", [tensor]).as_numpy("detections")
    assert image.shape[:2] != (SMALL.input_height, SMALL.input_width)
    assert (rows == detector.infer(blob(), four_d=True)).all()


def test_a_refusal_is_the_clients_exception(client: Any) -> None:
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    tensor = http.InferInput("input", [1, 3, 8, 8], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(InferenceServerException, match=r"has shape .*1, 3, 8, 8.*, expected"):
        client.infer("small", [tensor])


def call(service: Service, array: Any, name: str = "input", **more: Any) -> Any:
    tensor = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
    request = {"inputs": [{**tensor, "data": array.reshape(-1).tolist()}], **more}
    return ask(service.address, "/v2/models/small/infer", json.dumps(request))


def test_json_by_hand(service: Service, detector: Detector) -> None:
    reply = call(service, blob())
    assert reply.status == 200
    (output,) = reply.json["outputs"]
    expected = detector.infer(blob(), four_d=True)
    assert output["shape"] == list(expected.shape) and output["datatype"] == "FP32"
    assert output["data"] == expected.reshape(-1).tolist()


def test_bad_tensors(service: Service) -> None:
    good = blob().astype(np.float32)
    refused_with(call(service, good, "image"), 400, "image", "'input'")
    refused_with(call(service, good, outputs=[{"name": "masks"}]), 400, "'masks'")
    refused_with(call(service, good[0]), 400, "shape [3, 64, 96], expected [1..16, 3, 64, 96]")
    refused_with(call(service, good[:, :2]), 400, "expected [1..16, 3, 64, 96]")
    refused_with(call(service, good[:0]), 400, "expected [1..16, 3, 64, 96]")
    refused_with(call(service, good / 255), 400, "whole numbers 0..255")
    refused_with(call(service, good * np.nan), 400, "whole numbers 0..255")
    refused_with(ask(service.address, "/v2/models/small/infer", b"{"), 400, "not JSON")
    refused_with(ask(service.address, "/v2/models/x/infer", b"{"), 404, "no model 'x'")
    reply = ask(service.address, "/v2/models/small/versions/3/infer", b"{")
    refused_with(reply, 404, "no version '3'")


def test_a_large_json_body_is_refused(service: Service) -> None:
    tensor = (
        b'{"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 3, 64, 96], "data": ['
    )
    body = tensor + b"1," * 10_000_000 + b"1]}]}"
    refused_with(ask(service.address, "/v2/models/small/infer", body), 400, "shape [10000001]")
