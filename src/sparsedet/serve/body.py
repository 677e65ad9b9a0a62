"""The body of a request: read within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from .limits import ServiceLimits
from .refusal import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Send


async def disconnected(request: Request) -> None:
    """Wait until the client of a request, whose body was read, has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class BodyEnd:
    """Takes what is left of a request's body before the last byte of its answer.

    A refusal is told before the body is read. A client that is still sending would not hear it: a
    connection that is closed with bytes unread is reset, and the answer with it (RFC 9112, 9.6).

    Args:
        receive, send: of the application of one request.
        seconds: for which a body is taken; then the connection is closed all the same.
    """

    def __init__(self, receive: Receive, send: Send, seconds: float) -> None:
        self._receive, self._send, self._seconds = receive, send, seconds
        self._more = True

    async def receive(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 408:
            self._more = False  # it was waited for
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not (last and self._more):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._skip(), self._seconds)
        await self._send({"type": "http.response.body", "body": b""})

    async def _skip(self) -> None:
        while self._more:
            await self.receive()


class Intake:
    """Reads the bodies of all requests, and knows how many bytes they hold together."""

    def __init__(self, limits: ServiceLimits) -> None:
        self.limits = limits
        self.held = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body; its bytes count until the end of the context.

        Raises:
            Refusal: 413, too large; 408, too slow; 415, compressed; 429, too many bytes of all
                requests.
        """
        coding = request.headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            text = f"the body's Content-Encoding is {coding!r}, expected none: send it plain"
            raise Refusal(415, text)
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and len(declared) < 20:
            self._check(int(declared))
        held: list[int] = []
        try:
            try:
                body = await asyncio.wait_for(self._read(request, held), self.limits.receive)
            except asyncio.TimeoutError:
                seconds = f"{self.limits.receive:g} seconds"
                raise Refusal(408, f"the body did not arrive within {seconds}") from None
            yield body
        finally:
            self.held -= sum(held)

    async def _read(self, request: Request, held: list[int]) -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            self._check(size)
            if self.held + len(chunk) > self.limits.bodies:
                text = f"the requests in work hold {self.held} bytes; try later"
                raise Refusal(429, text, {"Retry-After": "1"})
            self.held += len(chunk)
            held.append(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    def _check(self, size: int) -> None:
        if size > self.limits.body:
            raise Refusal(
                413, f"the body has {size} bytes or more, expected at most {self.limits.body}"
            )
