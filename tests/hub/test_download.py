"""Downloads from a server on this machine that breaks off, stalls, lies, redirects and refuses."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsedet.cli import main
from sparsedet.errors import InputError
from sparsedet.hub import catalogue as zoo
from sparsedet.hub.fetch import Patience, RemoteFile, _Redirects, fetch

CONTENT = np.random.default_rng(5).bytes(300_000)
OTHER = np.random.default_rng(6).bytes(300_000)
CALM = Patience(tries=4, pause=0.001, longest_pause=0.01)

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request by the next of the server's answers, the last one again and again."""

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
    length: bool = True,
) -> Answer:
    """A file as good servers serve it, but for what is asked for.

    Args:
        upto: break off after so many bytes of this answer, without a word.
        ranges: False: ignore what part is asked for.
        pause: seconds of silence before it breaks off.
        length: False: do not say how long the file is.
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
        if length:
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
    server: Server, file: RemoteFile, target: Path, *words: str, patience: Patience = CALM
) -> None:
    """The download fails by one line that holds the words, and nothing passes for the file."""
    with pytest.raises(InputError) as caught:
        fetch(file, target, patience=patience)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and not target.exists()


# ------------------------------------------------------------------------ what works


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    server.answers = [serve()]
    target, seen = tmp_path / "cache" / "net.bin", []
    arguments = {"patience": CALM, "progress": lambda *figures: seen.append(figures)}
    assert fetch(remote(server), target, **arguments)
    assert target.read_bytes() == CONTENT and files(target.parent) == ["net.bin"]
    assert seen[0] == (0, 300_000) and seen[-1] == (300_000, 300_000) and seen == sorted(seen)
    assert not fetch(remote(server), target, **arguments)
    assert not fetch(remote(server), target, offline=True)
    assert server.ranges == [None]


def test_a_broken_connection_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=100_000), serve(upto=1), serve(upto=50_000), serve()]
    notes: list[str] = []
    fetch(remote(server), tmp_path / "net.bin", patience=CALM, note=notes.append)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=100001-", "bytes=150001-"]
    assert {h["If-Range"] for _, h in server.requests[1:]} == {'"one"'}
    assert server.sent == len(CONTENT)  # not a byte twice
    assert len(notes) == 3 and "broke after 100,000 bytes; tries again" in notes[0]


def test_progress_renews_patience(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=20_000)]  # 15 connections, of which 4 may fail in a row
    patience = replace(CALM, progress=20_000)
    fetch(remote(server), tmp_path / "net.bin", patience=patience)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT and len(server.requests) == 15


def test_a_later_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=40_000)] + [serve(upto=0)] * 3 + [serve()]
    target = tmp_path / "net.bin"
    refused(server, remote(server), target, "127.0.0.1", "broke", "40,000 bytes are kept")
    assert files(tmp_path) == ["net.bin.part", "net.bin.part.from"]
    assert (tmp_path / "net.bin.part").read_bytes() == CONTENT[:40_000]
    fetch(remote(server), target, patience=CALM)
    assert server.ranges[-1] == "bytes=40000-" and files(tmp_path) == ["net.bin"]


def test_a_whole_part_is_checked_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.bin.part").write_bytes(CONTENT)
    fetch(remote(server), tmp_path / "net.bin", patience=CALM)
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
    fetch(remote(server), tmp_path / "net.bin", patience=replace(CALM, timeout=0.25))
    assert (tmp_path / "net.bin").read_bytes() == CONTENT and len(server.requests) == 2
    assert files(tmp_path) == ["net.bin"]


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=100_000), serve(ranges=False)]
    fetch(remote(server), tmp_path / "net.bin", patience=CALM)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("etag", ["", 'W/"one"'])
def test_without_a_strong_validator_it_starts_anew(
    server: Server, tmp_path: Path, etag: str
) -> None:
    server.answers = [serve(upto=100_000, etag=etag), serve(etag=etag)]
    fetch(remote(server), tmp_path / "net.bin", patience=CALM)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT and server.ranges == [None, None]


def test_last_modified_is_a_validator(server: Server, tmp_path: Path) -> None:
    def first(handler: Handler) -> None:
        handler.head(
            200, Content_Length=len(CONTENT), Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT"
        )
        handler.body(CONTENT[:1000])

    server.answers = [first, serve(etag="Mon, 01 Jan 2024 00:00:00 GMT")]
    fetch(remote(server), tmp_path / "net.bin", patience=CALM)
    assert server.ranges == [None, "bytes=1000-"] and server.sent == len(CONTENT)


def test_a_file_that_changes_between_tries(server: Server, tmp_path: Path) -> None:
    def no_if_range(handler: Handler) -> None:  # sends the rest of the new file all the same
        del handler.headers["If-Range"]
        serve(OTHER, etag='"two"')(handler)

    for number, second in enumerate((serve(OTHER, etag='"two"'), no_if_range)):
        server.requests.clear()
        server.answers = [serve(upto=100_000), second]
        target = tmp_path / f"{number}.bin"
        fetch(remote(server, OTHER), target, patience=CALM)
        assert target.read_bytes() == OTHER and server.ranges[1] == "bytes=100000-"


def test_a_file_that_became_shorter(server: Server, tmp_path: Path) -> None:
    short = CONTENT[:1000]
    server.answers = [serve(short, etag='"one"')]
    (tmp_path / "net.bin.part").write_bytes(CONTENT[:5000])
    (tmp_path / "net.bin.part.from").write_text('"one"')
    file = remote(server, short, size=None, digest="md5:" + hashlib.md5(short).hexdigest()[:6])
    fetch(file, tmp_path / "net.bin", patience=CALM)
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
    fetch(remote(server), tmp_path / "net.bin", patience=CALM)
    assert [path for path, _ in server.requests] == ["/models/net.bin", "/elsewhere"] * 2
    assert server.ranges[3] == "bytes=5-" and (tmp_path / "net.bin").read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "net.bin"
    server.answers = [serve()]
    target.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(InputError, match=r"net\.bin: .* damaged.*offline"):
        fetch(remote(server), target, offline=True)
    assert server.requests == []
    fetch(remote(server), target, patience=CALM)
    assert target.read_bytes() == CONTENT


def test_many_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(upto=100_000, pause=0.1), serve()]
    target, notes = tmp_path / "net.bin", []

    def one(_: int) -> bool:
        return fetch(remote(server), target, patience=CALM, note=notes.append)

    with ThreadPoolExecutor(6) as pool:
        downloaded = list(pool.map(one, range(6)))
    assert sum(downloaded) == 1 and server.sent == len(CONTENT)
    assert target.read_bytes() == CONTENT and files(tmp_path) == ["net.bin"]
    assert any("waits for another process" in note for note in notes)


# ------------------------------------------------------------------------ what does not


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
        (serve(upto=0, pause=1.0), "nothing came for 0.25 s"),
    ],
    ids=["503", "broken", "silent"],
)
def test_patience_ends(server: Server, tmp_path: Path, answer: Answer, words: str) -> None:
    server.answers = [answer]
    patience = replace(CALM, timeout=0.25) if words.startswith("nothing") else CALM
    refused(
        server, remote(server), tmp_path / "net.bin", words, "4 tries in a row", patience=patience
    )
    assert len(server.requests) == 4
    assert not (tmp_path / "net.bin.part").exists()


def test_a_trickle_is_a_stall(server: Server, tmp_path: Path) -> None:
    def trickle(handler: Handler) -> None:
        handler.head(200, Content_Length=len(CONTENT))
        for _ in range(100):
            handler.body(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    server.answers = [trickle]
    patience = Patience(timeout=0.1, slow=64, tries=1)
    with pytest.raises(InputError, match="nothing came"):
        fetch(remote(server), tmp_path / "net.bin", patience=patience)


def test_what_is_wrong_twice_is_not_the_file(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(OTHER)]
    refused(server, remote(server), tmp_path / "net.bin", "SHA384", "not the published file")
    assert len(server.requests) == 2 and files(tmp_path) == []
    file = remote(server, size=None, digest="md5:" + hashlib.md5(CONTENT).hexdigest()[:6])
    refused(server, file, tmp_path / "net.bin", "MD5 begins", "not the published file")


def test_sizes_are_held(server: Server, tmp_path: Path) -> None:
    def endless(handler: Handler) -> None:
        handler.head(200)
        for _ in range(1000):
            handler.body(bytes(10_000))

    target = tmp_path / "net.bin"
    server.answers = [serve(CONTENT + b"x")]
    refused(server, remote(server), target, "300,001", "expected 300,000")
    refused(server, remote(server, size=None, limit=1000), target, "300,001", "at most 1,000")
    server.sent, server.requests, server.answers = 0, [], [endless]
    refused(server, remote(server, size=None, limit=100_000), target, "more than 100,000 bytes")
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
        _Redirects().redirect_request(secure, io.BytesIO(), 302, "", {}, "http://127.0.0.1/net.bin")
    assert _Redirects().redirect_request(secure, io.BytesIO(), 302, "", {}, "https://127.0.0.1/b")


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    file = remote(server, url=f"http://127.0.0.1:{port}/net.bin")
    refused(server, file, tmp_path / "net.bin", f"127.0.0.1:{port}", "refused", "4 tries in a row")


def test_without_a_network_it_says_so_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_names(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    file = remote(server, url="https://models.invalid/net.bin")
    patience = Patience(pause=100.0)  # would be noticed
    with pytest.raises(InputError) as caught:
        fetch(file, tmp_path / "net.bin", patience=patience)
    for words in ("models.invalid cannot be reached", "name resolution", "proxy", str(tmp_path)):
        assert words in str(caught.value)


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=299_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    server.answers = [serve()]
    refused(
        server,
        remote(server),
        tmp_path / "net.bin",
        "300,000 more bytes",
        "299,999",
        "SPARSEDET_CACHE",
    )


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(server, remote(server), tmp_path / "file" / "net.bin", "cannot be written")
    assert server.requests == []


# ------------------------------------------------------------------------ the catalogue


def test_the_catalogue() -> None:
    lengths = {"sha384": {96}, "sha256": {8}, "md5": {6}}
    for model in zoo.PUBLISHED.values():
        assert len({file.name for file in model.files}) == len(model.files)
        for file in model.files:
            algorithm, digits = file.digest.split(":")
            assert file.url.startswith("https://") and len(digits) in lengths[algorithm]
            int(digits, 16)
            # A digest's first digits are published in the name, and where no size is, a limit is.
            assert algorithm == "sha384" or digits in file.name
            assert (file.size or file.limit) < 500e6
    xml, bin_ = zoo.PUBLISHED["faster-rcnn-resnet101-coco-sparse-60-0001"].files
    assert xml.name.removesuffix(".xml") == bin_.name.removesuffix(".bin")
    assert 0 < bin_.size - 4 * 52_792_416 < 400  # float32 of every parameter and little more


@pytest.mark.slow
def test_torchvision_names_the_same_files() -> None:
    weights = pytest.importorskip("torchvision.models").ResNet101_Weights
    for name, theirs in (
        ("resnet101-v1", weights.IMAGENET1K_V1),
        ("resnet101-v2", weights.DEFAULT),
    ):
        (file,) = zoo.PUBLISHED[name].files
        assert file.url == theirs.url
        assert theirs.meta["_file_size"] * 2**20 < file.limit


# ------------------------------------------------------------------------ the command


@pytest.fixture
def shop(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """One published model of two files, behind `--mirror`."""
    made = tuple(
        RemoteFile(
            f"https://models.invalid/zoo/1/{name}",
            "sha384:" + hashlib.sha384(content).hexdigest(),
            len(content),
        )
        for name, content in (("net.xml", OTHER), ("net.bin", CONTENT))
    )
    monkeypatch.setattr(zoo, "PUBLISHED", {"net": zoo.Published("a net", "MIT", made)})
    monkeypatch.setenv("SPARSEDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEDET_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)

    def by_name(handler: Handler) -> None:
        serve(OTHER if handler.path.endswith(".xml") else CONTENT)(handler)

    server.answers = [by_name]
    return server


def test_the_command(shop: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--list"]) == 0
    table = capsys.readouterr().out
    assert "net" in table and "no      a net; MIT" in table and str(tmp_path / "cache") in table
    command = ["download", "net", "--no-convert", "--mirror", f"{shop.url}/mirror/"]
    assert main([*command, "--offline"]) == 2
    assert "net.xml: is not there" in capsys.readouterr().err and shop.requests == []
    assert main(command) == 0
    outcome = capsys.readouterr()
    assert [path for path, _ in shop.requests] == [f"/mirror/zoo/1/net.{e}" for e in ("xml", "bin")]
    assert outcome.out.count("SHA-384 as published") == 2 and "licence: MIT" in outcome.out
    assert outcome.err == ""  # no bar, since this is no terminal
    assert (tmp_path / "cache" / "net" / "net.bin").read_bytes() == CONTENT
    assert main(["download", "net", "--no-convert", "--offline"]) == 0
    assert main(["download", "--list"]) == 0
    assert "yes     a net" in capsys.readouterr().out and len(shop.requests) == 2


def test_offline_by_the_environment(
    shop: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARSEDET_OFFLINE", "1")
    assert main(["download", "net", "--no-convert", "--mirror", shop.url]) == 2
    assert "nothing is fetched offline" in capsys.readouterr().err and shop.requests == []


def test_bad_commands(shop: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"mine")
    for arguments, words in (
        ([], "--list"),
        (["nett"], "'nett'"),
        (["net"], "net.safetensors: exists already"),
        (["net", "--no-convert", "-o", "x"], "--output"),
        (["net", "--no-convert", "--mirror", "file:///etc"], "mirror is 'file:///etc'"),
    ):
        assert main(["download", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert shop.requests == [] and (tmp_path / "net.safetensors").read_bytes() == b"mine"
    assert not os.path.exists(tmp_path / "cache")


def test_the_bar_is_for_terminals(
    shop: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["download", "net", "--no-convert", "--mirror", shop.url]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert "net.bin [" + "#" * 30 + "] 0.3 of 0.3 MB" in last


def test_what_is_downloaded_is_converted(
    shop: Server,
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
    monkeypatch.setattr(zoo, "PUBLISHED", {"net": zoo.Published("a net", "MIT", made)})
    shop.answers = [lambda handler: serve(contents[handler.path[-4:]])(handler)]
    output = str(tmp_path / "net.safetensors")
    # A process of its own, because the importer runs OpenVINO beside our engine.
    program = f"""
import sys
from sparsedet.hub import catalogue as zoo
from sparsedet.cli import main
from sparsedet.hub.fetch import RemoteFile
zoo.PUBLISHED = {{"net": zoo.Published("a net", "MIT", {made!r})}}
command = ["download", "net", "--mirror", {shop.url!r}, "-o", {output!r}]
sys.exit(main(command))
"""
    root = Path(__file__).parents[2]  # the shop's folder is another
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "net.safetensors" in done.stdout
    got = load_model(tmp_path / "net.safetensors")
    assert got.tensors.keys() == model.tensors.keys()
    for name, value in model.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], value, err_msg=name)
