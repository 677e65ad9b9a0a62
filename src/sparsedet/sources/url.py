"""Images and videos from http and https addresses, with limits: whoever serves them is not trusted.

Redirects are followed, at most ten, but none from https to http and none to another scheme.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

from ..errors import InputError
from ..images.read import decode_image
from .frame import BadFrame, Frame, Limits, Part
from .mjpeg import START, split_jpegs
from .video import VideoPart, is_video

_CHUNK = 1 << 16
_FIRST = 400
"""Bytes that tell what something is."""


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows at most ten redirects, as urllib does, but none from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            fp.close()
            raise InputError(f"{req.host}: redirects from {old} to {new} ({newurl}), not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class UrlPart(Part):
    """What an address serves: an image, a video, or a stream of JPEGs (a camera's MJPEG)."""

    def __init__(
        self, name: str, every: int = 1, limits: Limits | None = None, keep_damaged: bool = False
    ) -> None:
        super().__init__(name, moving=_looks_moving(name))
        self.every, self.limits, self.keep_damaged = every, limits or Limits(), keep_damaged

    def rate(self) -> float:
        """Frames a second for a video of it, which is not known before it is read."""
        return 25.0 / self.every

    def read(self) -> Iterator[Frame | BadFrame]:
        try:
            with contextlib.closing(self._open()) as response:
                kind = response.headers.get_content_type()
                reader = _Body(response, self.name, self.limits)
                if kind == "multipart/x-mixed-replace":
                    reader.deadline = None
                    yield from jpeg_frames(reader.read, self.name, self.every, self.limits)
                else:
                    yield from read_unknown(
                        reader.read, self.name, self.every, self.limits, self.keep_damaged
                    )
        except InputError as error:
            yield BadFrame(self.name, error)

    def _open(self) -> Any:
        headers = {"Accept-Encoding": "identity", "User-Agent": "sparsedet"}
        try:
            request = urllib.request.Request(self.name, headers=headers)
            opener = urllib.request.build_opener(SafeRedirects)
            return opener.open(request, timeout=self.limits.timeout)
        except urllib.error.HTTPError as error:
            with error:
                status = f"{error.code} {error.reason}".split("\n")[0]
                raise InputError(f"{self.name}: the server answers {status}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise _unreachable(self.name, getattr(error, "reason", error), self.limits) from None


def _looks_moving(url: str) -> bool:
    from .video import VIDEO_SUFFIXES

    return urlsplit(url).path.lower().endswith(VIDEO_SUFFIXES)


def _unreachable(name: str, reason: object, limits: Limits) -> InputError:
    if isinstance(reason, TimeoutError):
        return InputError(f"{name}: the server sent nothing for {limits.timeout:g} s")
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return InputError(f"{name}: cannot be read ({text})")


class _Body:
    """The body of a response, and whether it ends where it should."""

    def __init__(self, response: Any, name: str, limits: Limits) -> None:
        self.response, self.name, self.limits = response, name, limits
        length = str(response.headers.get("Content-Length", ""))
        self.length = int(length) if length.isdigit() else None
        self.got = 0
        self.deadline: float | None = time.monotonic() + limits.seconds

    def read(self, count: int) -> bytes:
        """The next bytes, empty at the end.

        Raises:
            InputError: the connection broke, or the time is over.
        """
        try:
            data: bytes = self.response.read1(count)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.name, error, self.limits) from None
        self.got += len(data)
        if not data and self.length is not None and self.got < self.length:
            raise InputError(
                f"{self.name}: the connection broke after {self.got} of {self.length} bytes"
            )
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise InputError(
                f"{self.name}: not complete after {self.limits.seconds:g} s, {self.got} bytes"
            )
        return data


def read_unknown(
    read: Callable[[int], bytes],
    name: str,
    every: int,
    limits: Limits,
    keep_damaged: bool,
    stream: bool = False,
) -> Iterator[Frame | BadFrame]:
    """Frames of bytes whose kind only they tell: an image, a video, or `stream`ed JPEGs.

    Args:
        read: (at most so many bytes) -> bytes; empty at the end.
        stream: what begins as a JPEG may be followed by more of them.

    Raises:
        InputError: it is none of these, or longer than the limits.
    """
    start = b""
    while len(start) < _FIRST and (more := read(_CHUNK)):
        start += more
    rest = _with_start(start, read)
    if stream and start.startswith(START):
        yield from jpeg_frames(rest, name, every, limits, keep_damaged)
    elif is_video(start):
        suffix = os.path.splitext(urlsplit(name).path)[1]
        with tempfile.NamedTemporaryFile(suffix=suffix if suffix.isalnum() else "") as file:
            _copy(rest, file, name, limits.video_bytes)
            yield from VideoPart(name, Path(file.name), every).read()
    else:
        data = _Bytes()
        _copy(rest, data, name, limits.image_bytes)
        yield Frame(name, decode_image(bytes(data.data), name, keep_damaged=keep_damaged))


def jpeg_frames(
    read: Callable[[int], bytes],
    name: str,
    every: int,
    limits: Limits,
    keep_damaged: bool = False,
) -> Iterator[Frame | BadFrame]:
    """Frames of JPEGs that follow each other; a single one is a still image."""
    start = time.monotonic()
    held: tuple[bytes, float] | None = None
    for index, data in enumerate(split_jpegs(read, name, limits.image_bytes)):
        if index == 0:
            held = data, time.monotonic() - start
            continue
        if held is not None:
            yield from _decoded(*held[:1], name, held[1], 0, keep_damaged)
            held = None
        if index % every == 0:
            yield from _decoded(data, name, time.monotonic() - start, index, keep_damaged)
    if held is not None:
        yield from _decoded(held[0], name, None, None, keep_damaged)


def _decoded(
    data: bytes, name: str, seconds: float | None, index: int | None, keep_damaged: bool
) -> Iterator[Frame | BadFrame]:
    where = name if index is None else f"{name} frame {index}"
    try:
        yield Frame(name, decode_image(data, where, keep_damaged=keep_damaged), seconds, index)
    except InputError as error:
        yield BadFrame(name, error)


def _with_start(start: bytes, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    first = [start] if start else []
    return lambda count: first.pop() if first else read(count)


class _Bytes:
    """A file in memory that is only written."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None: ...


def _copy(
    read: Callable[[int], bytes], file: BinaryIO | _Bytes | Any, name: str, limit: int
) -> None:
    total = 0
    while data := read(_CHUNK):
        total += len(data)
        if total > limit:
            raise InputError(f"{name}: more than {limit} bytes, given up")
        file.write(data)
    file.flush()
