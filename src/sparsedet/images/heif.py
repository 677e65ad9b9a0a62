"""AVIF and HEIF: boxes are checked and rotated here; OpenCV decodes AVIF, pillow-heif HEIF.

Both turn the picture by properties of its main item, `irot` and `imir`, not by the Exif block,
which repeats them for other readers. OpenCV ignores the properties; libheif applies them.
"""

from __future__ import annotations

import importlib
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from .opencv import U8, DamagedImage, UnsupportedImage, decode_with_opencv, upright

_SIZE = re.compile(rb"ispe\0{4}")


def size(data: bytes) -> tuple[int, int]:
    """The largest `ispe` property: that of the whole picture where it is a grid of tiles."""
    sizes = (struct.unpack_from(">II", data, m.end()) for m in _SIZE.finditer(data))
    width, height = max(sizes, key=lambda side: side[0] * side[1], default=(0, 0))
    return height, width


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the body of each box in data[at:end]."""
    while at + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        elif length == 0:
            length = end - at
        if length < body - at or length > end - at:
            raise DamagedImage(f"a box of {length} bytes ends past the file")
        yield kind, body, at + length
        at += length


def _number(data: bytes, at: int, count: int, end: int) -> int:
    if at + count > end:
        raise DamagedImage("a box is too short")
    return int.from_bytes(data[at : at + count], "big")


def _check_places(data: bytes, at: int, end: int) -> None:
    """Box iloc: where the items are in the file."""
    version = _number(data, at, 1, end)
    widths = _number(data, at + 4, 2, end)
    offset_bytes, length_bytes, base_bytes = widths >> 12, widths >> 8 & 15, widths >> 4 & 15
    index_bytes = widths & 15 if version else 0
    long = 4 if version == 2 else 2
    items, at = _number(data, at + 6, long, end), at + 6 + long
    for _ in range(items):
        at += long
        method = _number(data, at, 2, end) & 15 if version else 0
        at += (2 if version else 0) + 2
        base = _number(data, at, base_bytes, end)
        extents = _number(data, at + base_bytes, 2, end)
        at += base_bytes + 2
        for _ in range(extents):
            at += index_bytes
            offset = base + _number(data, at, offset_bytes, end)
            length = _number(data, at + offset_bytes, length_bytes, end)
            at += offset_bytes + length_bytes
            if method == 0 and offset + length > len(data):
                raise DamagedImage("an item lies past the file's end")


def _properties_of(data: bytes, at: int, end: int, item: int) -> Iterator[int]:
    """Box ipma: the numbers, from 1 on, of an item's properties."""
    version, flags = _number(data, at, 1, end), _number(data, at + 1, 3, end)
    entries, at = _number(data, at + 4, 4, end), at + 8
    name_bytes, wide = (2 if version == 0 else 4), flags & 1
    for _ in range(entries):
        name, count = _number(data, at, name_bytes, end), _number(data, at + name_bytes, 1, end)
        at += name_bytes + 1
        for _ in range(count):
            number = _number(data, at, 1 + wide, end)
            at += 1 + wide
            if name == item:
                yield number & (0x7FFF if wide else 0x7F)


def _turns(data: bytes) -> tuple[int, int | None]:
    """The main item's quarter turns to the left, and its mirroring: 0 rows, 1 columns, None.

    Raises:
        DamagedImage: a box or an item reaches past the end of what holds it.
    """
    main, properties, associations = 0, [], []
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, at, stop in _boxes(data, start + 4, end):
            if inner == b"pitm":
                main = _number(data, at + 4, 4 if data[at] else 2, stop)
            elif inner == b"iloc":
                _check_places(data, at, stop)
            elif inner == b"iprp":
                for part, first, last in _boxes(data, at, stop):
                    if part == b"ipco":
                        properties = list(_boxes(data, first, last))
                    elif part == b"ipma":
                        associations.append((first, last))
        break
    turns, mirror = 0, None
    for first, last in associations:
        for number in _properties_of(data, first, last, main):
            kind, at, stop = (
                properties[number - 1] if 0 < number <= len(properties) else (b"", 0, 0)
            )
            if kind == b"irot":
                turns = _number(data, at, 1, stop) & 3
            elif kind == b"imir":
                mirror = _number(data, at, 1, stop) & 1
    return turns, mirror


def decode_avif(data: bytes, keep: bool) -> tuple[U8, str]:
    """The upright image; see `read.decode_image`. Nothing is given of a damaged one."""
    turns, mirror = _turns(data)
    image = upright(decode_with_opencv(data), (1, 8, 3, 6)[turns])
    if mirror is not None:  # after the turn
        image = upright(image, 2 if mirror else 4)
    return image, ""


def decode_heif(data: bytes, keep: bool) -> tuple[U8, str]:
    """The same of HEIF (HEIC), where pillow-heif is installed."""
    try:
        pillow_heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        raise UnsupportedImage("HEIF", "pip install pillow-heif") from None
    _turns(data)  # checks the boxes
    try:
        picture = pillow_heif.open_heif(data, convert_hdr_to_8bit=True, bgr_mode=True)
        pixels = np.asarray(picture)
    except Exception as error:  # ValueError, RuntimeError, SyntaxError, EOFError: of libheif
        raise DamagedImage(str(error).replace("\n", " ")) from None
    if pixels.ndim == 2:
        pixels = np.dstack([pixels] * 3)
    return np.ascontiguousarray(pixels[..., :3], dtype=np.uint8), ""
