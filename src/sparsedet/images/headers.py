"""The size of an image, from the header of its format: data -> (height, width).

A function raises struct.error or ValueError if the data ends too early. The EXIF orientation is
not read here: OpenCV applies it when it decodes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

# Not stuffing (00), filling (ff), or a marker without a length (01 and the restarts d0..d7).
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """The frame header's size, after a walk over all segments to the end-of-image marker.

    OpenCV before 4.12 fills the missing part of a truncated JPEG with grey without complaint.
    A cut file has no end-of-image marker, wherever it was cut; the walk, unlike a search,
    steps over the one in an EXIF thumbnail and allows for anything after the picture's own.
    """
    height = width = 0
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == 0xD9:
            return height, width
        (length,) = struct.unpack_from(">H", data, position)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 3)
        position += length
    raise ValueError("no end-of-image marker")


def _png_size(data: bytes) -> tuple[int, int]:
    # OpenCV notices a truncated PNG too, but libpng then writes to stderr. The last chunk's
    # name with its checksum, eight bytes, does not occur by chance.
    data.index(b"IEND\xae\x42\x60\x82")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return abs(height), width  # a negative height means that the top row comes first


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
        return height + 1, width + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int]:
    """Tags 256 and 257 of the first page, of classic TIFF or BigTIFF."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (page,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, page)
    first, step, value = (page + 8, 20, 12) if big else (page + 2, 12, 8)
    size = {256: 0, 257: 0}
    for at in range(first, first + min(entries, 4096) * step, step):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in size:
            code = {3: "H", 4: "I", 16: "Q"}.get(kind, "B")
            (size[tag],) = struct.unpack_from(order + code, data, at + value)
    return size[257], size[256]


def _avif_size(data: bytes) -> tuple[int, int]:
    """The largest `ispe` property: that of the whole picture where it is a grid of tiles."""
    sizes = (struct.unpack_from(">II", data, m.end()) for m in re.finditer(b"ispe\0{4}", data))
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    return height, width


FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], tuple[int, int]]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg_size),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png_size),
    (re.compile(rb"RIFF(?s:.{4})WEBP"), _webp_size),
    (re.compile(rb"BM"), _bmp_size),
    (re.compile(rb"GIF8[79]a"), _gif_size),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), _tiff_size),
    (re.compile(rb"(?s:.{4})ftyp(?s:.{4}){0,15}?avi[fs]"), _avif_size),
)
