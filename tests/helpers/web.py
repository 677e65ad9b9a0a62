"""A web server on this machine that misbehaves on request."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


def body(data: bytes, kind: str = "image/png", length: int | None = None) -> Answer:
    """Serve bytes; `length` is what the header claims."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        if length != -1:
            request.send_header("Content-Length", str(len(data) if length is None else length))
        request.end_headers()
        request.wfile.write(data)

    return answer


def endless(chunk: bytes) -> Answer:
    """Serve bytes without an end."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(chunk)

    return answer


def slow(chunk: bytes, seconds: float) -> Answer:
    """Serve a chunk now and then, without an end."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(chunk)
            request.wfile.flush()
            time.sleep(seconds)

    return answer


def redirect(to: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", to)
        request.end_headers()

    return answer


@contextlib.contextmanager
def serve(answers: dict[str, Answer]) -> Iterator[str]:
    """Serve paths until the end; gives the address."""

    class Misbehaving(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # the client went away
                if self.path in answers:
                    answers[self.path](self)
                else:
                    self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
