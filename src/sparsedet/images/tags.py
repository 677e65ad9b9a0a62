"""Tags of TIFF, which EXIF uses too: classic TIFF and BigTIFF, in both byte orders."""

from __future__ import annotations

import struct

from .opencv import DamagedImage

ORIENTATION = 274

_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BYTES |= {16: 8, 17: 8, 18: 8}
_MOST_TAGS = 4096


class FirstPage:
    """The first directory of tags. Values are read when asked for; all offsets are checked.

    Args:
        data: a TIFF file, or the TIFF inside an EXIF block.

    Raises:
        DamagedImage: the directory reaches past the data.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.order = "<" if data[:2] == b"II" else ">"
        (version,) = self._numbers("H", 2, 1)
        self._big = version == 43
        (page,) = self._numbers("Q" if self._big else "I", 8 if self._big else 4, 1)
        (entries,) = self._numbers("Q" if self._big else "H", page, 1)
        first, step = (page + 8, 20) if self._big else (page + 2, 12)
        if entries > _MOST_TAGS:
            raise DamagedImage(f"it declares {entries} tags")
        self._tags: dict[int, tuple[int, int, int]] = {}
        for at in range(first, first + entries * step, step):
            tag, kind = self._numbers("H", at, 2)
            (count,) = self._numbers("Q" if self._big else "I", at + 4, 1)
            place = at + (12 if self._big else 8)
            if _BYTES.get(kind, 0) * count > (8 if self._big else 4):
                (place,) = self._numbers("Q" if self._big else "I", place, 1)
            self._tags.setdefault(tag, (kind, count, place))

    def _numbers(self, code: str, at: int, count: int) -> tuple[int, ...]:
        size = struct.calcsize(code) * count
        if at > len(self._data) - size:  # before struct: its offsets end at 2**63
            raise DamagedImage("an offset lies past the file's end")
        return struct.unpack_from(f"{self.order}{count}{code}", self._data, at)

    def __len__(self) -> int:
        """Bytes of the file."""
        return len(self._data)

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    def numbers(self, tag: int, most: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The whole numbers of a tag, `most` of them at most.

        Raises:
            DamagedImage: they lie past the end of the data, or are of another kind.
        """
        if tag not in self._tags:
            return default
        kind, count, place = self._tags[tag]
        if kind not in _CODES or count == 0:
            raise DamagedImage(f"tag {tag} holds no whole numbers")
        return self._numbers(_CODES[kind], place, min(count, most))

    def number(self, tag: int, default: int) -> int:
        return self.numbers(tag, 1, (default,))[0]

    def content(self, tag: int) -> bytes:
        """The bytes of a tag; none if it is missing or lies past the end of the data."""
        kind, count, place = self._tags.get(tag, (0, 0, 0))
        return self._data[place : place + _BYTES.get(kind, 0) * count]

    def with_orientation_1(self) -> bytes:
        """The file without an orientation, for a decoder that would apply it."""
        if self.number(ORIENTATION, 1) == 1:
            return self._data
        kind, _, place = self._tags[ORIENTATION]
        patched = bytearray(self._data)
        patched[place : place + _BYTES[kind]] = struct.pack(self.order + _CODES[kind], 1)
        return bytes(patched)


def exif_orientation(exif: bytes) -> int:
    """The orientation 1..8 in an EXIF block; 1 if there is none, or the block is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        value = FirstPage(exif).number(ORIENTATION, 1) if exif[:2] in (b"II", b"MM") else 1
    except DamagedImage:
        return 1
    return value if 1 <= value <= 8 else 1
