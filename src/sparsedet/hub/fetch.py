"""Download one file: complete and verified, or not at all.

A download goes to NAME.part and is moved to NAME when its size and digest are right. A broken
download is resumed, in this process or a later one, while the server still has the same version of
the file. NAME.part.from holds that version: a strong ETag, else Last-Modified (RFC 9110).

Why not pooch, the usual library for this: it cannot resume, every attempt starts at byte 0. It
checks neither a published prefix of a digest nor a size limit, it follows redirects from https to
http, and it needs `requests`; this package installs with numpy and OpenCV alone.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..sources.url import SafeRedirects
from .catalogue import CHUNK, RemoteFile, mismatch

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which another attempt may succeed."""
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)

FileProgress = Callable[[int, "int | None"], None]
"""Called with the bytes on disk and the bytes of the whole file (None: unknown)."""
Note = Callable[[str], None]
"""Called with one line for the user: why another attempt follows."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again and when to give up.

    Attributes:
        timeout: seconds without an answer or without new bytes.
        attempts: requests before giving up; a later run resumes.
        pause: seconds before the second attempt; doubles with each further one.
        max_pause: upper limit of a pause in seconds, also of one that the server asks for.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    max_pause: float = 30.0


class _AttemptError(Exception):
    """A failed attempt; the text completes "HOST ...".

    Attributes:
        transient: another attempt may succeed.
        stale: the bytes on disk are not the beginning of the published file.
        retry_after: pause in seconds that the server asks for.
    """

    def __init__(
        self, text: str, *, transient: bool = True, stale: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(text)
        self.transient, self.stale, self.retry_after = transient, stale, retry_after


def fetch(
    remote: RemoteFile,
    target: Path,
    *,
    offline: bool = False,
    policy: RetryPolicy | None = None,
    progress: FileProgress | None = None,
    note: Note | None = None,
) -> bool:
    """Download a file, unless `target` has the published content already.

    Args:
        remote: the file.
        target: path to write; its folder is created.
        offline: open no connection.
        policy: default: `RetryPolicy()`.

    Returns:
        Whether the file was downloaded now.

    Raises:
        InputError: the file cannot be downloaded, verified or written, or another process is
            downloading it. One line: which file, from where, why, what to do.
    """
    part = target.with_name(target.name + ".part")
    try:
        if target.is_file() and not mismatch(remote, target):
            if not part.exists():  # a process that was killed after its last step but one
                with contextlib.suppress(OSError):
                    _version(part).unlink(missing_ok=True)
            return False
        if offline:
            raise InputError(
                f"{target}: missing or damaged, and nothing is fetched offline; run again without "
                "--offline and SPARSEDET_OFFLINE"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part, target):
            _Download(remote, part, policy or RetryPolicy(), progress).run(target, note)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); SPARSEDET_CACHE can name "
            "another folder"
        ) from None
    return True


def _version(part: Path) -> Path:
    """The file that says of which version of the published file a part is."""
    return part.with_name(part.name + ".from")


@contextlib.contextmanager
def _locked(part: Path, target: Path) -> Iterator[None]:
    """Create the part, and refuse to write to it beside another process.

    The lock is on the file itself: it ends with the process and is never left behind.
    """
    import fcntl  # POSIX only, as the package

    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{target}: another process is downloading it; run again when that one is done"
            ) from None
        try:
            yield
        finally:
            if not os.fstat(file.fileno()).st_size:
                part.unlink(missing_ok=True)


class _Download:
    """The attempts to complete one part."""

    def __init__(
        self, remote: RemoteFile, part: Path, policy: RetryPolicy, progress: FileProgress | None
    ) -> None:
        self.remote, self.part, self.policy = remote, part, policy
        self.progress = progress or (lambda done, total: None)
        self.version = _version(part)

    def run(self, target: Path, note: Note | None) -> None:
        """Try until the part is verified and moved to the target, or the policy gives up."""
        policy, host, damaged = self.policy, f"{self.remote.name}: {self.remote.host}", False
        for attempt in range(1, policy.attempts + 1):
            try:
                self.download_rest()
                problem = mismatch(self.remote, self.part)
                if not problem:
                    os.replace(self.part, target)
                    self.version.unlink(missing_ok=True)
                    return
                text = f"sent a file that {problem}: not the published file"
                # Once, the connection may have damaged it; twice, it is the server's file.
                error = _AttemptError(text, transient=not damaged, stale=True)
                damaged = True
            except _AttemptError as failure:
                error = failure
            if error.stale:
                self.clear()
            size = self.part.stat().st_size
            if not error.transient or attempt == policy.attempts:
                advice = f"{size:,} bytes are kept, run again to resume"
                if not error.transient or not size:
                    advice = f"give another address by --mirror, or put the file here: {target}"
                raise InputError(f"{host} {error} (attempt {attempt}); {advice}")
            pause = min(max(error.retry_after, policy.pause * 2 ** (attempt - 1)), policy.max_pause)
            if note:
                note(f"{host} {error}; next attempt in {pause:.3g} s")
            time.sleep(pause)

    def clear(self) -> None:
        """Drop all bytes; the empty file stays, because it carries the lock."""
        os.truncate(self.part, 0)
        self.version.unlink(missing_ok=True)

    def download_rest(self) -> None:
        """Bring the part to its full length, by one request at most."""
        start = self.part.stat().st_size
        if start == self.remote.size:
            return  # an earlier process received all and was stopped before the check
        headers = {"Accept-Encoding": "identity", "User-Agent": "sparsedet"}
        if start and self.version.exists():
            # If-Range: the server sends the rest, or the whole file if it has changed.
            version = self.version.read_text("latin-1")
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        request = urllib.request.Request(self.remote.url, headers=headers)
        opener = urllib.request.build_opener(SafeRedirects)
        try:
            response = opener.open(request, timeout=self.policy.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise _status_error(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self.connection_error(getattr(error, "reason", error)) from None
        with response:
            self.receive(response, start)

    def receive(self, response: Any, asked_from: int) -> None:
        """Write the body of a response (status 200 or 206) into the part."""
        start, total = _content_range(response.status, response.headers)
        if start not in (0, asked_from):
            raise _AttemptError("sent other bytes than requested", stale=True)
        limit = self.remote.size or self.remote.max_size
        if total is not None and (total > limit or self.remote.size not in (None, total)):
            expected = f"{limit:,}" if self.remote.size else f"at most {limit:,}"
            text = f"has a file of {total:,} bytes, expected {expected}: not the published file"
            raise _AttemptError(text, transient=False)
        if start == 0:
            self.clear()
            etag = str(response.headers.get("ETag", ""))
            version = etag or str(response.headers.get("Last-Modified", ""))
            if version and not etag.startswith("W/"):  # If-Range needs a strong validator
                self.version.write_text(version, "latin-1")
        with open(self.part, "rb+") as file:
            file.seek(start)
            self.progress(start, total)
            while data := self.read(response):
                if file.tell() + len(data) > limit:
                    text = f"sends more than {limit:,} bytes"
                    raise _AttemptError(text, transient=False, stale=True)
                file.write(data)
                self.progress(file.tell(), total)
            os.fsync(file.fileno())
            if file.tell() < (total or self.remote.size or 0):
                raise _AttemptError(f"broke the connection after {file.tell():,} bytes")

    def read(self, response: Any) -> bytes:
        """The next bytes of a response; empty at its end."""
        try:
            data: bytes = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise self.connection_error(error) from None
        return data

    def connection_error(self, reason: object) -> _AttemptError:
        """The error of a connection that failed or broke."""
        if isinstance(reason, TimeoutError):
            return _AttemptError(f"sent nothing for {self.policy.timeout:g} s")
        text = reason.strerror if isinstance(reason, OSError) else None
        text = text or str(reason) or type(reason).__name__
        # Without a network, and nothing to resume, retries would only delay the message.
        final = self.part.stat().st_size == 0 and (
            isinstance(reason, socket.gaierror | ssl.SSLCertVerificationError)
            or getattr(reason, "errno", 0) in _UNREACHABLE
        )
        text += "; behind a proxy set https_proxy" * final
        return _AttemptError(f"cannot be reached ({text})", transient=not final)


def _status_error(error: urllib.error.HTTPError) -> _AttemptError:
    if error.code == 416:  # there are more bytes on disk than the server's file has
        return _AttemptError("has another version of the file by now", stale=True)
    status = f"{error.code} {error.reason}".split("\n")[0]  # a loop of redirects has four lines
    seconds = str(error.headers.get("Retry-After", ""))  # a date is ignored
    return _AttemptError(
        f"answers {status} for {error.url}",
        transient=error.code in TRANSIENT_STATUSES,
        retry_after=float(seconds) if seconds.isdigit() else 0.0,
    )


def _content_range(status: int, headers: Any) -> tuple[int, int | None]:
    """First byte of a response (-1: unknown), and bytes of the whole file (None: unknown)."""
    if status != 206:
        length = str(headers.get("Content-Length", ""))
        return 0, int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", str(headers.get("Content-Range", "")))
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])
