"""A stream of JPEG images, one after the other: from a pipe, or from a camera's address."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import InputError

START = b"\xff\xd8\xff"
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length: TEM, RST0..7, SOI."""


def split_jpegs(
    read: Callable[[int], bytes], name: str, max_bytes: int, chunk: int = 1 << 16
) -> Iterator[bytes]:
    """The images of a stream; what stands between them (MIME headers) is left out.

    A picture ends at its own end marker; thumbnails inside it do not count, because segments are
    skipped by their lengths. An unfinished image at the end is given as it is.

    Args:
        read: (at most so many bytes) -> bytes; empty at the end.
        max_bytes: of one image, and of what stands between two.

    Raises:
        InputError: an image, or what stands before one, is longer.
    """
    data = bytearray()
    at = _Place()
    ended = False
    while not ended:
        more = read(chunk)
        ended = not more
        data += more
        while True:
            if not at.inside and not _find_start(data):
                break
            end = at.advance(data)
            if end is None:
                break
            yield bytes(data[:end])
            del data[:end]
            at = _Place()
        if len(data) > max_bytes:
            raise InputError(f"{name}: more than {max_bytes} bytes without the end of an image")
    if data.startswith(START):
        yield bytes(data)


def _find_start(data: bytearray) -> bool:
    """Drop what stands before the next image; whether one begins."""
    start = data.find(START)
    del data[: start if start >= 0 else max(0, len(data) - 2)]
    return start >= 0


class _Place:
    """How far an image that starts at byte 0 has been followed."""

    def __init__(self) -> None:
        self.at, self.scan, self.inside = 2, False, False

    def advance(self, data: bytearray) -> int | None:
        """The end of the image; None: it has not come yet."""
        self.inside = True
        while True:
            if self.scan and not self._skip_codes(data):
                return None
            if self.at + 4 > len(data):
                ends = data[self.at : self.at + 2] == b"\xff\xd9"
                return self.at + 2 if ends else None
            marker = data[self.at + 1]
            if data[self.at] != 0xFF:  # damaged: look for the next marker
                self.scan = True
            elif marker == 0xD9:
                return self.at + 2
            elif marker == 0xFF:  # fill byte
                self.at += 1
            elif marker in _ALONE:
                self.at += 2
            else:
                length = int.from_bytes(data[self.at + 2 : self.at + 4], "big")
                self.at += 2 + max(length, 2)
                self.scan = marker == 0xDA

    def _skip_codes(self, data: bytearray) -> bool:
        """Go to the next marker of entropy-coded data; whether there is one."""
        while True:
            found = data.find(0xFF, self.at)
            if found < 0 or found + 1 >= len(data):
                self.at = min(max(self.at, len(data) if found < 0 else found), len(data))
                return False
            if data[found + 1] == 0 or 0xD0 <= data[found + 1] <= 0xD7:
                self.at = found + 2
                continue
            self.at, self.scan = found, False
            return True
