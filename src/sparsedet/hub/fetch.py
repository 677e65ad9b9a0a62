"""One file from a public address to the disk: complete and checked, or not there at all.

A download goes to NAME.part and is moved to NAME when its size and digest are right. It is resumed
after a broken connection, in this process or a later one, as long as the server still has the same
file. Which files there are is in `zoo`; nothing is read or converted here.

Glossary: the part is the file NAME.part; its validator, in NAME.part.from, is what the server
called that version of the file (RFC 9110: a strong ETag, else Last-Modified). A try is one request.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

from ..errors import InputError

CHUNK = 1 << 18
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another try may change."""
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file and what its publisher says of it.

    Attributes:
        url: http or https.
        digest: "ALGORITHM:HEX" as hashlib names it, the whole digest or its first digits.
        size: bytes, where published.
        limit: bytes that it has at most, where no size is published.
    """

    url: str
    digest: str
    size: int | None = None
    limit: int = 1 << 30

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up; times in seconds.

    Attributes:
        timeout: of connecting, and of a silence in mid-download.
        slow: fewer bytes than this within `timeout` are a silence too.
        tries: failures in a row; one that brought `progress` new bytes starts the count anew, so
            that a large file gets through a bad connection.
        pause, longest_pause: before the second try, and how far doubling it goes.
    """

    timeout: float = 30.0
    slow: int = 1024
    tries: int = 5
    progress: int = 1 << 20
    pause: float = 1.0
    longest_pause: float = 30.0


Progress = Callable[[int, "int | None"], None]
"""Called with the bytes that are there and those of the whole file (None: unknown)."""
Note = Callable[[str], None]
"""Called with a line for the user: why there is another try, what is waited for."""


