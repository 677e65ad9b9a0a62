"""The web application: its addresses, and what all requests share, as ids, errors and metrics."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InputError
from . import kserve, page
from .body import BodyEnd
from .context import ServiceContext
from .detection import detect
from .log import LOG, request_id, tell
from .metrics import CONTENT_TYPE
from .refusal import CLIENT_GONE, Refusal
from .token import is_allowed

OPEN = ("/v2/health/live", "/v2/health/ready")
"""Addresses without a token: whoever starts a service asks them whether it lives."""


def build_app(context: ServiceContext) -> ASGIApp:
    """The application of a service."""
    app = Starlette(
        routes=[
            *kserve.routes(),
            Route("/detect", detect, methods=["POST"]),
            Route("/metrics", _metrics),
            *page.routes(),
        ],
        exception_handlers={
            Refusal: _refused,
            InputError: _refused,
            MemoryError: _refused,
            ClientDisconnect: _refused,
            HTTPException: _refused,
            Exception: _broken,
        },
    )
    app.state.context = context
    return _Gate(app, context)


async def _metrics(request: Request) -> Response:
    context: ServiceContext = request.app.state.context
    return Response(context.metrics.text(), media_type=CONTENT_TYPE)


def _refused(request: Request, error: Exception) -> Response:
    """Whatever was wrong with a request, as one line of JSON."""
    if isinstance(error, Refusal):
        return _error(error.status, str(error), error.headers)
    if isinstance(error, HTTPException):  # Starlette's own: no such address, no such method
        text = f"{request.method[:20]} {request.url.path[:100]}: {error.detail}"
        return _error(error.status_code, text, dict(error.headers or {}))
    if isinstance(error, ClientDisconnect):
        return _error(CLIENT_GONE, "the client went away")
    if isinstance(error, MemoryError):
        return _error(503, "not enough memory for this request")
    return _error(400, str(error))


def _broken(request: Request, error: Exception) -> Response:
    """A fault of this program: the log has its traceback, the client has not."""
    return _error(500, "internal error; the log of the service has it under this X-Request-Id")


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": " ".join(text.split())}, status, headers)


class _Gate:
    """Around all endpoints: the request's id, the token, the log, the metrics."""

    def __init__(self, app: ASGIApp, context: ServiceContext) -> None:
        self.app, self.context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        identity = request_id(headers.get("x-request-id", ""))
        status = 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            await end.send(message)

        end = BodyEnd(receive, send, self.context.limits.receive)

        try:
            authorization = headers.get("authorization", "")
            path = scope["path"]
            is_open = path in OPEN or page.is_of_page(path)
            if is_open or is_allowed(self.context.token, authorization):
                await self.app(scope, end.receive, named)
            else:
                challenge = {"WWW-Authenticate": "Bearer"}
                text = "expected the header Authorization: Bearer TOKEN, with this service's token"
                await _error(401, text, challenge)(scope, end.receive, named)
        except Exception as error:
            fields = {"id": identity, "error": f"{type(error).__name__}: {error}"}
            LOG.error("fault", exc_info=error, extra={"fields": fields})
        finally:
            self._note(scope, identity, status, time.perf_counter() - start)

    def _note(self, scope: Scope, identity: str, status: int, seconds: float) -> None:
        endpoint = getattr(scope.get("endpoint"), "__name__", "other").strip("_")
        self.context.metrics.requests.labels(endpoint, str(status)).inc()
        self.context.metrics.seconds.labels(endpoint).observe(seconds)
        client: Any = scope.get("client") or ("",)
        tell(
            "request",
            logging.WARNING if status >= 500 else logging.INFO,
            id=identity,
            method=scope["method"][:20],
            path=scope["path"][:200],
            status=status,
            milliseconds=round(seconds * 1000, 1),
            client=client[0],
        )
