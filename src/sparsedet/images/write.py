"""Images to bytes of a file: JPEG, PNG, WebP, AVIF, and what else OpenCV writes."""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .read import quiet_opencv

QUALITY = 90
"""Default of JPEG, WebP and AVIF; photographs look unchanged at about a tenth of PNG's size."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
"""Formats that people look at images in."""

_LONGEST = {
    ".jpg": ("JPEG", 65500),
    ".jpeg": ("JPEG", 65500),
    ".jpe": ("JPEG", 65500),
    ".png": ("PNG", 1_000_000),
    ".webp": ("WebP", 16383),
    ".avif": ("AVIF", 65536),
    ".gif": ("GIF", 65535),
}
"""Suffix -> name of the format, pixels of its longest side. Source: libjpeg's JPEG_MAX_DIMENSION,
libpng's PNG_USER_WIDTH_MAX, libwebp's WEBP_MAX_DIMENSION, libavif's AVIF_MAX_DIMENSION; GIF has 16
bits for it."""

_QUALITY = {
    ".jpg": cv2.IMWRITE_JPEG_QUALITY,
    ".jpeg": cv2.IMWRITE_JPEG_QUALITY,
    ".jpe": cv2.IMWRITE_JPEG_QUALITY,
    ".webp": cv2.IMWRITE_WEBP_QUALITY,  # without it OpenCV writes losslessly
    ".avif": getattr(cv2, "IMWRITE_AVIF_QUALITY", 0),
}


def can_write(name: str) -> bool:
    """Whether the installed OpenCV writes the format that a file's suffix names."""
    suffix = os.path.splitext(name)[1]
    return suffix.isascii() and cv2.haveImageWriter(f"image{suffix}")


def encode_image(image: NDArray[np.uint8], name: str, *, quality: int = QUALITY) -> bytes:
    """The bytes of an image file.

    Args:
        image: (H, W, 3) uint8 BGR.
        name: name of the file; its suffix chooses the format.
        quality: 1..100, of JPEG, WebP and AVIF.

    Raises:
        InputError: a format that the installed OpenCV does not write, or that cannot hold an
            image of this size.
    """
    suffix = os.path.splitext(name)[1].lower()
    if not can_write(name):
        raise InputError(
            f"{name}: cannot write this kind of image, use one of {', '.join(SUFFIXES)}"
        )
    height, width = image.shape[:2]
    label, longest = _LONGEST.get(suffix, (suffix, max(height, width)))
    if max(height, width) > longest:
        advice = "resize the image" if suffix == ".png" else "use .png"
        raise InputError(
            f"{name}: {width}x{height} pixels are too many for {label} ({longest} a side), {advice}"
        )
    settings: list[Any] = [_QUALITY[suffix], quality] if suffix in _QUALITY else []
    try:
        with quiet_opencv:
            ok, data = cv2.imencode(suffix, image, settings)
    except cv2.error:
        ok = False
    if not ok:
        raise InputError(
            f"{name}: OpenCV {cv2.__version__} cannot write these {width}x{height} pixels as "
            f"{label}, use .png"
        )
    return data.tobytes()
