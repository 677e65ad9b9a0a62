"""Small videos, made by OpenCV and by PyAV, and frames that tell their number."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from .small import picture


def frame_image(number: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """A picture whose brightness in the upper left corner is its number, times ten."""
    image = picture(height, width, seed=number % 3).copy()
    image[:32, :32] = 10 * number
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """The number of a frame, after lossy coding."""
    return round(float(image[4:28, 4:28].mean()) / 10)


def write_video(path: Path, frames: int = 12, rate: float = 25.0) -> Path:
    """A Motion JPEG video: OpenCV writes it alone, and each frame stands for itself."""
    height, width = frame_image(0).shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (width, height))
    for number in range(frames):
        writer.write(frame_image(number))
    writer.release()
    return path


def write_h264(path: Path, frames: int = 24) -> Path:
    """As people have them; needs PyAV."""
    pytest.importorskip("av")
    from sparsedet.sinks.video import VideoFile

    video = VideoFile(path, 25.0, overwrite=True)
    for number in range(frames):
        video.write(frame_image(number), number / 25)
    video.close()
    return path


def damage(path: Path) -> None:
    """Overwrite bytes in the second half of an MP4, over the lengths of some frames."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    size = len(data) - start
    for share in (0.6, 0.7):
        place = start + int(share * size)
        data[place : place + size // 20] = b"\xff" * (size // 20)
    path.write_bytes(data)
