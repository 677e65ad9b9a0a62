"""Video files, by OpenCV: every frame in order, and what is said of frames that are damaged.

Why OpenCV and not PyAV: it is there without an extra, needs a third less CPU time to give BGR, and
goes on behind a damaged frame as well; a read that fails says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import InputError
from ..images.read import MAX_PIXELS, quiet_opencv
from .frame import BadFrame, Frame, Part

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp", ".mjpeg", ".mjpg"),
)
"""Files of a folder with these suffixes, in either case, are taken for videos."""

_GIVE_UP = 30
"""Reads that fail in a row before a video counts as ended."""
_SLACK = 0.05
"""Some containers only estimate how many frames they hold; fewer by this share are not missed."""


def is_video(start: bytes) -> bool:
    """Whether a file is a video, by its first 400 bytes.

    Playlists (.m3u8, concat scripts) are none: they make the reader open other files.
    """
    return (
        (start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") and not _is_still(start))
        or start.startswith((b"\x1aE\xdf\xa3", b"FLV", b"0&\xb2u", b"OggS"))
        or start.startswith((b"\0\0\x01\xba", b"\0\0\x01\xb3"))
        or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")
        or (start[:1] == b"G" and start[188:189] == b"G")  # transport stream
        or (start[4:5] == b"G" and start[196:197] == b"G")  # with time codes
    )


def _is_still(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")


def open_capture(what: str | int, timeout: float | None = None) -> Any:
    """An opened cv2.VideoCapture; its messages stay away from the terminal.

    Args:
        what: path of a file, address of a stream, number of a camera.
        timeout: seconds for opening and for each read of a stream.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, by OpenCV's library
    with quiet_opencv:
        if isinstance(what, int):
            return cv2.VideoCapture(what)
        if timeout is None:
            return cv2.VideoCapture(what, cv2.CAP_FFMPEG)
        milliseconds = int(timeout * 1000)
        settings = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
        settings += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        return cv2.VideoCapture(what, cv2.CAP_FFMPEG, settings)


class VideoPart(Part):
    """A video file.

    Args:
        name: of its frames.
        path: the file.
        every: take only each Nth frame.
    """

    def __init__(self, name: str, path: Path, every: int = 1) -> None:
        super().__init__(name, path, moving=True)
        self.file, self.every = path, every

    def count(self) -> int | None:
        capture = self._open()
        if isinstance(capture, InputError):
            return 1
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        return -(-frames // self.every) if frames > 0 else None

    def rate(self) -> float:
        """Frames a second, of those that are taken; 25 where the file does not say."""
        capture = self._open()
        if isinstance(capture, InputError):
            return 25.0
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        capture.release()
        return (rate if 0 < rate <= 1000 else 25.0) / self.every

    def _open(self) -> Any:
        """The capture, or why there is none."""
        name = self.name
        try:
            with open(self.file, "rb") as file:
                start = file.read(400)
        except (OSError, ValueError) as error:
            return InputError(f"{name}: {getattr(error, 'strerror', None) or error}")
        if not start:
            return InputError(f"{name}: the file is empty, expected a video")
        if not is_video(start) and not start.startswith(b"\xff\xd8\xff"):
            return InputError(f"{name}: not a video that is read here, as MP4, MKV, WebM, AVI")
        capture = open_capture(os.fspath(self.file))
        if not capture.isOpened():
            return InputError(f"{name}: the video is truncated or damaged, it cannot be opened")
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if height * width > MAX_PIXELS:
            capture.release()
            return InputError(
                f"{name}: its frames have {width}x{height} pixels, expected at most {MAX_PIXELS}"
            )
        return capture

    def read(self) -> Iterator[Frame | BadFrame]:
        capture = self._open()
        if isinstance(capture, InputError):
            yield BadFrame(self.name, capture)
            return
        try:
            yield from self._read(capture)
        finally:
            capture.release()

    def _read(self, capture: Any) -> Iterator[Frame | BadFrame]:
        declared = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        index = missed = taken = 0
        while missed < _GIVE_UP:
            if not capture.grab():
                missed += 1
                continue
            if missed:
                yield self._bad(_damaged(index, missed))
                index, missed = index + missed, 0
            if index % self.every == 0:
                time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                ok, image = capture.retrieve()
                if ok and image is not None:
                    taken += 1
                    yield Frame(self.name, np.ascontiguousarray(image), time, index)
                else:
                    yield self._bad(_damaged(index, 1))
            index += 1
        if not taken:
            yield self._bad("the video holds no frame that can be decoded")
        elif index < declared * (1 - _SLACK):
            yield self._bad(f"the video ends after {index} of {declared} frames, it is cut")

    def _bad(self, what: str) -> BadFrame:
        return BadFrame(self.name, InputError(f"{self.name}: {what}"))


def _damaged(first: int, count: int) -> str:
    if count == 1:
        return f"frame {first} is damaged"
    return f"frames {first} to {first + count - 1} are damaged"
