"""The KServe v2 protocol (Open Inference Protocol): health, metadata, and inference on tensors.

The input is the network input itself, [B, 3, H, W], as an exported model takes it; or images [B, H,
W, 3] of any size, which are resized here, as Model API sends them to a model server. The output are
rows of seven, their coordinates divided by the network input's size.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import InputError
from ..exporters.form import model_info
from ..images.letterbox import as_blob, prepare
from ..version import VERSION
from .body import disconnected
from .context import ServiceContext
from .limits import MAX_BATCH
from .models import FORM, ServedModel, find_model
from .refusal import Refusal
from .tensors import read_call, write_answer

VERSION_OF_MODELS = "1"
"""A name stands for one file, so that each model has one version."""

OUTPUT = "detections"
HEADER_LENGTH = "Inference-Header-Content-Length"


async def server_metadata(request: Request) -> Response:
    answer = {"name": "sparsedet", "version": VERSION, "extensions": ["binary_tensor_data"]}
    return JSONResponse(answer)


async def live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    return JSONResponse({"ready": True})


async def model_ready(request: Request) -> Response:
    model = _model(request)
    return JSONResponse({"name": model.name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """With `rt_info`, from which OpenVINO's Model API takes labels and the way of resizing."""
    model = _model(request)
    tensors = {
        "inputs": [
            {"name": FORM.input_name, "datatype": "UINT8", "shape": model.input_shape},
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [1, 1, -1, 7]}],
    }
    return JSONResponse(
        {
            "name": model.name,
            "versions": [VERSION_OF_MODELS],
            "platform": f"sparsedet_{model.detector.backend}",
            **tensors,
            "rt_info": {"model_info": model_info(model.detector.config)},
        }
    )


async def infer(request: Request) -> Response:
    context: ServiceContext = request.app.state.context
    model = _model(request)
    context.queue.check()
    async with context.intake.body(request) as body:
        work = partial(_answer, context, model, body, request.headers.get(HEADER_LENGTH))
        gone = partial(disconnected, request)
        return await context.queue.run(work, context.limits.seconds, gone)


def _answer(
    context: ServiceContext, model: ServedModel, body: bytes, header_length: str | None
) -> Response:
    """The work of an inference request, in a thread."""
    start = time.perf_counter()
    call = read_call(body, header_length)
    for name in call.outputs:
        if name != OUTPUT:
            raise InputError(f"there is no output {name[:40]!r}, expected {OUTPUT!r}")
    blob = _blob(context, model, call.inputs)
    parsed = time.perf_counter()
    rows = model.detector.infer(blob, four_d=True)
    context.metrics.work.labels(model.name, "detect").observe(time.perf_counter() - parsed)
    context.metrics.work.labels(model.name, "decode").observe(parsed - start)
    context.metrics.images.labels(model.name).inc(len(blob))
    content, length = write_answer(model.name, VERSION_OF_MODELS, call, {OUTPUT: rows})
    if length is None:
        return Response(content, media_type="application/json")
    headers = {HEADER_LENGTH: str(length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _blob(context: ServiceContext, model: ServedModel, inputs: dict[str, Any]) -> NDArray[Any]:
    """The network inputs of a request; their values are checked by `as_blob`.

    Raises:
        InputError: the input has another name or shape than the model's.
    """
    if list(inputs) != [FORM.input_name]:
        given = ", ".join(name[:40] for name in inputs)
        raise InputError(f"the inputs are {given}, expected {FORM.input_name!r} alone")
    blob = inputs[FORM.input_name]
    shape, expected = blob.shape, model.input_shape
    if len(shape) == 4 and 1 <= shape[0] <= MAX_BATCH:
        if all(length in (-1, got) for length, got in zip(expected, shape, strict=True)):
            if min(shape[2:]) >= 1 and max(shape[2:]) <= model.longest:
                return np.asarray(blob)
        elif shape[3] == 3 and 1 <= shape[1] * shape[2] <= context.limits.pixels:
            images = as_blob(blob)
            return np.stack([prepare(image, model.detector.config)[0] for image in images])
    sizes = ", ".join("?" if length < 0 else str(length) for length in expected[1:])
    most = f" of at most {model.longest} pixels a side" if -1 in expected[1:] else ""
    raise InputError(
        f"the input {FORM.input_name!r} has shape {list(shape)}, expected "
        f"[1..{MAX_BATCH}, {sizes}]{most}, or images [1..{MAX_BATCH}, H, W, 3]"
    )


def _model(request: Request) -> ServedModel:
    context: ServiceContext = request.app.state.context
    version = request.path_params.get("version", VERSION_OF_MODELS)
    model = find_model(context.models, request.path_params["model"])
    if version != VERSION_OF_MODELS:
        raise Refusal(404, f"{model.name} has no version {version[:40]!r}, expected 1")
    return model


def routes() -> list[Route]:
    """All addresses of the protocol, of models with and without their version."""
    found = [
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
    ]
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found += [
            Route(model, model_metadata),
            Route(f"{model}/ready", model_ready),
            Route(f"{model}/infer", infer, methods=["POST"]),
        ]
    return found
