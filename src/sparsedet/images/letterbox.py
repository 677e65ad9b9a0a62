"""From an image to the network input, and boxes back.

Pixels are normalised inside the model, not here.

Glossary: an image is (H, W, 3) uint8 BGR, as OpenCV reads it; the network input has the model's
size; a blob holds B network inputs. Boxes are xyxy, *normalised* when divided by the size of the
network input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.record import Record

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Letterbox(Record):
    """An image in the network input: resized, in the upper left corner or elsewhere.

    Attributes:
        height, width: size of the image in pixels.
        resized_height, resized_width: its size in the network input.
        input_height, input_width: size of the network input.
        top, left: pixels of the network input above the image, and to its left.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    input_height: int
    input_width: int
    top: int = 0
    left: int = 0

    def to_image(self, boxes_normalised: NDArray[Any], *, clip: bool = True) -> F32:
        """Map boxes from the network input to the image.

        Args:
            boxes_normalised: (N, 4) xyxy, divided by the network input's size, nominally 0..1.
            clip: whether boxes end at the image's edges.

        Returns:
            (N, 4) float32 xyxy in pixels of the image.

        Source: Open Model Zoo, accuracy checker. The two axes have slightly different scales,
        because the resized size is truncated to whole pixels.
        """
        boxes = np.array(boxes_normalised, dtype=np.float64).reshape(-1, 4)
        across, down = self.resized_width / self.width, self.resized_height / self.height
        boxes[:, 0::2] = (boxes[:, 0::2] * self.input_width - self.left) / across
        boxes[:, 1::2] = (boxes[:, 1::2] * self.input_height - self.top) / down
        if clip:
            boxes = np.clip(boxes, 0, (self.width, self.height, self.width, self.height))
        return boxes.astype(np.float32)


def fit_letterbox(
    height: int,
    width: int,
    input_height: int,
    input_width: int,
    resize: Literal["letterbox", "stretch"] = "letterbox",
    centred: bool = False,
) -> Letterbox:
    """The letterbox of an image of that size.

    Args:
        height, width: size of the image, at least 1 pixel.
        input_height, input_width: size of the network input in pixels.
        resize: "letterbox" keeps the aspect ratio as far as whole pixels allow; "stretch" fills
            the network input.
        centred: a letterbox has its image in the middle, and sizes are rounded, as Ultralytics'
            detectors need it.

    Raises:
        InputError: the image or the network input is empty, or `resize` is unknown.

    Source: Open Model Zoo, accuracy checker, `fit_to_window`. Sizes are truncated, so
    int((800 / h) * h) is 799 for some h; the minimum of one pixel is our own.
    """
    if min(height, width, input_height, input_width) < 1:
        raise InputError(
            f"the image has {width}x{height} pixels and the network input "
            f"{input_width}x{input_height}, expected at least 1x1"
        )
    if resize == "letterbox":
        scale = min(input_width / width, input_height / height)
        if centred:
            rounded = max(1, round(scale * height)), max(1, round(scale * width))
            top, left = (input_height - rounded[0]) // 2, (input_width - rounded[1]) // 2
            return Letterbox(height, width, *rounded, input_height, input_width, top, left)
        size = (max(1, int(scale * height)), max(1, int(scale * width)))
    elif resize == "stretch":
        size = (input_height, input_width)
    else:
        raise InputError(f"resize is {resize!r}, expected 'letterbox' or 'stretch'")
    return Letterbox(height, width, *size, input_height, input_width)


