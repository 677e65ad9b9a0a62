"""`POST /detect`: an image in, the line of `sparsedet detect --format json` or a picture out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..detections import labels_of
from ..errors import InputError
from ..images.read import decode_image
from ..images.write import encode_image
from ..sinks.text import json_line
from .body import disconnected
from .context import ServiceContext
from .models import ServedModel, find_model
from .upload import uploaded


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """The options of `detect` that stand in an address, under the names of its flags.

    Attributes:
        score: ignore detections with a lower score, 0..1.
        classes: only these; None: all.
        top: at most so many, the best; None: all.
        format: "json" or "image".
        model: name of the model; None: the first one.
    """

    score: float = 0.5
    classes: tuple[str, ...] | None = None
    top: int | None = None
    format: str = "json"
    model: str | None = None


def read_options(query: Iterable[tuple[str, str]]) -> DetectOptions:
    """The options in an address.

    Raises:
        InputError: an option is unknown, comes twice, or has another value.
    """
    known = [field.name for field in fields(DetectOptions)]
    values: dict[str, Any] = {}
    for name, text in query:
        if name not in known:
            raise InputError(f"{name[:40]!r} is no option, expected {', '.join(known)}")
        if name in values:
            raise InputError(f"the option {name} comes twice")
        values[name] = _value(name, text)
    return DetectOptions(**values)


def _value(name: str, text: str) -> Any:
    shown = repr(text[:40])
    if name == "score":
        try:
            score = float(text)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1:
            raise InputError(f"score is {shown}, expected 0..1")
        return score
    if name == "top":
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
            raise InputError(f"top is {shown}, expected a number of at least 1")
        return int(text)
    if name == "classes":
        return tuple(word.strip() for word in text.split(",") if word.strip())
    if name == "format" and text not in ("json", "image"):
        raise InputError(f"format is {shown}, expected json or image")
    return text


async def detect(request: Request) -> Response:
    context: ServiceContext = request.app.state.context
    options = read_options(request.query_params.multi_items())
    model = find_model(context.models, options.model)
    if options.classes is not None:
        labels_of(options.classes, model.detector.config.class_names)  # before the work
    context.queue.check()
    async with context.intake.body(request) as body:
        kind = request.headers.get("content-type", "")
        work = partial(_answer, context, model, options, kind, body)
        gone = partial(disconnected, request)
        return await context.queue.run(work, context.limits.seconds, gone)


def _answer(
    context: ServiceContext, model: ServedModel, options: DetectOptions, kind: str, body: bytes
) -> Response:
    """The work of a request, in a thread."""
    times = [time.perf_counter()]
    name, data = uploaded(kind, body)
    image = decode_image(data, name, max_pixels=context.limits.pixels)
    times.append(time.perf_counter())
    found = model.detector(image, options.score)
    times.append(time.perf_counter())
    if options.classes is not None:
        found = found.only(options.classes)
    if options.top is not None:
        found = found.best(options.top)
    if options.format == "image":
        picture = encode_image(found.draw(image), "detected.jpg")
        answer = Response(picture, media_type="image/jpeg")
    else:
        line = json_line(name, None, None, found)
        answer = Response(line + "\n", media_type="application/json")
    times.append(time.perf_counter())
    steps = [later - earlier for earlier, later in pairwise(times)]
    timing = []
    for step, seconds in zip(("decode", "detect", "write"), steps, strict=True):
        context.metrics.work.labels(model.name, step).observe(seconds)
        timing.append(f"{step};dur={seconds * 1000:.1f}")
    context.metrics.images.labels(model.name).inc()
    answer.headers["Server-Timing"] = ", ".join(timing)
    return answer
