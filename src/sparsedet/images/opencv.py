"""What the readers of all formats share: OpenCV without its log, upright pixels, two errors."""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

DEEP = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
"""OpenCV keeps 16 bits; it would divide by 256 otherwise."""


class DamagedImage(ValueError):
    """A file that is not what its format says; the message says where."""


class UnsupportedImage(ValueError):
    """A whole file of a kind that is not read: its kind, and what to do."""

    def __init__(self, kind: str, advice: str = "save it as PNG or JPEG") -> None:
        super().__init__(f"{kind} is not read here; {advice}")


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


def decode_with_opencv(data: bytes | bytearray, flags: int = cv2.IMREAD_COLOR) -> U8:
    """Pixels as they are stored: (H, W, 3) uint8 BGR, without an orientation.

    Args:
        data: a file that is known to be whole: what OpenCV's libraries complain about goes to the
            terminal.
        flags: IMREAD_COLOR or `DEEP`.

    Raises:
        DamagedImage: OpenCV gives nothing.
    """
    try:
        with quiet_opencv:
            image: Any = cv2.imdecode(
                np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION
            )
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        image = None
    if image is None:
        raise DamagedImage(f"or of a kind that OpenCV {cv2.__version__} cannot decode")
    return to_eight_bits(image)


def to_eight_bits(image: Any) -> U8:
    """16 bits are divided by 257, rounded: 65535 becomes 255."""
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    return np.asarray(image, dtype=np.uint8)


def upright(image: U8, orientation: int) -> U8:
    """Turn an image as a value 1..8 of EXIF's tag 274 says; any other value leaves it."""
    if orientation in (5, 6, 7, 8):  # row 0 of the file is a side of the picture
        image = np.asarray(cv2.transpose(image), dtype=np.uint8)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else np.asarray(cv2.flip(image, flip), dtype=np.uint8)


def unpack_bits(rows: U8, bits: int) -> U8:
    """Numbers of 1, 2, 4 or 8 bits, the highest bits first: (H, bytes) -> (H, numbers)."""
    if bits == 8:
        return rows
    numbers = np.empty((*rows.shape, 8 // bits), np.uint8)
    for i in range(8 // bits):
        numbers[..., i] = rows >> (8 - bits * (i + 1)) & ((1 << bits) - 1)
    return numbers.reshape(len(rows), -1)
