"""The bounded queue before the engine: threads that work, and room for some that wait."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from .refusal import CLIENT_GONE, Refusal

Answer = TypeVar("Answer")

FIRST_GUESS = 0.1
"""Seconds of a request, before one was measured. Source: choice."""


class WorkQueue:
    """Runs work in threads, so that the event loop never waits for the engine.

    One thread more than streams: an image is decoded while another one is detected.

    Args:
        streams: images that the engines detect at once.
        waiting: further requests that may wait; more are refused.
    """

    def __init__(self, streams: int, waiting: int) -> None:
        self.streams, self.threads = streams, streams + 1
        self.room = self.threads + waiting
        self.inside = self.working = 0
        self._seconds = FIRST_GUESS
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="sparsedet serve")

    @property
    def waiting(self) -> int:
        """Requests that no thread works on yet."""
        return max(self.inside - self.working, 0)

    async def run(
        self, work: Callable[[], Answer], seconds: float, gone: Callable[[], Awaitable[object]]
    ) -> Answer:
        """What `work` returns, in a thread.

        Args:
            seconds: to wait for it, at most.
            gone: returns when the client has gone away; work that has not begun is then dropped.

        Raises:
            Refusal: 429, the queue is full; 503, it took too long; or the client has gone.
        """
        future = asyncio.wrap_future(self._submit(work))
        leaving = asyncio.ensure_future(gone())
        try:
            first: set[asyncio.Future[Any]] = {future, leaving}
            done, _ = await asyncio.wait(
                first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if future in done:
                return future.result()
            if leaving in done:
                raise Refusal(CLIENT_GONE, "the client went away")
            raise Refusal(
                503, f"not finished after {seconds:g} seconds; try later", self._retry_after()
            )
        finally:
            future.cancel()
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await leaving

    def check(self) -> None:
        """Refuse while the queue is full: a body need not be read for nothing.

        Raises:
            Refusal: 429.
        """
        if self.inside >= self.room:
            raise self._full()

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, work: Callable[[], Answer]) -> Future[Answer]:
        with self._lock:
            if self.inside >= self.room:
                raise self._full()
            self.inside += 1
        try:
            future = self._pool.submit(self._timed, work)
        except RuntimeError:  # closed
            self._leave()
            raise Refusal(503, "the service is stopping") from None
        future.add_done_callback(lambda _: self._leave())
        return future

    def _timed(self, work: Callable[[], Answer]) -> Answer:
        start = time.perf_counter()
        with self._lock:
            self.working += 1
        try:
            return work()
        finally:
            with self._lock:
                self.working -= 1
                self._seconds += 0.1 * (time.perf_counter() - start - self._seconds)

    def _leave(self) -> None:
        with self._lock:
            self.inside -= 1

    def _full(self) -> Refusal:
        text = f"the queue is full: {self.room} requests wait or run; try later"
        return Refusal(429, text, self._retry_after())

    def _retry_after(self) -> dict[str, str]:
        """When half of the queue will be done, in whole seconds, 1..60."""
        seconds = math.ceil(self.inside / 2 * self._seconds / self.threads)
        return {"Retry-After": str(min(max(seconds, 1), 60))}
