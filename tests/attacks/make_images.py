"""Hostile images: a few bytes that declare three thousand million pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff_bomb(order: str, big: bool) -> bytes:
    mark = {"<": b"II", ">": b"MM"}[order]
    tags = [(256, 60000), (257, 50000)]
    if big:
        head = mark + struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(tags))
        return head + b"".join(struct.pack(order + "HHQQ", t, 16, 1, v) for t, v in tags)
    head = mark + struct.pack(order + "HIH", 42, 8, len(tags))
    kinds = ((3, "Hxx"), (4, "I"))  # one SHORT, which is left-justified, and one LONG
    return head + b"".join(
        struct.pack(f"{order}HHI{code}", tag, kind, 1, value)
        for (tag, value), (kind, code) in zip(tags, kinds, strict=True)
    )


BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 50000, 8, 2, 0, 0, 0))
    + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    + png_chunk(b"IEND", b""),
    "jpeg": b"\xff\xd8\xff\xc0\0\x11\x08"
    + struct.pack(">HH", 50000, 60000)
    + bytes(10)
    + b"\xff\xd9",
    "bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, 60000, 50000) + bytes(28),
    "bmp from the top": b"BM" + bytes(12) + struct.pack("<Iii", 40, 60000, -50000) + bytes(28),
    "bmp core": b"BM" + bytes(12) + struct.pack("<IHH", 12, 60000, 50000) + bytes(28),
    "gif": b"GIF89a" + struct.pack("<HH", 60000, 50000) + bytes(20),
    "webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0"
    + bytes(4)
    + (59999).to_bytes(3, "little")
    + (49999).to_bytes(3, "little"),
    "tiff": tiff_bomb("<", False),
    "tiff big-endian": tiff_bomb(">", False),
    "bigtiff": tiff_bomb("<", True),
    "bigtiff big-endian": tiff_bomb(">", True),
    "avif": b"\0\0\0\x18ftypavif"
    + bytes(8)
    + b"\0\0\0\x14ispe\0\0\0\0"
    + struct.pack(">II", 65000, 1)
    + b"\0\0\0\x14ispe\0\0\0\0"
    + struct.pack(">II", 60000, 50000),
}


def webp(kind: str) -> bytes:
    """WebP of the simple forms."""
    lossy = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 0x4000 | 16383)  # scaling bits
    body = lossy if kind == "VP8 " else b"\x2f" + struct.pack("<I", 16382 | 16382 << 14)
    return b"RIFF" + bytes(4) + b"WEBP" + kind.encode() + bytes(4) + body + bytes(20)


def files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> content, and what the refusal says, as a regular expression."""
    made = {
        f"bomb {kind}.{kind.split()[0]}": (data, "60000x50000 = 3000000000 pixels")
        for kind, data in BOMBS.items()
    }
    for kind in ("VP8 ", "VP8L"):
        made[f"bomb {kind.strip()}.webp"] = webp(kind), "16383x16383"
    made["empty.png"] = b"", "."
    made["text.jpg"] = b"<!DOCTYPE html><html>", "."
    return made