def fetch(
    remote: RemoteFile,
    target: Path,
    *,
    offline: bool = False,
    patience: Patience | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> bool:
    """Have the file at `target`, whole and checked.

    A file that is there already is checked, not downloaded. Several processes or threads may ask
    for the same file at once: one downloads, the others wait for it.

    Args:
        offline: open no connection.
        patience: default: `Patience()`.

    Returns:
        Whether it was downloaded now.

    Raises:
        InputError: one line: which file, from where, why not, what to do.
    """
    download = _Download(
        remote,
        target,
        patience or Patience(),
        progress or (lambda done, total: None),
        note or (lambda line: None),
    )
    if download.is_there():
        return False
    if offline:
        raise InputError(f"{target}: is not there (or is damaged), and nothing is fetched offline")
    with _as_input_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with download.locked_part():
            if download.is_there():  # another process has fetched it meanwhile
                return False
            download.run()
    return True


def mismatch(remote: RemoteFile, path: Path) -> str:
    """What is wrong with a file, "" if nothing is.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"has {size:,} bytes, expected {remote.size:,}"
    algorithm, _, expected = remote.digest.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    found = digest.hexdigest()[: len(expected)]
    what = algorithm.upper() + (" " if len(expected) == 2 * digest.digest_size else " begins ")
    return "" if found == expected else f"{what}{found[:16]}, expected {expected[:16]}"


@contextlib.contextmanager
def _as_input_errors(target: Path) -> Iterator[None]:
    """The file system's refusals, as one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from None


class _Failed(Exception):
    """A try that failed; another may not.

    Attributes:
        wait: seconds that the server asks for.
    """

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _Download:
    """What `fetch` keeps between its tries."""

    def __init__(
        self, remote: RemoteFile, target: Path, patience: Patience, progress: Progress, note: Note
    ) -> None:
        self.remote, self.target, self.patience = remote, target, patience
        self.progress, self.note = progress, note
        self.part = target.with_name(target.name + ".part")
        self.validator = target.with_name(target.name + ".part.from")
        self.host = urlsplit(remote.url).netloc
        self.connected = False

    def is_there(self) -> bool:
        """Whether the target is a whole and right file."""
        with _as_input_errors(self.target):
            return self.target.is_file() and not mismatch(self.remote, self.target)

    @contextlib.contextmanager
    def locked_part(self) -> Iterator[None]:
        """Holds the part's lock, so that one process at a time writes it.

        The lock is on the file itself and goes with the process, so that none is ever left behind;
        whoever waited for a part that was moved away meanwhile locks the new one.
        """
        import fcntl  # POSIX alone, as the package

        while True:
            with open(self.part, "ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.note(f"{self.remote.name}: waits for another process that downloads it")
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not self.is_part(file):
                    continue
                try:
                    yield
                finally:
                    if self.is_part(file) and not os.fstat(file.fileno()).st_size:
                        self.part.unlink()
                return

    def is_part(self, file: IO[bytes]) -> bool:
        """Whether the part's name still leads to that open file."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.part))
        except FileNotFoundError:
            return False

    def run(self) -> None:
        """Try until the file is there or patience ends."""
        patience, failures, wrong = self.patience, 0, 0
        furthest = self.part.stat().st_size
        while True:
            try:
                self.download_rest()
                if not (problem := mismatch(self.remote, self.part)):
                    break
                self.forget_part()
                wrong += 1
                if wrong == 2:  # whole twice, and wrong twice
                    raise InputError(
                        f"{self.remote.name}: what {self.host} sends {problem}: not the published "
                        "file"
                    )
                raise _Failed(f"what came {problem}")
            except _Failed as failure:
                size = self.part.stat().st_size
                failures = 0 if size >= furthest + patience.progress else failures
                furthest = max(furthest, size)
                failures += 1
                if failures >= patience.tries:
                    raise InputError(
                        f"{self.remote.name}: {self.host}: {failure}, {failures} tries in a row; "
                        + (
                            f"{size:,} bytes are kept, the same command goes on from there"
                            if size
                            else "try again later, or give another address by --mirror"
                        )
                    ) from None
                pause = max(failure.wait, patience.pause * 2 ** (failures - 1))
                pause = min(pause, patience.longest_pause)
                self.note(f"{self.remote.name}: {failure}; tries again in {pause:.3g} s")
                time.sleep(pause)
        with open(self.part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.target)
        self.validator.unlink(missing_ok=True)

    def forget_part(self) -> None:
        """Begin anew; the part stays as an empty file, because it carries the lock."""
        os.truncate(self.part, 0)
        self.validator.unlink(missing_ok=True)

    # ------------------------------------------------------------------ one try

    def download_rest(self) -> None:
        """Bring the part to its full length, by one request at most.

        Raises:
            _Failed: it is not full yet, and another try may help.
            InputError: no other try would help.
        """
        have = self.part.stat().st_size
        if self.remote.size is not None and have == self.remote.size:
            return  # all came, then the process was stopped before it was checked
        headers = {"Accept-Encoding": "identity", "User-Agent": "sparsedet"}
        version = self.validator.read_text("latin-1") if self.validator.exists() else ""
        if have and version and have < (self.remote.size or self.remote.limit):
            # If-Range: the rest, or all of it if the file has changed meanwhile.
            headers |= {"Range": f"bytes={have}-", "If-Range": version}
        request = urllib.request.Request(self.remote.url, headers=headers)
        try:
            response = _opener().open(request, timeout=self.patience.timeout)
        except urllib.error.HTTPError as error:
            with error:
                self.refused(error)
        except urllib.error.URLError as error:
            self.unreachable(error.reason)
        except (OSError, http.client.HTTPException) as error:
            self.unreachable(error)
        with response:
            self.connected = True
            self.receive(response, have if "Range" in headers else 0, version)

    def receive(self, response: Any, asked_from: int, version: str) -> None:
        """Write what the server sends into the part.

        Args:
            asked_from: byte from which the rest was asked for.
            version: the part's validator.
        """
        start, total = _extent(response.headers, response.status)
        etag = str(response.headers.get("ETag", ""))
        if start not in (0, asked_from) or (
            start and etag and version[:1] == '"' and etag != version
        ):
            self.forget_part()
            raise _Failed("the server sent another part, or of another file, than was asked for")
        limit = self.remote.size or self.remote.limit
        if total is not None and (total > limit or (self.remote.size or total) != total):
            expected = f"{limit:,}" if self.remote.size else f"at most {limit:,}"
            raise InputError(
                f"{self.remote.name}: {self.host} has {total:,} bytes under this address, "
                f"expected {expected}: not the published file"
            )
        self.need_room((total or 0) - start)
        if start == 0:
            self.forget_part()
            weak = etag.startswith("W/")  # which must not be used in If-Range
            if version := "" if weak else etag or str(response.headers.get("Last-Modified", "")):
                self.validator.write_text(version, "latin-1")
        done = start
        with open(self.part, "rb+") as file:
            file.seek(start)
            self.progress(done, total)
            for data in self.pieces(response):
                file.write(data)
                done += len(data)
                if done > limit:
                    break
                self.progress(done, total)
        if done > limit:
            self.forget_part()
            raise InputError(f"{self.remote.name}: {self.host} sends more than {limit:,} bytes")
        if done < (total or self.remote.size or 0):
            raise _Failed(f"the connection broke after {done:,} bytes")

    def pieces(self, response: Any) -> Iterator[bytes]:
        """What comes, as it comes."""
        since, received = time.monotonic(), 0
        while True:
            try:
                data = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                self.unreachable(error)
            if not data:
                return
            yield data
            received += len(data)
            if time.monotonic() - since > self.patience.timeout:
                if received < self.patience.slow:
                    self.unreachable(TimeoutError())
                since, received = time.monotonic(), 0

    def need_room(self, size: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if size > free:
            raise InputError(
                f"{self.target}: needs {size:,} more bytes, the disk has {free:,}; free some or "
                "set SPARSEDET_CACHE to a folder on another disk"
            )

    # ------------------------------------------------------------------ what can go wrong

    def refused(self, error: urllib.error.HTTPError) -> NoReturn:
        """An answer that is no file."""
        self.connected = True
        what = f"{error.code} {error.reason}".split("\n")[0]  # of a circle of redirects: four lines
        if error.code == 416:  # the part is longer than the file, which has thus changed
            self.forget_part()
            raise _Failed("the file has changed on the server")
        if error.code in RETRIED:
            raise _Failed(f"the server answers {what}", _retry_after(error.headers))
        raise InputError(
            f"{self.remote.name}: {self.host} answers {what} for {self.remote.url}; if it has "
            "moved, give another address by --mirror or put the file into the cache by hand "
            f"as {self.target}"
        )

    def unreachable(self, reason: object) -> NoReturn:
        """No answer, or none to its end."""
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InputError(f"{self.host}: its certificate is not accepted ({reason.reason})")
        if isinstance(reason, TimeoutError):
            raise _Failed(f"nothing came for {self.patience.timeout:g} s")
        text = reason.strerror if isinstance(reason, OSError) else None
        text = text or str(reason) or type(reason).__name__
        away = isinstance(reason, socket.gaierror) or getattr(reason, "errno", 0) in _NO_WAY
        if away and not self.connected:  # no network: another try would only keep the user waiting
            raise InputError(
                f"{self.remote.name}: {self.host} cannot be reached ({text}); connect to the "
                "network (a proxy: set https_proxy), or put the file into the cache by hand as "
                f"{self.target}"
            )
        raise _Failed(f"cannot be reached ({text})" if not self.connected else text)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as urllib does (ten at most), but never to a weaker kind of address."""

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


def _opener() -> urllib.request.OpenerDirector:
    """Speaks http and https alone, through the environment's proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def _extent(headers: Any, status: int) -> tuple[int, int | None]:
    """First byte of an answer and the size of the whole file, where it says so."""
    if status == 206:
        unit, _, rest = str(headers.get("Content-Range", "")).partition(" ")
        span, _, total = rest.partition("/")
        first = span.partition("-")[0]
        if unit == "bytes" and first.isdigit():
            return int(first), int(total) if total.isdigit() else None
        return -1, None
    length = str(headers.get("Content-Length", ""))
    return 0, int(length) if length.isdigit() else None


def _retry_after(headers: Any) -> float:
    """Seconds that the server asks to wait, 0 if it does not say (or says a date)."""
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isdigit() else 0.0
