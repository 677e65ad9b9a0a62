"""PNG: its chunks and checksums are checked here, then OpenCV decodes the chunks that matter.

libpng inside OpenCV warns on the terminal of profiles and other chunks that change no pixel here,
and allocates what a chunk's length says. It gets a file without either.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from .opencv import DEEP, U8, DamagedImage, UnsupportedImage, decode_with_opencv, upright
from .tags import exif_orientation

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_LONGEST_SIDE = 1_000_000  # libpng's limit
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_PASSES = (*_ADAM7, (0, 1, 1, 2))
"""First column, first row, step of columns, step of rows of the passes of an interlaced image."""


def size(data: bytes) -> tuple[int, int]:
    """(height, width) of the header chunk."""
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise DamagedImage("it does not start with a header chunk")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def damaged_chunks(data: bytes) -> str:
    """What is wrong with the lengths of the chunks; "": nothing. Checksums are not reported."""
    damage = _Chunks(data).damage
    return "" if damage.startswith("the checksum") else damage


def inflate(data: bytes, expected: int, spare: int = 0) -> tuple[bytes, bool]:
    """At most `expected` bytes (at least 1) of a zlib stream, and whether they are whole.

    They are not if their checksum is wrong. A stream that goes on is whole; with `spare` it has to
    end, in so many further bytes or with data left.
    """
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, expected + 1)  # one more, so that it reaches the checksum
        whole, more = len(out) >= expected, b""
        if whole and not stream.eof:
            more = stream.decompress(stream.unconsumed_tail, max(1, spare))
        whole = whole and (not spare or stream.eof or len(more) == spare)
        return out if len(out) <= expected else out[:expected], whole
    except zlib.error:
        pass
    stream, parts, missing = zlib.decompressobj(), [], expected
    try:  # again in small steps: zlib keeps nothing of the step that fails
        for at in range(0, len(data), 64):
            parts.append(stream.decompress(data[at : at + 64], missing))
            missing -= len(parts[-1])
            if missing == 0:
                break
    except zlib.error:
        pass
    return b"".join(parts), False


class _Chunks:
    """The chunks that matter, and the first damage."""

    def __init__(self, data: bytes) -> None:
        self.header, self.palette, self.exif, self.damage = data[16:29], b"", b"", ""
        self.data: list[bytes] = []
        view, at = memoryview(data), 8
        while True:
            if at + 12 > len(data):
                self._note("it ends before its last chunk")
                return
            length, kind = struct.unpack_from(">I4s", data, at)
            body = view[at + 8 : at + 8 + length]
            critical = not kind[0] & 0x20
            if length > len(data) - at - 12:
                self._note(f"a chunk of {length} bytes ends past the file")
                self._keep(kind, body, critical)
                return
            (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
            if critical or kind == b"eXIf":
                good = zlib.crc32(body, zlib.crc32(kind)) == checksum
                if critical and not good:
                    self._note(f"the checksum of a chunk {kind.decode('latin-1')!r} is wrong")
                if critical or good:
                    self._keep(kind, body, critical)
            elif kind in (b"tEXt", b"zTXt") and not self.exif:
                self.exif = _raw_profile(kind, bytes(body))
            if kind == b"IEND":
                return
            at += length + 12

    def _note(self, damage: str) -> None:
        self.damage = self.damage or damage

    def _keep(self, kind: bytes, body: memoryview, critical: bool) -> None:
        if kind == b"IDAT":
            self.data.append(bytes(body))
        elif kind == b"PLTE":
            self.palette = bytes(body)
        elif kind == b"eXIf":
            self.exif = bytes(body)
        elif kind == b"CgBI":
            raise UnsupportedImage("PNG of Apple's own kind (CgBI)")
        elif critical and kind not in (b"IHDR", b"IEND"):
            self._note("a chunk of an unknown kind")


def _raw_profile(kind: bytes, body: bytes) -> bytes:
    """The EXIF block that ImageMagick wrote as text, before PNG had a chunk for it."""
    keyword, _, text = body.partition(b"\0")
    if keyword not in (b"Raw profile type exif", b"Raw profile type APP1"):
        return b""
    if kind == b"zTXt":
        text, _ = inflate(text[1:], 1 << 20)
    match = re.match(rb"\s*\w+\s+\d+\s+([0-9a-fA-F\s]*)", text)
    digits = b"".join(match[1].split()) if match else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))


def _passes(height: int, width: int, interlaced: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of the passes that are not empty."""
    for x, y, step_x, step_y in _PASSES if interlaced else ((0, 0, 1, 1),):
        rows, columns = -(-(height - y) // step_y), -(-(width - x) // step_x)
        if rows > 0 and columns > 0:
            yield rows, columns


def _chunk(kind: bytes, *body: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """A chunk in parts: joined once, since copies of large ones cost as much as their checksum."""
    checksum = zlib.crc32(kind)
    for part in body:
        checksum = zlib.crc32(part, checksum)
    return struct.pack(">I", sum(map(len, body))), kind, *body, struct.pack(">I", checksum)


def _stored(raw: bytes) -> Iterator[bytes | memoryview]:
    """A zlib stream that holds data as they are, in parts: what level 0 gives."""
    yield b"\x78\x01"
    view = memoryview(raw)
    for at in range(0, len(raw), 65535):
        part = view[at : at + 65535]
        yield struct.pack("<BHH", at + 65535 >= len(raw), len(part), 65535 - len(part))
        yield part
    yield struct.pack(">I", zlib.adler32(raw))


def decode(data: bytes, keep: bool) -> tuple[U8, str]:
    """The upright image, and what is wrong with it; see `read.decode_image`."""
    chunks = _Chunks(data)
    width, height, depth, kind, compression, filtering, interlaced = struct.unpack(
        ">IIBBBBB", chunks.header
    )
    if depth not in _DEPTHS.get(kind, ()) or compression or filtering or interlaced > 1:
        raise DamagedImage("its header has impossible fields")
    if max(height, width) > _LONGEST_SIDE:
        raise UnsupportedImage(f"PNG with a side of more than {_LONGEST_SIDE} pixels")
    if kind == 3 and (not chunks.palette or len(chunks.palette) % 3):
        raise DamagedImage("it has no palette")
    damage = chunks.damage
    passes = [
        (rows, 1 + (columns * depth * _CHANNELS[kind] + 7) // 8)
        for rows, columns in _passes(height, width, interlaced)
    ]
    expected = sum(rows * row for rows, row in passes)
    raw, whole = b"", False
    if chunks.data:
        raw, whole = inflate(b"".join(chunks.data), expected)
    if not raw:
        raise DamagedImage(damage or "it holds no pixels")
    if not whole:
        damage = damage or "its pixels are damaged or end early"
        raw += bytes(expected - len(raw))
    at = 0
    for rows, row in passes:
        filters = np.frombuffer(raw, np.uint8, rows * row, at)[::row]
        if filters.max() > 4:
            damage = damage or "a row has an unknown filter"
            good = at + int(np.argmax(filters > 4)) * row
            raw = raw[:good] + bytes(expected - good)
            break
        at += rows * row
    if damage and not keep:
        raise DamagedImage(damage)
    palette: tuple[bytes | memoryview, ...] = ()
    if kind == 3:  # filled up with black: libpng complains of indices past the end
        length = 3 << depth
        palette = _chunk(b"PLTE", chunks.palette[:length].ljust(length, b"\0"))
    # Stored, not compressed: OpenCV need not inflate it a second time.
    clean = b"".join(
        (
            _SIGNATURE,
            *_chunk(b"IHDR", chunks.header),
            *palette,
            *_chunk(b"IDAT", *_stored(raw)),
            *_chunk(b"IEND"),
        )
    )
    image = decode_with_opencv(clean, DEEP)
    return upright(image, exif_orientation(chunks.exif)), damage
