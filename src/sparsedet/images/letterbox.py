"""Photograph -> canvas and back: the contract's input side.

Reads image files, places a photograph on the model's canvas, and checks ready-made canvases.
It neither normalises pixels (that is inside the model) nor knows classes and scores.

Glossary: a photograph is (H, W, 3) uint8 in BGR order, as OpenCV keeps it; the canvas is the
model's input of fixed size; B images a blob. Boxes are xyxy, "normalised" when divided by the
canvas size.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

MAX_PIXELS = 100_000_000
"""Photographs of more pixels are refused unless the caller raises the limit."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused unread; 100 million uncompressed 16-bit RGBA pixels fit."""


# -------------------------------------------------------------------- reading


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> U8:
    """Read a photograph from a file: `decode_image` of its bytes.

    Args:
        path: a JPEG, PNG, WebP, BMP, GIF (first frame), TIFF (first page) or AVIF file, as far
            as the installed OpenCV decodes that format.
        max_pixels: larger pictures are refused before they are decoded (OpenCV's own limit is
            2**30).

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: no such file, not a file, or anything `decode_image` refuses.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a file, expected a photograph")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path}: the file has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}"
            )
        # Read here and not by cv2.imread: that fails on some non-ASCII names on Windows.
        with open(path, "rb") as file:
            data = file.read()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return decode_image(data, str(path), max_pixels=max_pixels)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> U8:
    """Decode a photograph that is in memory.

    The EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit BGR;
    an alpha channel is dropped, not composited (all as OpenCV's IMREAD_COLOR does). The size
    is read from the header before anything is decoded, so a decompression bomb costs nothing;
    a format whose header is not understood here is therefore refused even where OpenCV could
    decode it.

    Args:
        data: the image file's content.
        name: what error messages call it.
        max_pixels: larger pictures are refused before they are decoded.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        InputError: empty, not an image, damaged, truncated, or over the limit.
    """
    if not data:
        raise InputError(f"{name}: the file is empty, expected a photograph")
    size_of = next((read for magic, read in _FORMATS if magic.match(data)), None)
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
    try:
        with _quiet_opencv:
            image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(
            f"{name}: the image is truncated, damaged or of a kind OpenCV {cv2.__version__} "
            "cannot decode"
        )
    return np.ascontiguousarray(image, dtype=np.uint8)


class _QuietOpenCV:
    """Keeps OpenCV's log off stderr while any thread decodes: its warnings become our errors."""

    _log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5; 4.x has the two functions on top

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


_quiet_opencv = _QuietOpenCV()


# ------------------------------------- header of each format: data -> (height, width)
# Each may raise struct.error or ValueError, which means that the data ends too early.

# Not stuffing (00), filling (ff), or a marker without a length (01 and the restarts d0..d7).
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """The frame header's size, after a walk over all segments to the end-of-image marker.

    OpenCV before 4.12 fills the missing part of a truncated JPEG with grey without complaint.
    A cut file has no end-of-image marker, wherever it was cut; the walk, unlike a search,
    steps over the one in an EXIF thumbnail and allows for anything after the picture's own.
    """
    height = width = 0
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == 0xD9:
            return height, width
        (length,) = struct.unpack_from(">H", data, position)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 3)
        position += length
    raise ValueError("no end-of-image marker")


