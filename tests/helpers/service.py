"""A service in a thread of this process, and a client that is nothing but the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sparsedet.detections import Detections
from sparsedet.detector import Detector
from sparsedet.serve import open_service
from sparsedet.serve.server import Service


class PausedDetector(Detector):
    """Detects when `go` is set, and counts who waits for that."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.go, self.begun = threading.Event(), 0

    def __call__(self, image: Any, score_threshold: float | None = None) -> Detections:
        self.begun += 1
        assert self.go.wait(20)
        return super().__call__(image, score_threshold)


@contextlib.contextmanager
def running(detectors: Mapping[str, Detector], **settings: Any) -> Iterator[Service]:
    """Serve until the end of the block."""
    service = open_service(detectors, port=0, **settings)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def answering(words: list[str]) -> Iterator[str]:
    """`sparsedet serve` with its flags, in a process of its own: its address."""
    command = [sys.executable, "-m", "sparsedet", *words, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert '"listening"' in first, first
        try:
            yield json.loads(first)["address"]
        finally:
            process.terminate()
        assert process.wait(20) == 0


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(address: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Reply:
    """POST a body, or GET without one."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    try:
        connection.request("GET" if body is None else "POST", path, body, dict(headers))
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, named, answer.read())
    finally:
        connection.close()


def until(true: Callable[[], bool]) -> None:
    """Wait for something that comes soon."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def refused_with(reply: Reply, status: int, *words: str) -> None:
    """One line of JSON that holds `words`, and no traceback."""
    assert reply.status == status, reply
    error = reply.json["error"]
    assert set(reply.json) == {"error"} and "\n" not in error and "Traceback" not in error
    for word in words:
        assert word in error, error
