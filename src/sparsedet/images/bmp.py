"""BMP: read here, since OpenCV reads bit fields its own way; run lengths (RLE) are OpenCV's."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from .opencv import U8, DamagedImage, UnsupportedImage, decode_with_opencv, unpack_bits

_RGB, _RLE8, _RLE4, _BIT_FIELDS, _ALPHA_BIT_FIELDS = 0, 1, 2, 3, 6


def size(data: bytes) -> tuple[int, int]:
    """(height, width); a negative height in the file says that the top row comes first."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return abs(height), width


def decode(data: bytes, keep: bool) -> tuple[U8, str]:
    """The image, and what is wrong with it; see `read.decode_image`."""
    height, width = size(data)
    start, header_bytes = struct.unpack_from("<II", data, 10)
    old = header_bytes == 12
    if not old and not 40 <= header_bytes <= 124:
        raise DamagedImage(f"its header has {header_bytes} bytes")
    (bits,) = struct.unpack_from("<H", data, 24 if old else 28)
    compression = 0 if old else struct.unpack_from("<I", data, 30)[0]
    if bits not in (1, 2, 4, 8, 16, 24, 32):
        raise DamagedImage(f"it has {bits} bits a pixel")
    if compression in (_RLE8, _RLE4):
        return decode_with_opencv(data), ""
    if compression not in (_RGB, _BIT_FIELDS, _ALPHA_BIT_FIELDS):
        raise UnsupportedImage(f"BMP with compression {compression}")
    palette_at = 14 + header_bytes
    masks = [0x7C00, 0x3E0, 0x1F] if bits == 16 else [0xFF0000, 0xFF00, 0xFF]
    if compression != _RGB:  # in a header of 40 bytes they follow it
        masks = list(struct.unpack_from("<III", data, 54))
        if header_bytes < 52:
            palette_at += 12 if compression == _BIT_FIELDS else 16
    start = max(start, palette_at) if start else palette_at
    row_bytes = (width * bits + 31) // 32 * 4
    packed = np.frombuffer(memoryview(data)[start : start + height * row_bytes], np.uint8)
    damage = ""
    if len(packed) < height * row_bytes:
        damage = f"it ends after {len(packed) // row_bytes} of {height} rows"
        if not keep or len(packed) < row_bytes:
            raise DamagedImage(damage)
        packed = np.pad(packed, (0, height * row_bytes - len(packed)))
    rows = packed.reshape(height, row_bytes)
    if not old and struct.unpack_from("<i", data, 22)[0] < 0:
        rows = rows[::-1]
    rows = rows[::-1]
    if bits <= 8:
        entry = 3 if old else 4
        colours = np.frombuffer(
            data[palette_at : min(start, palette_at + (entry << bits))], np.uint8
        )
        palette = np.zeros((1 << bits, 3), np.uint8)
        colours = colours[: len(colours) // entry * entry].reshape(-1, entry)[:, :3]
        palette[: len(colours)] = colours
        return palette[unpack_bits(rows, bits)[:, :width]], damage
    if bits == 24:
        return np.array(rows[:, : 3 * width], order="C").reshape(height, width, 3), damage
    pixels = np.ascontiguousarray(rows).view(f"<u{bits // 8}")[:, :width]
    if bits == 32 and masks == [0xFF0000, 0xFF00, 0xFF]:
        return np.array(rows.reshape(height, -1, 4)[:, :width, :3], order="C"), damage
    return np.dstack([_channel(pixels, mask) for mask in reversed(masks)]), damage


def _channel(pixels: NDArray[np.unsignedinteger], mask: int) -> U8:
    """The bits of a mask, scaled to 0..255."""
    if mask == 0:
        return np.zeros(pixels.shape, np.uint8)
    low = (mask & -mask).bit_length() - 1
    low += max(0, mask.bit_length() - low - 12)  # more than 12 bits change nothing
    most = mask >> low
    scaled: U8 = np.round(np.arange(most + 1) * 255 / most).astype(np.uint8)
    values = (pixels & pixels.dtype.type(mask)) >> pixels.dtype.type(low)
    return np.asarray(scaled[values], np.uint8)
