"""GIF: its first frame, unpacked in the native core. OpenCV before 4.11 does not read GIF."""

from __future__ import annotations

import struct

import numpy as np

from .._native import unpack
from .opencv import U8, DamagedImage


class _Reader:
    """Reads blocks one after the other; what is past the end raises DamagedImage."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise DamagedImage("it ends in the middle")
        self._at += count
        return part

    def palette(self, flags: int) -> U8 | None:
        """(256, 3) BGR; what the file leaves out is black."""
        if not flags & 0x80:
            return None
        colours = np.frombuffer(self.take(3 << (flags & 7) + 1), np.uint8).reshape(-1, 3)
        return np.pad(colours[:, ::-1], ((0, 256 - len(colours)), (0, 0)))

    def packed(self, parts: list[bytes]) -> None:
        """Append the parts of a block of data; they survive an end in the middle."""
        while length := self.take(1)[0]:
            parts.append(self._data[self._at : self._at + length])
            self.take(length)


def size(data: bytes) -> tuple[int, int]:
    """(height, width) of the canvas; the first frame enlarges it, as files state too little."""
    width, height = struct.unpack_from("<HH", data, 6)
    reader = _Reader(data, 10)
    try:
        reader.palette(reader.take(3)[0])
        while (kind := reader.take(1)) == b"!":
            reader.take(1)
            reader.packed([])
        if kind == b",":
            x, y, columns, rows = struct.unpack("<4H", reader.take(8))
            width, height = max(width, x + columns), max(height, y + rows)
    except DamagedImage:
        pass  # `decode` finds it as well
    return height, width


def decode(data: bytes, keep: bool) -> tuple[U8, str]:
    """The first frame on its canvas, and what is wrong with it; see `read.decode_image`."""
    height, width = size(data)
    reader = _Reader(data, 10)
    damage, frame, transparent = "", b"", 0
    parts: list[bytes] = []
    palette = common = reader.palette(reader.take(3)[0])
    try:
        while (kind := reader.take(1)) != b";":
            skipped: list[bytes] = []
            if kind == b"!":
                label = reader.take(1)
                reader.packed(skipped)
                control = b"".join(skipped)
                if label == b"\xf9" and len(control) >= 4 and not frame and control[0] & 1:
                    transparent = control[3]
            elif kind == b"," and not frame:
                frame = reader.take(9)
                palette = reader.palette(frame[8])
                parts.append(reader.take(1))
                reader.packed(parts)
            elif kind == b",":
                reader.palette(reader.take(9)[8])
                reader.take(1)
                reader.packed(skipped)
            else:
                raise DamagedImage("a block of an unknown kind")
    except DamagedImage as error:
        damage = str(error)
    if not parts:
        raise DamagedImage(damage or "it holds no picture")
    palette = common if palette is None else palette
    x, y, columns, rows = struct.unpack_from("<4H", frame)
    if palette is None or columns < 1 or rows < 1:
        raise DamagedImage("its first frame has no palette or no pixels")
    count = rows * columns
    unpacked = unpack("gif", b"".join(parts[1:]), count, parts[0][0])
    if len(unpacked) < count:
        damage = damage or "its pixels are damaged or end early"
    if damage and not (keep and unpacked):
        raise DamagedImage(damage)
    indices = np.frombuffer(unpacked.ljust(count, b"\0"), np.uint8).reshape(rows, columns)
    if frame[8] & 0x40:  # interlaced: every 8th row, every 8th from 4, every 4th from 2, the others
        stored = [
            r for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for r in range(rows)[first::step]
        ]
        indices = indices[np.argsort(stored)]
    canvas = np.full((height, width), transparent, np.uint8)
    canvas[y : y + rows, x : x + columns] = indices
    return palette[canvas], damage
