"""Images that a Python program has at hand: arrays, PIL images, bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.read import decode_image, read_image
from .frame import BadFrame, Frame, Part

ImageLike = Any
"""An array (H, W, 3) uint8 BGR, a PIL image, the bytes of an image file, or its path."""


def is_image(value: object) -> bool:
    """Whether it is an image by itself: an array, a PIL image, the bytes of a file."""
    return isinstance(value, np.ndarray | bytes | bytearray | memoryview) or _is_pil(value)


def _is_pil(value: object) -> bool:
    return any(
        base.__module__.startswith("PIL.") and base.__name__ == "Image"
        for base in type(value).__mro__
    )


def to_image(value: Any, name: str = "image", keep_damaged: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR.

    Args:
        value: an array, which is given back as it is; a PIL image, which becomes BGR and is
            turned upright by its EXIF orientation; the path or the bytes of an image file.

    Raises:
        InputError: the bytes are no image, or it is none of these.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str | os.PathLike):
        return read_image(value, keep_damaged=keep_damaged)
    if isinstance(value, bytes | bytearray | memoryview):
        return decode_image(bytes(value), name, keep_damaged=keep_damaged)
    if _is_pil(value):
        from PIL import ImageOps  # it is there: the value is one

        try:
            rgb = np.asarray(ImageOps.exif_transpose(value).convert("RGB"))
        except OSError as error:  # opened lazily
            raise InputError(f"{name}: the image is truncated or damaged ({error})") from None
        return np.ascontiguousarray(rgb[:, :, ::-1])  # PIL has RGB
    raise InputError(
        f"{name} is a {type(value).__name__}, expected an array (H, W, 3), a PIL image, bytes "
        "or a path"
    )


class ValuePart(Part):
    """An image in memory."""

    def __init__(self, name: str, value: Any, keep_damaged: bool = False) -> None:
        super().__init__(name)
        self.value, self.keep_damaged = value, keep_damaged

    def read(self) -> Iterator[Frame | BadFrame]:
        try:
            yield Frame(self.name, to_image(self.value, self.name, self.keep_damaged))
        except InputError as error:
            yield BadFrame(self.name, error)
