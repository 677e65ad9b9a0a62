"""Requests that are cancelled, slow, malformed and good, all at once: the good are answered."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from helpers.service import ask, running
from helpers.small import bomb, encoded

from sparsedet.detector import Detector
from sparsedet.serve.server import Service


def post(body: bytes, length: int | None = None, path: bytes = b"/detect") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    return head % (path, len(body) if length is None else length) + body


def malformed(image: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(image)
    for _ in range(20):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return rng.choice(
        (
            post(bytes(damaged)),
            post(image[: len(image) // 2]),
            post(bomb()),
            post(b""),
            post(rng.randbytes(300)),
            post(b"{" + rng.randbytes(20), path=b"/v2/models/small/infer"),
            post(b'{"inputs": [[[[' * 99, path=b"/v2/models/small/infer"),
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            rng.randbytes(200) + b"\r\n\r\n",
        )
    )


def hostile(served: Service, image: bytes, seed: int) -> str:
    """One connection of a stranger; returns its kind."""
    rng = random.Random(seed)
    kind = rng.choice(("cancelled", "slow", "malformed"))
    address = urlsplit(served.address)
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address.hostname, address.port), timeout=5) as connection,
    ):
        if kind == "cancelled":  # in the middle of the body, or of the detection
            whole = post(image)
            connection.sendall(whole[: rng.choice((30, len(whole) // 2, len(whole)))])
            time.sleep(rng.random() * 0.02)
        elif kind == "slow":
            for byte in post(image)[:12]:
                connection.sendall(bytes([byte]))
                time.sleep(0.01)
        else:
            connection.sendall(malformed(image, rng))
            connection.recv(1 << 12)
    return kind


@pytest.mark.slow
def test_a_storm(detector: Detector) -> None:
    image = encoded(".jpg")
    with running({"small": detector}) as served:
        wanted = ask(served.address, "/detect", image)
        assert wanted.status == 200
        stop = time.monotonic() + 6
        answers: Counter[int] = Counter()

        def good(_: int) -> None:
            while time.monotonic() < stop:
                reply = ask(served.address, "/detect", image)
                answers[reply.status] += 1
                if reply.status == 200:
                    assert reply.json["detections"] == wanted.json["detections"]
                else:
                    assert reply.status == 503  # the queue is full: come again

        with ThreadPoolExecutor(12) as pool:
            steady = [pool.submit(good, number) for number in range(2)]
            storm = [pool.submit(hostile, served, image, seed) for seed in range(600)]
            kinds = Counter(one.result() for one in storm if not one.cancelled())
            for one in steady:
                one.result()
        assert len(kinds) == 3 and answers[200] > 20
        # Nobody's place or bytes are left over, and the service answers as before.
        until = time.monotonic() + 20
        while served.context.queue.waiting or served.context.intake.held:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert ask(served.address, "/detect", image).json["detections"] == wanted.json["detections"]
