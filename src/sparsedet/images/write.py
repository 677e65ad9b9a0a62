"""Images to bytes of a file: JPEG, PNG, WebP and AVIF."""

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

_FORMATS = {
    ".jpg": ("JPEG", 65500, cv2.IMWRITE_JPEG_QUALITY),
    ".jpeg": ("JPEG", 65500, cv2.IMWRITE_JPEG_QUALITY),
    ".png": ("PNG", 1_000_000, None),
    ".webp": ("WebP", 16383, cv2.IMWRITE_WEBP_QUALITY),
    ".avif": ("AVIF", 65536, getattr(cv2, "IMWRITE_AVIF_QUALITY", None)),
}
"""Suffix -> name, longest side in pixels, OpenCV's flag of the quality."""

SUFFIXES = tuple(_FORMATS)


def encode_image(image: NDArray[np.uint8], name: str, *, quality: int = QUALITY) -> bytes:
    """The bytes of an image file.

    Args:
        image: (H, W, 3) uint8 BGR.
        name: name of the file; its suffix chooses the format.
        quality: 1..100, of JPEG, WebP and AVIF; PNG is lossless.

    Raises:
        InputError: an unknown suffix, an image too large for the format, or a format that the
            installed OpenCV does not write.
    """
    known = _FORMATS.get(os.path.splitext(name)[1].lower())
    if known is None:
        raise InputError(
            f"{name}: cannot write this kind of image, use one of {', '.join(SUFFIXES)}"
        )
    label, longest, flag = known
    height, width = image.shape[:2]
    if max(height, width) > longest:
        raise InputError(
            f"{name}: {width}x{height} pixels are too many for {label} ({longest} a side), use .png"
        )
    settings: list[Any] = [] if flag is None else [flag, quality]
    try:
        with quiet_opencv:
            ok, data = cv2.imencode(os.path.splitext(name)[1], image, settings)
    except cv2.error:
        ok = False
    if not ok:
        raise InputError(f"{name}: OpenCV {cv2.__version__} does not write {label} here, use .png")
    return data.tobytes()