def fit_shorter(
    height: int, width: int, min_size: float, max_size: float, divisor: int
) -> Letterbox:
    """The letterbox of an image whose network input depends on its size.

    Args:
        height, width: size of the image, at least 1 pixel.
        min_size, max_size: of the resized image's shorter side, and at most of its longer one.
        divisor: height and width of the network input are its multiples.

    Source: torchvision, `GeneralizedRCNNTransform`, not scripted. Sizes are truncated products in
    float64; in float32, as in its scripted form, some differ by a pixel.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    size = [max(1, int(length * scale)) for length in (height, width)]
    padded = [-(-length // divisor) * divisor for length in size]
    return Letterbox(height, width, *size, *padded)


def bilinear_positions(
    length: int, out: int, first: int = 0, last: int | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp], F32]:
    """Where bilinear interpolation without antialiasing reads along one axis.

    Args:
        length, out: number of pixels before and after.
        first, last: only the new pixels first, ..., last - 1; default: all.

    Returns:
        The two pixels that each new one is between, and the share of the second, 0..1.

    Source: torch, `upsample_bilinear2d` with align_corners=False; positions in float32.
    """
    scale = float(np.float32(length) / np.float32(out))
    exact = np.maximum(scale * (np.arange(first, out if last is None else last) + 0.5) - 0.5, 0)
    at: F32 = exact.astype(np.float32)  # rounded once
    low = np.minimum(at.astype(np.intp), length - 1)
    part: F32 = at - low.astype(np.float32)
    return low, np.minimum(low + 1, length - 1), part


def resize_bilinear(image: U8, height: int, width: int) -> F32:
    """The image in another size, by torch's bilinear interpolation without antialiasing.

    OpenCV has the same formula, but other positions in their last bits; a value then
    differs by up to 0.01.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (height, width, 3) float32, not rounded.

    Source: as of `bilinear_positions`.
    """
    left, right, x = bilinear_positions(image.shape[1], width)
    top, bottom, y = bilinear_positions(image.shape[0], height)
    across, down = x[None, :, None], y[:, None, None]
    pixels = image.astype(np.float32)
    rows = pixels[:, left] * (1 - across) + pixels[:, right] * across
    return np.asarray(rows[top] * (1 - down) + rows[bottom] * down, dtype=np.float32)


class Preparation(Protocol):
    """What of a detector's configuration says how an image becomes its network input."""

    @property
    def input_height(self) -> int: ...
    @property
    def input_width(self) -> int: ...
    @property
    def resize(self) -> str: ...
    @property
    def border(self) -> int: ...
    @property
    def centred(self) -> bool: ...


def prepare(image: U8, config: Preparation) -> tuple[NDArray[Any], Letterbox]:
    """The network input of an image, as a detector's configuration says.

    Args:
        image: (H, W, 3) uint8, BGR.
        config: a `ModelConfig` or `DetectorConfig`; "shorter" needs the latter.

    Returns:
        The network input (H, W, 3) BGR, contiguous: uint8, or float32 where resizing is not
        rounded ("shorter"); and the mapping back to the image.

    Raises:
        InputError: the image has another shape or type.
    """
    if config.resize != "shorter":
        size: Any = (config.input_height, config.input_width, config.resize)
        return to_network_input(image, *size, border=config.border, centred=config.centred)
    check_image(image)
    shorter: Any = config
    height, width = image.shape[0], image.shape[1]
    at = fit_shorter(height, width, shorter.min_size, shorter.max_size, shorter.divisor)
    network_input = np.empty((at.input_height, at.input_width, 3), np.float32)
    network_input[:] = shorter.fill
    network_input[: at.resized_height, : at.resized_width] = resize_bilinear(
        image, at.resized_height, at.resized_width
    )
    return network_input, at


def check_image(image: U8) -> None:
    """Check that an array is an image.

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


def to_network_input(
    image: U8,
    input_height: int,
    input_width: int,
    resize: Literal["letterbox", "stretch"] = "letterbox",
    *,
    border: int = 0,
    centred: bool = False,
) -> tuple[U8, Letterbox]:
    """Resize an image into the network input.

    Args:
        image: (H, W, 3) uint8, BGR.
        input_height, input_width, resize, centred: as for `fit_letterbox`.
        border: value of all pixels beside the image, 0..255.

    Returns:
        The network input (input_height, input_width, 3) uint8 BGR, contiguous, and the mapping
        back to the image.

    Raises:
        InputError: the image has another shape or type; and as for `fit_letterbox`.
    """
    check_image(image)
    at = fit_letterbox(image.shape[0], image.shape[1], input_height, input_width, resize, centred)
    network_input = np.full((input_height, input_width, 3), border, np.uint8)
    rows, columns = (
        slice(first, first + length)
        for first, length in ((at.top, at.resized_height), (at.left, at.resized_width))
    )
    network_input[rows, columns] = cv2.resize(
        np.ascontiguousarray(image),
        (at.resized_width, at.resized_height),
        interpolation=cv2.INTER_LINEAR,
    )
    return network_input, at


def as_blob(blob: NDArray[Any]) -> U8:
    """Check ready-made network inputs and bring them into one layout.

    Args:
        blob: [B, 3, H, W] or [B, H, W, 3], BGR, whole numbers 0..255 of any numeric type.

    Returns:
        [B, H, W, 3] uint8, contiguous; `blob` itself if it is that already.

    Raises:
        InputError: another shape, a shape that fits both layouts ([B, 3, W, 3]), no images, or
            values other than whole numbers 0..255 (for example normalised ones).
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
        with np.errstate(invalid="ignore"):  # NaN and large values become another number ...
            whole = array.astype(np.uint8)
        if not (whole == array).all():  # ... and are found here
            raise InputError(f"blob has values from {array.min()} to {array.max()}, {expected}")
        array = whole
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if channels == [1] else array)
