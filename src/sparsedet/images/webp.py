"""WebP: its chunks are checked here, OpenCV decodes. Of an animation the first frame is read."""

from __future__ import annotations

import struct

import numpy as np

from .opencv import U8, DamagedImage, decode_with_opencv, upright
from .tags import exif_orientation


def size(data: bytes) -> tuple[int, int]:
    """(height, width) of the canvas."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (_three_bytes(data, at) + 1 for at in (24, 27))
        return height, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _three_bytes(data: bytes, at: int) -> int:
    if at + 3 > len(data):
        raise DamagedImage("it ends in its header")
    return int.from_bytes(data[at : at + 3], "little")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def decode(data: bytes, keep: bool) -> tuple[U8, str]:
    """The upright image; see `read.decode_image`. libwebp gives nothing of a damaged one."""
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        raise DamagedImage(f"it should have {length + 8} bytes")
    exif, frame, at = b"", b"", 12
    while at + 8 <= length + 8:
        kind, count = struct.unpack_from("<4sI", data, at)
        if count > length + 8 - at - 8:
            raise DamagedImage("a chunk ends past the file")
        body = data[at + 8 : at + 8 + count]
        if kind == b"EXIF":
            exif = body
        elif kind == b"ANMF" and not frame:
            frame = body
        at += 8 + count + count % 2
    image = _first_frame(data, frame) if frame else decode_with_opencv(data)
    return upright(image, exif_orientation(exif)), ""


def _first_frame(data: bytes, frame: bytes) -> U8:
    """OpenCV before 4.11 reads no animations: this makes a picture of the first frame."""
    height, width = size(data)
    x, y = (2 * _three_bytes(frame, at) for at in (0, 3))
    columns, rows = (_three_bytes(frame, at) + 1 for at in (6, 9))
    if x + columns > width or y + rows > height:
        raise DamagedImage("its first frame is outside of the canvas")
    alpha = 0x10 if frame[16:20] == b"ALPH" else 0
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (columns, rows))
    body = b"WEBP" + frame[16:]
    if alpha:
        body = b"WEBP" + _chunk(b"VP8X", bytes((alpha, 0, 0, 0)) + sides) + frame[16:]
    picture = decode_with_opencv(_chunk(b"RIFF", body))
    if picture.shape != (rows, columns, 3):
        raise DamagedImage("its first frame has another size than declared")
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[y : y + rows, x : x + columns] = picture
    return canvas
