"""Downloads from a local server that disconnects, stalls, corrupts, redirects and refuses."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet.cli import main
from sparsedet.errors import InputError
from sparsedet.hub import catalogue
from sparsedet.hub.catalogue import CatalogueEntry, RemoteFile
from sparsedet.hub.fetch import RetryPolicy, fetch
from sparsedet.sources.url import SafeRedirects

CONTENT = np.random.default_rng(5).bytes(300_000)
OTHER = np.random.default_rng(6).bytes(300_000)
FAST = RetryPolicy(attempts=4, pause=0.001, max_pause=0.01)

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Gives each request the server's next answer; the last answer is repeated."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            answer = server.answers[min(len(server.requests), len(server.answers) - 1)]
            server.requests.append((self.path, dict(self.headers)))
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client may go away
            answer(self)
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def head(self, status: int, **fields: object) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.wfile.write(data)
        self.server.sent += len(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# ------------------------------------------------------------------------ answers


def serve(
    content: bytes = CONTENT,
    *,
    etag: str = '"one"',
    upto: int | None = None,
    ranges: bool = True,
    corrupt: bool = False,
    pause: float = 0.0,
) -> Answer:
    """The answer of a good server, except for the given faults.

    Args:
        upto: close the connection after this number of bytes.
        ranges: False: ignore the header Range.
        corrupt: change one bit.
        pause: seconds of silence before the connection is closed.
    """

    def answer(handler: Handler) -> None:
        start, asked = 0, handler.headers.get("Range")
        fields: dict[str, object] = {"ETag": etag} if etag else {}
        if ranges and asked and handler.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return handler.head(416, Content_Length=0)
            fields["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        data = bytearray(content[start:])
        if corrupt:
            data[len(data) // 2] ^= 1
        fields["Content-Length"] = len(data)
        handler.head(206 if "Content-Range" in fields else 200, **fields)
        handler.body(bytes(data[:upto]))
        if pause:
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def status(code: int, **fields: object) -> Answer:
    return lambda handler: handler.head(code, Content_Length=0, **fields)


def remote(server: Server, content: bytes = CONTENT, **changes: Any) -> RemoteFile:
    digest = "sha384:" + hashlib.sha384(content).hexdigest()
    fields = {"url": f"{server.url}/models/net.bin", "digest": digest, "size": len(content)}
    return RemoteFile(**{**fields, **changes})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(
    server: Server, file: RemoteFile, target: Path, *words: str, policy: RetryPolicy = FAST
) -> None:
    """The download fails with one line that contains `words`, and there is no target."""
    with pytest.raises(InputError) as caught:
        fetch(file, target, policy=policy)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and not target.exists()


# ------------------------------------------------------------------------ success


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    server.answers = [serve()]
    target = tmp_path / "cache" / "net.bin"
    seen: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        seen.append((done, total))

    assert fetch(remote(server), target, policy=FAST, progress=progress)
    assert target.read_bytes() == CONTENT and files(target.parent) == ["net.bin"]
    assert (
        seen[0] == (0, 300_000)
        and seen[-1] == (300_000, 300_000)
        and seen == sorted(seen, key=lambda figures: figures[0])
    )
    assert not fetch(remote(server), target, policy=FAST, progress=progress)
    assert not fetch(remote(server), target, offline=True)
    assert server.ranges == [None]


def test_a_broken_connection_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=100_000), serve(upto=1), serve(upto=50_000), serve()]
    notes: list[str] = []
    fetch(remote(server), tmp_path / "net.bin", policy=FAST, note=notes.append)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=100001-", "bytes=150001-"]
    assert {h["If-Range"] for _, h in server.requests[1:]} == {'"one"'}
    assert server.sent == len(CONTENT)  # no byte twice
    assert len(notes) == 3 and "broke the connection after 100,000 bytes; next attempt" in notes[0]


def test_a_later_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=40_000)] + [serve(upto=0)] * 3 + [serve()]
    target = tmp_path / "net.bin"
    refused(
        server, remote(server), target, "127.0.0.1", "broke", "40,000 bytes are kept, run again"
    )
    assert files(tmp_path) == ["net.bin.part", "net.bin.part.from"]
    assert (tmp_path / "net.bin.part").read_bytes() == CONTENT[:40_000]
    fetch(remote(server), target, policy=FAST)
    assert server.ranges[-1] == "bytes=40000-" and files(tmp_path) == ["net.bin"]


def test_a_complete_part_is_verified_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.bin.part").write_bytes(CONTENT)
    fetch(remote(server), tmp_path / "net.bin", policy=FAST)
    assert server.requests == [] and files(tmp_path) == ["net.bin"]


@pytest.mark.parametrize(
    "bad",
    [
        serve(upto=90_000, pause=2.0),
        status(500),
        status(503, Retry_After=0),
        status(429, Retry_After=86400),
        serve(corrupt=True),
    ],
    ids=["stall", "500", "503", "429", "corrupt"],
)
def test_one_bad_answer_is_survived(server: Server, tmp_path: Path, bad: Answer) -> None:
    server.answers = [bad, serve()]
    fetch(remote(server), tmp_path / "net.bin", policy=replace(FAST, timeout=0.25))
    assert (tmp_path / "net.bin").read_bytes() == CONTENT and len(server.requests) == 2
    assert files(tmp_path) == ["net.bin"]


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=100_000), serve(ranges=False)]
    fetch(remote(server), tmp_path / "net.bin", policy=FAST)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("etag", ["", 'W/"one"'])
def test_without_a_strong_validator_it_starts_anew(
    server: Server, tmp_path: Path, etag: str
) -> None:
    server.answers = [serve(upto=100_000, etag=etag), serve(etag=etag)]
    fetch(remote(server), tmp_path / "net.bin", policy=FAST)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT and server.ranges == [None, None]


def test_last_modified_is_a_validator(server: Server, tmp_path: Path) -> None:
    def first(handler: Handler) -> None:
        handler.head(
            200, Content_Length=len(CONTENT), Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT"
        )
        handler.body(CONTENT[:1000])

    server.answers = [first, serve(etag="Mon, 01 Jan 2024 00:00:00 GMT")]
    fetch(remote(server), tmp_path / "net.bin", policy=FAST)
    assert server.ranges == [None, "bytes=1000-"] and server.sent == len(CONTENT)


def test_a_file_that_changes_between_tries(server: Server, tmp_path: Path) -> None:
    def no_if_range(handler: Handler) -> None:  # ignores the condition, sends the rest
        del handler.headers["If-Range"]
        serve(OTHER, etag='"two"')(handler)

    for number, second in enumerate((serve(OTHER, etag='"two"'), no_if_range)):
        server.requests.clear()
        server.answers = [serve(upto=100_000), second]
        target = tmp_path / f"{number}.bin"
        fetch(remote(server, OTHER), target, policy=FAST)
        assert target.read_bytes() == OTHER and server.ranges[1] == "bytes=100000-"


def test_a_file_that_became_shorter(server: Server, tmp_path: Path) -> None:
    short = CONTENT[:1000]
    server.answers = [serve(short, etag='"one"')]
    (tmp_path / "net.bin.part").write_bytes(CONTENT[:5000])
    (tmp_path / "net.bin.part.from").write_text('"one"')
    file = remote(server, short, size=None, digest="md5:" + hashlib.md5(short).hexdigest()[:6])
    fetch(file, tmp_path / "net.bin", policy=FAST)
    assert server.ranges == ["bytes=5000-", None] and files(tmp_path) == ["net.bin"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Server, tmp_path: Path, code: int) -> None:
    there = f"{server.url}/elsewhere"
    server.answers = [
        status(code, Location=there),
        serve(upto=5),
        status(code, Location=there),
        serve(),
    ]
    fetch(remote(server), tmp_path / "net.bin", policy=FAST)
    assert [path for path, _ in server.requests] == ["/models/net.bin", "/elsewhere"] * 2
    assert server.ranges[3] == "bytes=5-" and (tmp_path / "net.bin").read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "net.bin"
    server.answers = [serve()]
    target.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(InputError, match=r"net\.bin: .* damaged.*offline"):
        fetch(remote(server), target, offline=True)
    assert server.requests == []
    fetch(remote(server), target, policy=FAST)
    assert target.read_bytes() == CONTENT


def test_a_second_download_of_a_file_is_refused(server: Server, tmp_path: Path) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def slow(handler: Handler) -> None:
        arrived.set()
        go_on.wait(10)
        serve()(handler)

    server.answers = [slow]
    target = tmp_path / "net.bin"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch, remote(server), target, policy=FAST)
        assert arrived.wait(10)
        refused(server, remote(server), target, "another process is downloading it")
        go_on.set()
        assert first.result(10)
    assert server.sent == len(CONTENT) and target.read_bytes() == CONTENT
    assert files(tmp_path) == ["net.bin"]


# ------------------------------------------------------------------------ failure


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_final(server: Server, tmp_path: Path, code: int) -> None:
    server.answers = [status(code)]
    refused(
        server,
        remote(server),
        tmp_path / "net.bin",
        f"answers {code}",
        "127.0.0.1",
        "--mirror",
        str(tmp_path / "net.bin"),
    )
    assert len(server.requests) == 1 and files(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(503), "answers 503"),
        (serve(upto=0), "broke"),
        (serve(upto=0, pause=1.0), "sent nothing for 0.25 s"),
    ],
    ids=["503", "broken", "silent"],
)
def test_it_gives_up_after_the_last_attempt(
    server: Server, tmp_path: Path, answer: Answer, words: str
) -> None:
    server.answers = [answer]
    policy = replace(FAST, timeout=0.25) if words.startswith("sent") else FAST
    refused(server, remote(server), tmp_path / "net.bin", words, "attempt 4", policy=policy)
    assert len(server.requests) == 4
    assert not (tmp_path / "net.bin.part").exists()


def test_a_file_that_is_damaged_twice_is_not_the_published_one(
    server: Server, tmp_path: Path
) -> None:
    server.answers = [serve(OTHER)]
    refused(server, remote(server), tmp_path / "net.bin", "SHA384", "not the published file")
    assert len(server.requests) == 2 and files(tmp_path) == []
    file = remote(server, size=None, digest="md5:" + hashlib.md5(CONTENT).hexdigest()[:6])
    refused(server, file, tmp_path / "net.bin", "MD5 prefix", "not the published file")


def test_sizes_are_limits(server: Server, tmp_path: Path) -> None:
    def endless(handler: Handler) -> None:
        handler.head(200)
        for _ in range(1000):
            handler.body(bytes(10_000))

    target = tmp_path / "net.bin"
    server.answers = [serve(CONTENT + b"x")]
    refused(server, remote(server), target, "300,001", "expected 300,000")
    refused(server, remote(server, size=None, max_size=1000), target, "300,001", "at most 1,000")
    server.sent, server.requests, server.answers = 0, [], [endless]
    refused(server, remote(server, size=None, max_size=100_000), target, "more than 100,000 bytes")
    assert files(tmp_path) == []


def test_redirects_that_are_not_followed(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    target = tmp_path / "cache" / "net.bin"
    server.answers = [status(302, Location="ftp://127.0.0.1/net.bin")]
    refused(server, remote(server), target, "redirects from http to ftp", "not followed")
    server.answers = [status(302, Location=secret.as_uri())]
    refused(server, remote(server), target, "not allowed")
    server.answers = [status(302, Location=f"{server.url}/models/net.bin")]
    refused(server, remote(server), target, "302")  # a circle
    assert files(target.parent) == []
    secure = urllib.request.Request("https://127.0.0.1/net.bin")
    with pytest.raises(InputError, match="redirects from https to http"):
        SafeRedirects().redirect_request(
            secure, io.BytesIO(), 302, "", HTTPMessage(), "http://127.0.0.1/net.bin"
        )
    assert SafeRedirects().redirect_request(
        secure, io.BytesIO(), 302, "", HTTPMessage(), "https://127.0.0.1/b"
    )


def test_a_closed_port(server: Server, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    file = remote(server, url=f"http://127.0.0.1:{port}/net.bin")
    refused(server, file, tmp_path / "net.bin", f"127.0.0.1:{port}", "refused", "attempt 4")


def test_without_a_network_there_is_one_attempt(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_names(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    file = remote(server, url="https://models.invalid/net.bin")
    policy = RetryPolicy(pause=100.0)  # seconds: a second attempt would exceed the time of the test
    with pytest.raises(InputError) as caught:
        fetch(file, tmp_path / "net.bin", policy=policy)
    for words in ("models.invalid cannot be reached", "name resolution", "proxy", str(tmp_path)):
        assert words in str(caught.value)


def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    server.answers = [serve()]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a disk without room
    try:
        refused(
            server, remote(server), tmp_path / "net.bin", "cannot be written", "SPARSEDET_CACHE"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fetch(remote(server), tmp_path / "net.bin", policy=FAST)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(server, remote(server), tmp_path / "file" / "net.bin", "cannot be written")
    assert server.requests == []


# ------------------------------------------------------------------------ the catalogue


def test_the_catalogue() -> None:
    lengths = {"sha384": {96}, "sha256": {8}, "md5": {6}}
    for model in catalogue.CATALOGUE.values():
        assert len({file.name for file in model.files}) == len(model.files)
        for file in model.files:
            algorithm, digits = file.digest.split(":")
            assert file.url.startswith("https://") and len(digits) in lengths[algorithm]
            int(digits, 16)
            # A digest prefix is part of the file name; a file without a published size has a limit.
            assert algorithm == "sha384" or digits in file.name
            assert (file.size or file.max_size) < 500e6
    xml, bin_ = catalogue.CATALOGUE["faster-rcnn-resnet101-coco-sparse-60-0001"].files
    assert xml.name.removesuffix(".xml") == bin_.name.removesuffix(".bin")
    assert bin_.size is not None
    assert 0 < bin_.size - 4 * 52_792_416 < 400  # float32 of every parameter and little more


@pytest.mark.slow
def test_torchvision_names_the_same_files() -> None:
    weights = pytest.importorskip("torchvision.models").ResNet101_Weights
    for name, theirs in (
        ("resnet101-v1", weights.IMAGENET1K_V1),
        ("resnet101-v2", weights.DEFAULT),
    ):
        (file,) = catalogue.CATALOGUE[name].files
        assert file.url == theirs.url
        assert theirs.meta["_file_size"] * 2**20 < file.max_size


# ------------------------------------------------------------------------ the command


@pytest.fixture
def published(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A catalogue with one model of two files; its server, for `--mirror`."""
    made = tuple(
        RemoteFile(
            f"https://models.invalid/zoo/1/{name}",
            "sha384:" + hashlib.sha384(content).hexdigest(),
            len(content),
        )
        for name, content in (("net.xml", OTHER), ("net.bin", CONTENT))
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", {"net": CatalogueEntry("a net", "MIT", made)})
    monkeypatch.setenv("SPARSEDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEDET_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)

    def by_name(handler: Handler) -> None:
        serve(OTHER if handler.path.endswith(".xml") else CONTENT)(handler)

    server.answers = [by_name]
    return server


def test_the_command(published: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--list"]) == 0
    table = capsys.readouterr().out
    assert "net" in table and "no      a net; MIT" in table and str(tmp_path / "cache") in table
    command = ["download", "net", "--no-convert", "--mirror", f"{published.url}/mirror/"]
    assert main([*command, "--offline"]) == 1
    assert "net.xml: missing or damaged" in capsys.readouterr().err and published.requests == []
    assert main(command) == 0
    outcome = capsys.readouterr()
    assert [path for path, _ in published.requests] == [
        f"/mirror/zoo/1/net.{e}" for e in ("xml", "bin")
    ]
    assert outcome.out.count("SHA-384 as published") == 2 and "licence: MIT" in outcome.out
    assert outcome.err == ""  # no progress bar: not a terminal
    assert (tmp_path / "cache" / "net" / "net.bin").read_bytes() == CONTENT
    assert main(["download", "net", "--no-convert", "--offline"]) == 0
    assert main(["download", "--list"]) == 0
    assert "yes     a net" in capsys.readouterr().out and len(published.requests) == 2


def test_offline_by_the_environment(
    published: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARSEDET_OFFLINE", "1")
    assert main(["download", "net", "--no-convert", "--mirror", published.url]) == 1
    assert "nothing is fetched offline" in capsys.readouterr().err and published.requests == []


def test_bad_commands(
    published: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"mine")
    for arguments, words, code in (
        ([], "--list", 2),
        (["nett"], "'nett'", 2),
        (["net"], "net.safetensors: exists already", 1),
        (["net", "--no-convert", "-o", "x"], "--output", 2),
        (["net", "--no-convert", "--mirror", "file:///etc"], "mirror is 'file:///etc'", 2),
    ):
        assert main(["download", *arguments]) == code
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert published.requests == [] and (tmp_path / "net.safetensors").read_bytes() == b"mine"
    assert not os.path.exists(tmp_path / "cache")


def test_the_bar_is_for_terminals(
    published: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["download", "net", "--no-convert", "--mirror", published.url]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert "net.bin [" + "#" * 30 + "] 0.3 of 0.3 MB" in last


def test_what_is_downloaded_is_converted(
    published: Server,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("openvino")
    from sparsedet.exporters.openvino import save_openvino
    from sparsedet.model.file import load_model

    model = load_model(small_model)
    save_openvino(tmp_path / "made.xml", model.config, model.tensors, layout="NHWC")
    contents = {suffix: (tmp_path / f"made{suffix}").read_bytes() for suffix in (".xml", ".bin")}
    made = tuple(
        RemoteFile(
            f"https://models.invalid/net{suffix}",
            "sha384:" + hashlib.sha384(content).hexdigest(),
            len(content),
        )
        for suffix, content in contents.items()
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", {"net": CatalogueEntry("a net", "MIT", made)})
    published.answers = [lambda handler: serve(contents[handler.path[-4:]])(handler)]
    output = str(tmp_path / "net.safetensors")
    # A process of its own, because the importer runs OpenVINO beside our engine.
    program = f"""
import sys
from sparsedet.hub import catalogue
from sparsedet.cli import main
from sparsedet.hub.catalogue import CatalogueEntry, RemoteFile
catalogue.CATALOGUE = {{"net": CatalogueEntry("a net", "MIT", {made!r})}}
command = ["download", "net", "--mirror", {published.url!r}, "-o", {output!r}]
sys.exit(main(command))
"""
    root = Path(__file__).parents[2]  # published changes the folder
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "net.safetensors" in done.stdout
    got = load_model(tmp_path / "net.safetensors")
    assert got.tensors.keys() == model.tensors.keys()
    for name, value in model.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], value, err_msg=name)
