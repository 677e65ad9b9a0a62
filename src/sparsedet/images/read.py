"""Images: from a file or bytes to pixels."""

from __future__ import annotations

import os
import stat
import struct
import threading
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .headers import FORMATS

U8 = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""Larger images are refused, unless the caller raises the limit."""


MAX_FILE_BYTES = 1 << 30
"""Larger files are refused unread. 100 million uncompressed 16-bit RGBA pixels fit."""


def read_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, keep_damaged: bool = False
) -> U8:
    """Read an image file.

    Args:
        path: JPEG, PNG, WebP, BMP, GIF (first frame), TIFF (first page) or AVIF file, if the
            installed OpenCV decodes that format.
        max_pixels: limit of height x width, checked before decoding (OpenCV's own limit is
            2**30).
        keep_damaged: return what of a damaged image can be decoded, with a warning.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: there is no such file, it is not a file, or `decode_image` refuses it.
    """
    return decode_image(_read_file(path), str(path), max_pixels=max_pixels)


def image_size(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of an image file from its header, before any EXIF orientation.

    Raises:
        InputError: as `read_image`, as far as that shows without decoding.
    """
    return _header_size(_read_file(path), str(path), max_pixels)


def _read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's content; raises InputError if it is none, too large or cannot be read."""
    try:
        status = os.stat(path)
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
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> U8:
    """Decode an image in memory.

    The EXIF orientation is applied. Grey, palette, CMYK and 16-bit images become 8-bit BGR; an
    alpha channel is dropped, not composited (all of it by OpenCV's IMREAD_COLOR). The size is
    read from the header before anything is decoded, so a decompression bomb costs nothing. A
    format whose header is unknown here is refused, even if OpenCV could decode it.

    Args:
        data: content of the image file.
        name: name in error messages.
        max_pixels: limit of height x width, checked before decoding.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: it is empty, not an image, damaged, truncated, or too large.
    """
    _header_size(data, name, max_pixels)
    try:
        with quiet_opencv:
            image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(
            f"{name}: the image is truncated, damaged or of a kind OpenCV {cv2.__version__} "
            "cannot decode"
        )
    return np.ascontiguousarray(image, dtype=np.uint8)


def _header_size(data: bytes, name: str, max_pixels: int) -> tuple[int, int]:
    """Height and width that the header declares; raises InputError as `decode_image`."""
    if not data:
        raise InputError(f"{name}: the file is empty, expected an image")
    size_of = next((read for magic, read in FORMATS if magic.match(data)), None)
    if size_of is None:
        raise InputError(f"{name}: not a JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF image")
    try:
        height, width = size_of(data)
    except (struct.error, ValueError):
        raise InputError(f"{name}: the image is truncated or damaged") from None
    if height < 1 or width < 1:
        raise InputError(f"{name}: the image is damaged (it declares {width}x{height} pixels)")
    if height * width > max_pixels:
        raise InputError(
            f"{name}: the image has {width}x{height} = {height * width} pixels, "
            f"expected at most {max_pixels}"
        )
    return height, width


class _QuietOpenCV:
    """Keeps OpenCV's log off stderr while any thread decodes: its warnings become our errors."""

    _log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5; 4.x has the functions in cv2

    def __init__(self) -> None:
        self._lock, self._threads, self._level = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            if self._threads == 0:
                self._level = self._log.getLogLevel()
                self._log.setLogLevel(0)
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._log.setLogLevel(self._level)


quiet_opencv = _QuietOpenCV()
