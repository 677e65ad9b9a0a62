"""What a service does under load, with bad clients, and when it stops."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers.commands import MAIN
from helpers.service import PausedDetector, ask, refused_with, running, until
from helpers.small import encoded, picture

from sparsedet.cli import build_parser, main
from sparsedet.detector import Detector, embedded_model
from sparsedet.errors import InputError, UsageError
from sparsedet.serve import ServiceLimits, open_service
from sparsedet.serve.log import JsonLines, request_id
from sparsedet.serve.models import model_files
from sparsedet.serve.server import Service
from sparsedet.serve.token import read_token


@pytest.fixture
def paused(small_model: Path) -> Iterator[PausedDetector]:
    detector = PausedDetector.load(small_model, threads=1)
    assert isinstance(detector, PausedDetector)
    yield detector
    detector.go.set()


def test_a_full_queue_refuses_and_the_rest_is_answered(paused: PausedDetector) -> None:
    image = encoded(".jpg")
    limits = ServiceLimits(queue=2)
    with running({"small": paused}, limits=limits) as served, ThreadPoolExecutor(10) as pool:
        queue = served.context.queue
        accepted = [pool.submit(ask, served.address, "/detect", image) for _ in range(queue.room)]
        until(lambda: queue.inside == queue.room and paused.begun == queue.threads)
        for reply in pool.map(lambda _: ask(served.address, "/detect", image), range(6)):
            refused_with(reply, 429, "queue is full")
            assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert ask(served.address, "/v2/health/live").status == 200  # while all threads wait
        paused.go.set()
        assert [one.result().status for one in accepted] == [200] * queue.room
        until(lambda: queue.inside == 0)
        assert ask(served.address, "/detect", image).status == 200


def test_too_slow_is_503(paused: PausedDetector) -> None:
    with running({"small": paused}, limits=ServiceLimits(seconds=0.2)) as served:
        reply = ask(served.address, "/detect", encoded(".jpg"))
        refused_with(reply, 503, "not finished after 0.2 seconds")
        paused.go.set()


def test_a_client_that_leaves_gives_its_place_away(paused: PausedDetector) -> None:
    image = encoded(".jpg")
    with running({"small": paused}) as served, ThreadPoolExecutor(4) as pool:
        queue = served.context.queue
        busy = [pool.submit(ask, served.address, "/detect", image) for _ in range(queue.threads)]
        until(lambda: paused.begun == queue.threads)
        with contextlib.closing(connect(served)) as leaving:
            leaving.request("POST", "/detect", image)
            until(lambda: queue.waiting == 1)
        until(lambda: queue.waiting == 0)
        paused.go.set()
        assert [one.result().status for one in busy] == [200] * len(busy)
        assert paused.begun == queue.threads


def connect(served: Service) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(served.address).netloc, timeout=20)


def test_slow_clients(detector: Detector) -> None:
    with running({"small": detector}, limits=ServiceLimits(receive=0.3)) as served:
        host, port = urlsplit(served.address).hostname, urlsplit(served.address).port
        with socket.create_connection((host, port), timeout=20) as stalled:
            stalled.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n12")
            answer = b""
            while b"}" not in answer:
                answer += stalled.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.3" in answer
        with socket.create_connection((host, port), timeout=20) as trickling:
            trickling.sendall(b"GET /v2 HT")
            with contextlib.suppress(ConnectionError):
                assert trickling.recv(100) == b""  # closed
        assert served.context.intake.held == 0
        assert ask(served.address, "/v2").status == 200


def test_endless_headers_are_refused(service: Service) -> None:
    host, port = urlsplit(service.address).hostname, urlsplit(service.address).port
    with socket.create_connection((host, port), timeout=20) as endless:
        endless.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                endless.sendall(b"x" * 4096)
            assert endless.recv(100).startswith(b"HTTP/1.1 400")
    assert ask(service.address, "/v2").status == 200


def test_stopping_answers_what_was_accepted_and_refuses_the_rest(paused: PausedDetector) -> None:
    image = encoded(".jpg")
    with ThreadPoolExecutor(8) as pool, running({"small": paused}) as served:
        queue = served.context.queue
        accepted = [pool.submit(ask, served.address, "/detect", image) for _ in range(4)]
        until(lambda: queue.inside == 4 and paused.begun == queue.threads)
        served.stop()
        until(lambda: not is_open(served))
        paused.go.set()
        assert [one.result().status for one in accepted] == [200] * 4


def is_open(served: Service) -> bool:
    try:
        ask(served.address, "/v2")
    except OSError:
        return False
    return True


def test_a_token(detector: Detector) -> None:
    with running({"small": detector}, token="s3cret") as served:
        for given in (None, "s3cret", "Bearer", "Bearer s3cre", "Bearer \xe9", "Basic s3cret"):
            headers = {} if given is None else {"Authorization": given}
            for path in ("/v2", "/metrics", "/detect", "/nothing"):
                reply = ask(served.address, path, None, headers)
                refused_with(reply, 401, "Authorization: Bearer")
                assert reply.headers["www-authenticate"] == "Bearer"
        good = {"Authorization": "Bearer s3cret"}
        assert ask(served.address, "/detect", encoded(".jpg"), good).status == 200
        assert ask(served.address, "/v2/health/ready").status == 200


def test_where_a_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token.txt"
    file.write_text("abc.DEF\n")
    assert read_token(file, {"SPARSEDET_TOKEN": "other"}) == "abc.DEF"
    assert read_token(None, {"SPARSEDET_TOKEN": "other"}) == "other"
    assert read_token(None, {}) is None
    for text in ("", "two words", "a" * 2000, "\xe9"):
        file.write_text(text)
        with pytest.raises(InputError, match="expected a token") as error:
            read_token(file, {})
        assert not text or text not in str(error.value)
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "none", {})


def test_addresses_and_methods(service: Service) -> None:
    refused_with(ask(service.address, "/nothing"), 404, "GET /nothing")
    refused_with(ask(service.address, "/detect"), 405, "GET /detect")
    refused_with(ask(service.address, "/v2", b"x"), 405)
    refused_with(ask(service.address, "/v2/models/..%2f..%2fetc/ready"), 404)


def test_a_fault_of_the_program_stays_in_the_log(
    paused: PausedDetector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(PausedDetector, "__call__", broken)
    with caplog.at_level(logging.INFO, "sparsedet.serve"), running({"small": paused}) as served:
        reply = ask(served.address, "/detect", encoded(".jpg"), {"X-Request-Id": "my-1"})
        refused_with(reply, 500, "internal error")
        assert b"secret" not in reply.body and reply.headers["x-request-id"] == "my-1"
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    (fault,) = [line for line in lines if line["event"] == "fault"]
    assert fault["id"] == "my-1" and "RuntimeError: secret" in fault["traceback"]


def test_the_log_has_a_line_for_each_request(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sparsedet.serve"):
        first = ask(service.address, "/v2", None, {"X-Request-Id": "bad id\t"})
        until(lambda: len(caplog.records) == 1)
    line = json.loads(JsonLines().format(caplog.records[0]))
    assert line["event"] == "request" and line["status"] == 200 and line["path"] == "/v2"
    assert line["id"] == first.headers["x-request-id"] != "bad id"
    assert request_id("a" * 65) != request_id("a" * 65) and request_id("a-1") == "a-1"


def test_answers_on_an_open_connection_do_not_wait(service: Service) -> None:
    """For an acknowledgement, which clients send after 40 ms."""
    with contextlib.closing(connect(service)) as connection:
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            connection.request("GET", "/v2")
            connection.getresponse().read()
            seconds.append(time.perf_counter() - start)
    assert min(seconds[1:]) < 0.03


def test_metrics(detector: Detector) -> None:
    from prometheus_client.parser import text_string_to_metric_families as parse

    with running({"small": detector}) as served:
        for _ in range(3):
            ask(served.address, "/detect", encoded(".jpg"))
        ask(served.address, "/detect?score=7", b"x")
        ask(served.address, "/some/thing")
        text = ask(served.address, "/metrics").body.decode()
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parse(text)
        for sample in family.samples
    }
    assert values["sparsedet_requests_total", "200", "detect"] == 3
    assert values["sparsedet_requests_total", "400", "detect"] == 1
    assert values["sparsedet_requests_total", "404", "other"] == 1
    assert values["sparsedet_images_total", "small"] == 3
    assert values["sparsedet_request_seconds_count", "detect"] == 4
    assert values[("sparsedet_body_bytes",)] == values[("sparsedet_working",)] == 0


def test_many_requests_at_once_have_the_same_rows(detector: Detector, small_model: Path) -> None:
    two = Detector.load(small_model, threads=2, streams=2)
    expected = detector(picture(), 0.5).to_dict()["detections"]
    limits = ServiceLimits(queue=100)
    with running({"small": two}, limits=limits) as served, ThreadPoolExecutor(8) as pool:
        image = encoded(".png")
        for reply in pool.map(lambda _: ask(served.address, "/detect", image), range(40)):
            assert reply.json["detections"] == expected


def test_names_of_models() -> None:
    assert model_files([]) == {"picodet-s": embedded_model("picodet-s")}  # whatever lies here
    assert model_files(["a/street.onnx", "b=c=d"]) == {
        "street": Path("a/street.onnx"),
        "b": Path("c=d"),
    }
    for given in (["a b.onnx"], ["../x=y/..", "x/y"], ["a=1", "a=2"], ["=x"]):
        with pytest.raises(UsageError, match="--model NAME=FILE"):
            model_files(given)


def test_an_address_that_is_taken(service: Service, detector: Detector) -> None:
    port = urlsplit(service.address).port
    with pytest.raises(InputError, match="in use; give another --port"):
        open_service({"small": detector}, port=port)
    with pytest.raises(UsageError, match=r"0\.\.65535"):
        open_service({"small": detector}, port=70000)


def test_a_model_that_costs_more_than_the_limit_is_not_served(detector: Detector) -> None:
    assert detector.gflop > 0.01
    with pytest.raises(InputError, match=r"model small needs .* GFLOP an image.*--max-gflop"):
        open_service({"small": detector}, port=0, limits=ServiceLimits(gflop=0.01))


def test_the_flags_have_the_defaults_of_the_limits() -> None:
    given = build_parser("serve").parse_args(["serve"])
    limits = ServiceLimits()
    assert (given.queue, given.max_pixels, given.timeout, given.max_gflop) == (
        limits.queue,
        limits.pixels,
        limits.seconds,
        limits.gflop,
    )
    assert given.max_body * 1e6 == limits.body and limits.bodies == 8 * limits.body


def test_missing_packages_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sparsedet.serve.PACKAGES", ("no_such_package",))
    assert main(["serve", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'sparsedet[serve]'" in error and error.count("\n") == 1
    assert main(["serve", "--queue", "0"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_stop(small_model: Path, number: int) -> None:
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--threads", "1"]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, "--model", f"mine={small_model}"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SPARSEDET_TOKEN": "t"},
    )
    assert process.stderr is not None
    try:
        first: Any = json.loads(process.stderr.readline())
        assert first["event"] == "listening" and list(first["models"]) == ["mine"]
        assert first["address"].startswith("http://127.0.0.1:")
        headers = {"Authorization": "Bearer t"}
        reply = ask(first["address"], "/v2/models/mine", None, headers)
        assert reply.json["name"] == "mine" and time.monotonic() - start < 10
        process.send_signal(number)
        lines = [json.loads(line) for line in process.stderr]
        assert [line["event"] for line in lines] == ["request", "stopped"]
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_no_thread_is_left_behind(detector: Detector) -> None:
    before = threading.active_count()
    for _ in range(3):
        with running({"small": detector}) as served:
            ask(served.address, "/detect", encoded(".jpg"))
    assert threading.active_count() <= before


@pytest.mark.parametrize("last", [{}, {"Connection": "close"}], ids=["kept", "closed"])
def test_a_client_hears_a_refusal_while_it_still_sends(
    detector: Detector, last: dict[str, str]
) -> None:
    """More than all buffers between them hold: the connection may not end before it is sent."""
    body = bytes(24_000_000)
    limits = ServiceLimits(body=30_000_000, bodies=1000)
    with running({"small": detector}, limits=limits, token="t") as served:
        known = {"Authorization": "Bearer t", **last}
        refused_with(ask(served.address, "/detect", body, last), 401, "Bearer")
        refused_with(ask(served.address, "/nowhere", body, known), 404)
        packed = {"Content-Encoding": "gzip", **known}
        refused_with(ask(served.address, "/detect", body, packed), 415, "gzip")
        refused_with(ask(served.address, "/detect", body, known), 429, "try later")
        too_large = bytes(limits.body + 1)
        refused_with(ask(served.address, "/detect", too_large, known), 413, "expected at most")
        assert served.context.intake.held == 0
