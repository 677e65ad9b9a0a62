"""Photograph -> network input and back: the contract's input side.

Places a photograph on the model's network input, and checks ready-made network inputs.
It neither normalises pixels (that is inside the model) nor knows classes and scores.

Glossary: a photograph is (H, W, 3) uint8 in BGR order, as OpenCV keeps it; the network input is the
model's input of fixed size; B images a blob. Boxes are xyxy, "normalised" when divided by the
network input size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How a photograph lies on the network input: resized, in the upper left corner.

    Attributes:
        height, width: of the photograph, pixels.
        resized_height, resized_width: of the photograph resized, network input pixels.
        input_height, input_width: pixels.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    input_height: int
    input_width: int

    def to_image(self, boxes_normalised: NDArray[Any]) -> F32:
        """Boxes on the network input -> boxes on the photograph.

        Args:
            boxes_normalised: (N, 4) xyxy, fractions of the network input size, nominally in [0, 1].

        Returns:
            (N, 4) float32 xyxy, pixels of the photograph, clipped to it.

        Source: Open Model Zoo, accuracy checker; its axes have slightly different scales, as
        the resized size is truncated to whole pixels.
        """
        boxes = np.array(boxes_normalised, dtype=np.float64).reshape(-1, 4)
        boxes[:, 0::2] = boxes[:, 0::2] * self.input_width / (self.resized_width / self.width)
        boxes[:, 1::2] = boxes[:, 1::2] * self.input_height / (self.resized_height / self.height)
        limit = (self.width, self.height, self.width, self.height)
        return np.clip(boxes, 0, limit).astype(np.float32)


def fit_letterbox(
    height: int,
    width: int,
    input_height: int,
    input_width: int,
    resize: Literal["letterbox", "stretch"] = "letterbox",
) -> Letterbox:
    """Where a photograph of that size goes on the network input.

    Args:
        height, width: of the photograph, at least 1 pixel.
        input_height, input_width: pixels.
        resize: "letterbox" keeps the aspect ratio as far as whole pixels allow, "stretch" fills the
            network input.

    Raises:
        InputError: an empty photograph or network input, or an unknown `resize`.

    Source: Open Model Zoo, accuracy checker `fit_to_window`: sizes are truncated, so that
    int((800 / h) * h) is 799 for some h; the lower bound of one pixel is ours.
    """
    if min(height, width, input_height, input_width) < 1:
        raise InputError(
            f"the photograph has {width}x{height} pixels and the network input "
            f"{input_width}x{input_height}, expected at least 1x1"
        )
    if resize == "letterbox":
        scale = min(input_width / width, input_height / height)
        size = (max(1, int(scale * height)), max(1, int(scale * width)))
    elif resize == "stretch":
        size = (input_height, input_width)
    else:
        raise InputError(f"resize is {resize!r}, expected 'letterbox' or 'stretch'")
    return Letterbox(height, width, *size, input_height, input_width)


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


def to_network_input(
    image: U8,
    input_height: int,
    input_width: int,
    resize: Literal["letterbox", "stretch"] = "letterbox",
) -> tuple[U8, Letterbox]:
    """Resize a photograph (bilinear) onto the network input; zeros to its right and below.

    Args:
        image: (H, W, 3) uint8, BGR.
        input_height, input_width, resize: as for `fit_letterbox`.

    Returns:
        The network input (input_height, input_width, 3) uint8 BGR, contiguous, and where the
        photograph lies on it.

    Raises:
        InputError: the image is of another shape or type; and as for `fit_letterbox`.
    """
    check_image(image)
    at = fit_letterbox(image.shape[0], image.shape[1], input_height, input_width, resize)
    network_input = np.zeros((input_height, input_width, 3), np.uint8)
    network_input[: at.resized_height, : at.resized_width] = cv2.resize(
        np.ascontiguousarray(image),
        (at.resized_width, at.resized_height),
        interpolation=cv2.INTER_LINEAR,
    )
    return network_input, at


def as_blob(blob: NDArray[Any]) -> U8:
    """Check ready-made network inputs, the contract's bare input, and bring them into one form.

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