def _png_size(data: bytes) -> tuple[int, int]:
    # OpenCV notices a truncated PNG too, but libpng then writes to stderr. The last chunk's
    # name with its checksum, eight bytes, does not occur by chance.
    data.index(b"IEND\xae\x42\x60\x82")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return abs(height), width  # a negative height means that the top row comes first


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
        return height + 1, width + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _tiff_size(data: bytes) -> tuple[int, int]:
    """Tags 256 and 257 of the first page, of classic TIFF or BigTIFF."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (page,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, page)
    first, step, value = (page + 8, 20, 12) if big else (page + 2, 12, 8)
    size = {256: 0, 257: 0}
    for at in range(first, first + min(entries, 4096) * step, step):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in size:
            code = {3: "H", 4: "I", 16: "Q"}.get(kind, "B")
            (size[tag],) = struct.unpack_from(order + code, data, at + value)
    return size[257], size[256]


def _avif_size(data: bytes) -> tuple[int, int]:
    """The largest `ispe` property: that of the whole picture where it is a grid of tiles."""
    sizes = (struct.unpack_from(">II", data, m.end()) for m in re.finditer(b"ispe\0{4}", data))
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    return height, width


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], tuple[int, int]]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg_size),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png_size),
    (re.compile(rb"RIFF(?s:.{4})WEBP"), _webp_size),
    (re.compile(rb"BM"), _bmp_size),
    (re.compile(rb"GIF8[79]a"), _gif_size),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), _tiff_size),
    (re.compile(rb"(?s:.{4})ftyp(?s:.{4}){0,15}?avi[fs]"), _avif_size),
)


# -------------------------------------------------------------------- placing


@dataclass(frozen=True, slots=True)
class Placement:
    """How a photograph lies on the canvas: resized, in the upper left corner.

    Attributes:
        height, width: of the photograph, pixels.
        dst_height, dst_width: of the photograph resized, canvas pixels.
        canvas_height, canvas_width: pixels.
    """

    height: int
    width: int
    dst_height: int
    dst_width: int
    canvas_height: int
    canvas_width: int

    def to_photo(self, boxes_normalised: NDArray[Any]) -> F32:
        """Boxes on the canvas -> boxes on the photograph.

        Args:
            boxes_normalised: (N, 4) xyxy, fractions of the canvas size, nominally in [0, 1].

        Returns:
            (N, 4) float32 xyxy, pixels of the photograph, clipped to it.

        Source: Open Model Zoo, accuracy checker; its axes have slightly different scales, as
        the resized size is truncated to whole pixels.
        """
        boxes = np.array(boxes_normalised, dtype=np.float64).reshape(-1, 4)
        boxes[:, 0::2] = boxes[:, 0::2] * self.canvas_width / (self.dst_width / self.width)
        boxes[:, 1::2] = boxes[:, 1::2] * self.canvas_height / (self.dst_height / self.height)
        limit = (self.width, self.height, self.width, self.height)
        return np.clip(boxes, 0, limit).astype(np.float32)


def place(
    height: int,
    width: int,
    canvas_height: int,
    canvas_width: int,
    resize: Literal["fit", "stretch"] = "fit",
) -> Placement:
    """Where a photograph of that size goes on the canvas.

    Args:
        height, width: of the photograph, at least 1 pixel.
        canvas_height, canvas_width: pixels.
        resize: "fit" keeps the aspect ratio as far as whole pixels allow, "stretch" fills the
            canvas.

    Raises:
        InputError: an empty photograph or canvas, or an unknown `resize`.

    Source: Open Model Zoo, accuracy checker `fit_to_window`: sizes are truncated, so that
    int((800 / h) * h) is 799 for some h; the lower bound of one pixel is ours.
    """
    if min(height, width, canvas_height, canvas_width) < 1:
        raise InputError(
            f"the photograph has {width}x{height} pixels and the canvas "
            f"{canvas_width}x{canvas_height}, expected at least 1x1"
        )
    if resize == "fit":
        scale = min(canvas_width / width, canvas_height / height)
        size = (max(1, int(scale * height)), max(1, int(scale * width)))
    elif resize == "stretch":
        size = (canvas_height, canvas_width)
    else:
        raise InputError(f"resize is {resize!r}, expected 'fit' or 'stretch'")
    return Placement(height, width, *size, canvas_height, canvas_width)


def check_image(image: U8) -> None:
    """Check that an array is a photograph.

    Raises:
        InputError: it is not (H, W, 3) uint8 with at least one pixel.
    """
    array: Any = image
    if not isinstance(array, np.ndarray):
        raise InputError(f"image is {type(array).__name__}, expected an array (H, W, 3) of uint8")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f"image has shape {array.shape} and type {array.dtype}, "
            "expected (H, W, 3) and uint8 (BGR)"
        )


def to_canvas(
    image: U8,
    canvas_height: int,
    canvas_width: int,
    resize: Literal["fit", "stretch"] = "fit",
) -> tuple[U8, Placement]:
    """Resize a photograph (bilinear) onto the canvas; zeros to its right and below.

    Args:
        image: (H, W, 3) uint8, BGR.
        canvas_height, canvas_width, resize: as for `place`.

    Returns:
        The canvas (canvas_height, canvas_width, 3) uint8 BGR, contiguous, and where the
        photograph lies on it.

    Raises:
        InputError: the image is of another shape or type; and as for `place`.
    """
    check_image(image)
    at = place(image.shape[0], image.shape[1], canvas_height, canvas_width, resize)
    canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    canvas[: at.dst_height, : at.dst_width] = cv2.resize(
        np.ascontiguousarray(image),
        (at.dst_width, at.dst_height),
        interpolation=cv2.INTER_LINEAR,
    )
    return canvas, at


def as_blob(blob: NDArray[Any]) -> U8:
    """Check ready-made canvases, the contract's bare input, and bring them into one form.

    Args:
        blob: [B, 3, H, W] or [B, H, W, 3], BGR, whole numbers 0..255 of any numeric type.

    Returns:
        [B, H, W, 3] uint8, contiguous; `blob` itself where it is that already.

    Raises:
        InputError: another shape, both layouts possible ([B, 3, W, 3]), no images, or values
            that are no whole numbers 0..255 (for example already normalised ones).
    """
    array = np.asarray(blob)
    expected = "expected [B, 3, H, W] or [B, H, W, 3]"
    channels = [axis for axis in (1, 3) if array.ndim == 4 and array.shape[axis] == 3]
    if not channels or not array.size:
        raise InputError(f"blob has shape {list(array.shape)}, {expected}")
    if len(channels) > 1:
        raise InputError(
            f"blob has shape {list(array.shape)}, which fits both layouts, {expected} "
            "with H and W other than 3"
        )
    if array.dtype != np.uint8:
        expected = "expected whole numbers 0..255 (BGR, not normalised)"
        if array.dtype.kind not in "uif":
            raise InputError(f"blob has type {array.dtype}, {expected}")
        with np.errstate(invalid="ignore"):  # NaN and large values become some number ...
            whole = array.astype(np.uint8)
        if not (whole == array).all():  # ... that differs
            raise InputError(f"blob has values from {array.min()} to {array.max()}, {expected}")
        array = whole
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if channels == [1] else array)
