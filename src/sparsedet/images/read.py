"""Images: from a file or bytes to pixels."""

from __future__ import annotations

import os
import re
import stat
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..files import what_it_is
from . import bmp, gif, heif, jpeg, png, webp
from .opencv import U8, DamagedImage, UnsupportedImage, quiet_opencv

MAX_PIXELS = 100_000_000
"""Larger images are refused, unless the caller raises the limit."""


MAX_FILE_BYTES = 1 << 30
"""Larger files are refused unread. 100 million uncompressed 16-bit RGBA pixels fit."""


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    """Of its files, in a folder that is searched; how a file is read depends on its content."""
    magic: re.Pattern[bytes]
    size: Callable[[bytes], tuple[int, int]]
    """Height and width, from the header."""
    decode: Callable[[bytes, bool], tuple[U8, str]]
    """Data, and whether damaged images are kept -> upright BGR, and what is wrong with it."""
    structure: Callable[[bytes], str] = lambda data: ""
    """What is wrong with the data's lengths, found without decoding; "": nothing."""


def _tiff_size(data: bytes) -> tuple[int, int]:
    from . import tiff  # takes as long to import as all other formats together, and is rare

    return tiff.size(data)


def _decode_tiff(data: bytes, keep: bool) -> tuple[U8, str]:
    from . import tiff

    return tiff.decode(data, keep)


_FORMATS = (
    _Format(
        (".jpg", ".jpeg", ".jpe", ".jfif"), re.compile(rb"\xff\xd8\xff"), jpeg.size, jpeg.decode
    ),
    _Format((".png",), re.compile(rb"\x89PNG\r\n\x1a\n"), png.size, png.decode, png.damaged_chunks),
    _Format((".webp",), re.compile(rb"RIFF(?s:.{4})WEBP"), webp.size, webp.decode),
    _Format((".bmp", ".dib"), re.compile(rb"BM"), bmp.size, bmp.decode),
    _Format((".gif",), re.compile(rb"GIF8[79]a"), gif.size, gif.decode),
    _Format(
        (".tif", ".tiff"), re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), _tiff_size, _decode_tiff
    ),
    _Format(
        (".avif",),
        re.compile(rb"(?s:.{4})ftyp(?s:.{4}){0,15}?avi[fs]"),
        heif.size,
        heif.decode_avif,
    ),
    _Format(
        (".heic", ".heif"),
        re.compile(rb"(?s:.{4})ftyp(?s:.{4}){0,15}?(?:he[iv][cxms]|m[is]f1)"),
        heif.size,
        heif.decode_heif,
    ),
)

IMAGE_SUFFIXES = tuple(suffix for form in _FORMATS for suffix in form.suffixes)
"""Files of a folder with these suffixes, in either case, are taken for images."""


def read_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, keep_damaged: bool = False
) -> U8:
    """Read an image file.

    Args:
        path: a file of one of the formats that `decode_image` lists.
        max_pixels: limit of height x width, checked before decoding.
        keep_damaged: return what of a damaged image can be decoded, with a warning.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: there is no such file, it is not a file, or `decode_image` refuses it.
    """
    return _decode(_read_file(path), str(path), max_pixels, keep_damaged)


def image_size(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width that the header of an image file declares; nothing is decoded.

    The EXIF orientation is not applied. Of a PNG the lengths of all chunks are checked.

    Raises:
        InputError: as `read_image`, as far as the header shows it.
    """
    data = _read_file(path)
    form, height, width = _header(data, str(path), max_pixels)
    if damage := form.structure(data):
        raise InputError(f"{path}: the image is truncated or damaged ({damage})")
    return height, width


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: not a file but a folder, expected an image; give its files")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a file, expected an image")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path}: the file has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}"
            )
        # Not cv2.imread, which fails for some non-ASCII names on Windows.
        with open(path, "rb") as file:
            return file.read()
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: not enough memory for its {status.st_size} bytes") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def decode_image(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, keep_damaged: bool = False
) -> U8:
    """Decode an image in memory.

    The same picture gives the same pixels from every format that can hold it:

    - Formats: JPEG (baseline and progressive), PNG, WebP, BMP, GIF, TIFF and BigTIFF, AVIF if the
      installed OpenCV decodes it, HEIF if pillow-heif is installed. Of several frames or pages the
      first one is read. `docs/images.md` lists the kinds of each format.
    - The picture is turned upright: by the EXIF orientation; AVIF and HEIF by their own rotation
      and mirroring, never by EXIF.
    - Grey, palettes, CMYK and YCbCr become BGR. An alpha channel is dropped, not composited; where
      the file's colours are multiplied by it (TIFF's associated alpha), that is undone.
    - 16 bits become 8 by a division by 257, rounded. Colour profiles and gamma are not applied.
    - The size is read from the header first, and every length and offset is held against the
      file's end, so a decompression bomb costs nothing. A format whose header is unknown here is
      refused, even if OpenCV could decode it.

    Args:
        data: content of the image file.
        name: name in error messages.
        max_pixels: limit of height x width, checked before decoding.
        keep_damaged: return what can be decoded of an image with damage inside its data, with a
            UserWarning that names it; plain or black pixels stand for the rest. Of WebP, AVIF and
            HEIF nothing can be.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: it is empty, not an image, damaged, truncated, too large, or of a kind that is
            not read.
    """
    return _decode(bytes(data), name, max_pixels, keep_damaged)


def _decode(data: bytes, name: str, max_pixels: int, keep_damaged: bool) -> U8:
    form, height, width = _header(data, name, max_pixels)
    try:
        image, damage = form.decode(data, keep_damaged)
    except UnsupportedImage as kind:
        raise InputError(f"{name}: {kind}") from None
    except DamagedImage as error:
        raise InputError(f"{name}: the image is truncated or damaged ({error})") from None
    except struct.error:
        raise InputError(f"{name}: the image is truncated or damaged (a header is cut)") from None
    except MemoryError:
        raise InputError(f"{name}: not enough memory for its {width}x{height} pixels") from None
    if damage:
        warnings.warn(
            f"{name}: the image is truncated or damaged ({damage}); what could be decoded is used",
            stacklevel=3,
        )
    return np.ascontiguousarray(image)


def _header(data: bytes, name: str, max_pixels: int) -> tuple[_Format, int, int]:
    """The format of an image, and the height and width that its header declares."""
    if not data:
        raise InputError(f"{name}: the file is empty, expected an image")
    form = next((form for form in _FORMATS if form.magic.match(data)), None)
    if form is None:
        kind = what_it_is(data[:128])
        kind = kind or "not a JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIF image"
        raise InputError(f"{name}: {kind}")
    try:
        height, width = form.size(data)
    except UnsupportedImage as kind:
        raise InputError(f"{name}: {kind}") from None
    except DamagedImage as error:
        raise InputError(f"{name}: the image is truncated or damaged ({error})") from None
    except struct.error:
        raise InputError(f"{name}: the image is truncated or damaged (a header is cut)") from None
    if height < 1 or width < 1:
        raise InputError(
            f"{name}: the image is truncated or damaged (it declares {width}x{height} pixels)"
        )
    if height * width > max_pixels:
        raise InputError(
            f"{name}: the image has {width}x{height} = {height * width} pixels, "
            f"expected at most {max_pixels}"
        )
    return form, height, width


__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "U8",
    "decode_image",
    "image_size",
    "quiet_opencv",
    "read_image",
]
