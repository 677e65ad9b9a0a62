"""`Service`: models behind an address of this machine, until it is told to stop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..detector import Detector
from ..errors import InputError, UsageError
from .app import build_app
from .body import Intake
from .context import ServiceContext
from .limits import CONNECTIONS, ServiceLimits
from .log import tell
from .metrics import ServiceMetrics
from .models import ServedModel
from .work import WorkQueue

_BUSY, _CLOSING = object(), object()
"""States of a connection, see `_impatient`."""


class Service:
    """Serves detectors over HTTP.

    Args:
        detectors: by the names of their models; the first one is the default.
        host: address of this machine to listen on; 127.0.0.1 is reached from this machine alone.
        port: 0 takes a free one.
        token: that requests must carry; None: none.
        limits: of requests.

    Raises:
        InputError: the address cannot be listened on, or an image in a model costs more than the
            limit.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        limits: ServiceLimits | None = None,
    ) -> None:
        limits = limits or ServiceLimits()
        models = {name: ServedModel(name, detector) for name, detector in detectors.items()}
        for model in models.values():
            model.check_cost(limits.gflop)
        streams = max(detector.streams for detector in detectors.values())
        queue, intake = WorkQueue(streams, limits.queue), Intake(limits)
        metrics = ServiceMetrics(queue, intake)
        self.context = ServiceContext(models, limits, token, queue, intake, metrics)
        self._socket = _listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.host = host
        self.address = f"http://{shown}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            build_app(self.context),
            http=_impatient(limits.receive),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=math.ceil(limits.seconds),
        )
        self._server = _GracefulServer(config)

    def run(self) -> None:
        """Serve until `stop`, or SIGTERM or Ctrl-C in the main thread.

        Then new connections are refused, and requests that were accepted are answered. A second
        Ctrl-C does not wait for them.
        """
        context = self.context
        runtimes = {name: model.detector.runtime for name, model in context.models.items()}
        tell("listening", address=self.address, models=runtimes, token=context.token is not None)
        if context.token is None and not _is_loopback(self.host):
            text = "other machines reach this service, and it asks for no token"
            tell("warning", logging.WARNING, text=text)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            context.queue.close()
            tell("stopped")

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UsageError(f"port is {port}, expected 0..65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else error
        raise InputError(
            f"{host}:{port}: {reason}; give another --port, or a --host of this machine"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _GracefulServer(uvicorn.Server):
    """Ends as it should: uvicorn would raise the signal again when everything is done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _impatient(seconds: float) -> type[H11Protocol]:
    """uvicorn's connections, closed when no request comes whole within `seconds`.

    uvicorn has no limit for clients that send their headers byte by byte, or do not take their
    answer. Bodies have their own limit (`body.py`). The parser is h11, which takes no more than 64
    kB of headers; httptools takes all.
    """

    class ImpatientProtocol(H11Protocol):
        _timer: Any = None
        _state: Any = _BUSY  # at the last look: busy, closing, or the exchange that was finished

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # asyncio does so for sockets that name their protocol, which ours does not; else
            # each answer on an open connection waits 40 ms for the client to acknowledge its head.
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            cycle: Any = self.cycle
            state = cycle if cycle is None or cycle.response_complete else _BUSY
            if self.transport.is_closing():
                state = _CLOSING
            if state is not _BUSY and state is self._state:  # for a whole period
                self.transport.abort()
                return
            self._state = state
            self._timer = self.loop.call_later(seconds, self._look)

    return ImpatientProtocol
