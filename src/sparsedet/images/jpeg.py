"""JPEG: checked block by block in the native core, then decoded by OpenCV.

libjpeg inside OpenCV decodes damaged data as well and says so on the terminal, without a file's
name. The check finds the same faults first. Harmless oddities, of which libjpeg warns too (stray
bytes before a marker, an unknown JFIF version, wrong fields of a scan), are taken out.
"""

from __future__ import annotations

import re
import struct

from .._native import check_jpeg
from .opencv import U8, DamagedImage, UnsupportedImage, decode_with_opencv, upright
from .tags import exif_orientation

# Not stuffing (00), filling (ff), or a marker without a length (01 and the restarts d0..d7).
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")


def size(data: bytes) -> tuple[int, int]:
    """(height, width) of the frame header."""
    position = 2
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", data, position)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 3)
            return height, width
        position += length
    raise DamagedImage("it has no frame header")


def check(data: bytes, pixels: int, keep: bool) -> tuple[str, bytes, bytes]:
    """What is wrong, a form of the file that OpenCV decodes silently, and the EXIF block.

    Args:
        pixels: height x width of the image at most; the check needs memory for them.
        keep: damage is no reason to stop; the form holds what is whole.

    Raises:
        DamagedImage: it is damaged and not kept, or nothing of it can be.
        UnsupportedImage: arithmetic coding, lossless, 12 bits.
    """
    damage, unsupported, odd, clean, start, end = check_jpeg(data, pixels, False)
    if unsupported:
        raise UnsupportedImage(unsupported)
    if damage and not keep:
        raise DamagedImage(damage)
    if not (damage or odd):
        return "", data, data[start:end]
    clean = check_jpeg(data, pixels, True)[3]
    if not clean:
        raise DamagedImage(damage)
    return damage, clean, data[start:end]


def decode(data: bytes, keep: bool) -> tuple[U8, str]:
    """The upright image, and what is wrong with it; see `read.decode_image`."""
    height, width = size(data)
    damage, clean, exif = check(data, height * width, keep)
    return upright(decode_with_opencv(clean), exif_orientation(exif)), damage
