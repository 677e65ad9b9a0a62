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


async def disconnected(request: Request) -> None:
    """Wait until the client of a request, whose body was read, has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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

    async def discard(self, request: Request) -> None:
        """Take a body and forget it: a client that is still sending would not hear the answer."""
        with contextlib.suppress(asyncio.TimeoutError, Refusal):
            await asyncio.wait_for(self._skip(request), self.limits.receive)

    async def _skip(self, request: Request) -> None:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            self._check(size)

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
