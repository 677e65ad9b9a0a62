"""From an image to the network input of a network without detections."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..model.network import NetworkConfig


def fitted(image: NDArray[np.uint8], config: NetworkConfig) -> NDArray[np.uint8]:
    """An image (H, W, 3) at the size of the network input, as the configuration says."""
    height, width = config.graph.image.size
    if config.resize == "stretch":
        out = cv2.resize(np.ascontiguousarray(image), (width, height))
        return np.asarray(out, np.uint8)
    scale = max(height / image.shape[0], width / image.shape[1]) / config.crop
    size = [
        max(round(n * scale), least) for n, least in zip(image.shape, (height, width), strict=False)
    ]
    resized = cv2.resize(
        np.ascontiguousarray(image), (size[1], size[0]), interpolation=cv2.INTER_AREA
    )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return np.asarray(resized[top : top + height, left : left + width], np.uint8)
