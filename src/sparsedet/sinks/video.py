"""Annotated video: H.264 in MP4, which plays in browsers, written by PyAV (extra `video`)."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..files import check_name, follow, replacing_path

VIDEO_OUTPUTS = (".mp4", ".m4v", ".mov", ".mkv")
_FORMATS = {".mkv": "matroska", ".mov": "mov"}
_CLOCK = 90_000
"""Ticks a second: the usual clock of video, fine enough for every frame rate."""


def pyav() -> Any:
    """The module av.

    Raises:
        InputError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise InputError(
            "writing video needs PyAV: pip install 'sparsedet[video]'; --no-save prints only"
        ) from None
    return av


class VideoFile:
    """One video that is being written; it appears under its name when it is closed.

    Args:
        path: the file.
        rate: frames a second, for players that ask; the times of the frames are exact.
        quality: 1..100; 90 is x264's constant rate factor 20. Its preset is "ultrafast": files
            are twice as large as of "veryfast", for a third of the CPU time.
        overwrite: an existing file may be replaced.

    Raises:
        InputError: PyAV is missing, or the file exists or cannot be written.
    """

    def __init__(
        self, path: Path, rate: float, *, quality: int = 90, overwrite: bool = False
    ) -> None:
        self.av = pyav()
        if path.suffix.lower() not in VIDEO_OUTPUTS:
            raise UsageError(f"{path}: video is written as {', '.join(VIDEO_OUTPUTS)}")
        check_name(path, overwrite=overwrite)
        self.path, self.rate, self.quality = path, rate, quality
        self.size = 0, 0
        self.ticks = -1
        self._stack = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None

    def write(self, image: NDArray[np.uint8], time: float | None) -> None:
        """Append a frame.

        Args:
            image: (H, W, 3) uint8 BGR; frames of another size than the first are resized.
            time: seconds, ascending; None: one frame after the last.

        Raises:
            InputError: it cannot be written.
        """
        try:
            if self._stream is None:
                self._begin(image)
            if image.shape[:2] != self.size:
                image = np.asarray(cv2.resize(image, self.size[::-1]), np.uint8)
            height, width = self.size
            if height % 2 or width % 2:  # colours of H.264 have half the size
                image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
            # OpenCV's conversion takes a third of FFmpeg's time, and is nearer to the image.
            planes = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2YUV_I420)
            frame = self.av.VideoFrame.from_ndarray(planes, format="yuv420p")
            step = round(_CLOCK / self.rate)
            ticks = self.ticks + step if time is None else round(time * _CLOCK)
            self.ticks = max(ticks, self.ticks + 1)
            frame.pts = self.ticks
            frame.time_base = self._stream.codec_context.time_base
            self._container.mux(self._stream.encode(frame))
        except (OSError, self.av.error.FFmpegError) as error:
            raise self._error(error) from None

    def _begin(self, image: NDArray[np.uint8]) -> None:
        try:
            self._open(image)
        except BaseException:
            self._stack.__exit__(*sys.exc_info())  # delete what was begun
            raise

    def _open(self, image: NDArray[np.uint8]) -> None:
        from fractions import Fraction  # here, because pictures do not need it

        self.size = image.shape[0], image.shape[1]
        temporary = self._stack.enter_context(replacing_path(follow(self.path)))
        form = _FORMATS.get(self.path.suffix.lower(), "mp4")
        options = {} if form == "matroska" else {"movflags": "+faststart"}
        self._container = self.av.open(str(temporary), "w", format=form, options=options)
        stream = self._container.add_stream(
            "libx264",
            rate=Fraction(self.rate).limit_denominator(1001),
            options={"crf": str(round(18 + (100 - self.quality) / 4)), "preset": "ultrafast"},
        )
        stream.height, stream.width = (length + length % 2 for length in self.size)
        stream.pix_fmt = "yuv420p"  # browsers play no other
        stream.time_base = Fraction(1, _CLOCK)
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        stream.codec_context.thread_count = 1  # the other CPUs detect
        self._stream = stream

    def close(self) -> Path | None:
        """Finish the file; returns its path, None where no frame was written.

        Raises:
            InputError: it cannot be written.
        """
        if self._stream is None:
            return None
        stream, self._stream = self._stream, None
        try:
            with self._stack:
                self._container.mux(stream.encode())
                self._container.close()
        except (OSError, self.av.error.FFmpegError) as error:
            raise self._error(error) from None
        return self.path

    def _error(self, error: Any) -> InputError:
        return InputError(f"{self.path}: cannot be written ({error.strerror or error})")
