"""Cameras and network streams: always the newest frame, because they do not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import InputError
from .frame import BadFrame, Frame, Part
from .video import open_capture

STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt")


class LivePart(Part):
    """A camera or a stream. Frames that come while the last one is not taken yet are dropped.

    Args:
        name: of its frames.
        what: number of a camera, address of a stream.
        every: take only each Nth frame.
        timeout: seconds for opening, and without a frame.
        open: makes the capture, as cv2.VideoCapture; tests give another one.
    """

    def __init__(
        self,
        name: str,
        what: str | int,
        every: int = 1,
        timeout: float = 30.0,
        open: Callable[[str | int, float], Any] = open_capture,
    ) -> None:
        super().__init__(name, moving=True, live=True)
        self.what, self.every, self.timeout, self.open = what, every, timeout, open

    def rate(self) -> float:
        """Frames a second for a video of it; cameras often do not say theirs."""
        return 25.0 / self.every

    def read(self) -> Iterator[Frame | BadFrame]:
        capture = self.open(self.what, self.timeout)
        if not capture.isOpened():
            kind = "camera" if isinstance(self.what, int) else "stream"
            error = f"{self.name}: the {kind} cannot be opened; is it there, and may you use it?"
            yield BadFrame(self.name, InputError(error))
            return
        newest = _Newest(capture)
        taken = 0
        try:
            while (frame := newest.take(self.timeout)) is not None:
                index, seconds, image = frame
                if index % self.every == 0:
                    taken += 1
                    yield Frame(self.name, np.ascontiguousarray(image), seconds, index)
            if not taken:
                yield BadFrame(self.name, InputError(f"{self.name}: it gives no frame"))
            elif newest.silent:
                what = f"no frame for {self.timeout:g} s, given up after {taken} frames"
                yield BadFrame(self.name, InputError(f"{self.name}: {what}"))
        finally:
            newest.stop()


class _Newest:
    """Reads a capture without a pause, and keeps one frame."""

    def __init__(self, capture: Any) -> None:
        self.capture, self.silent = capture, False
        self.frame: tuple[int, float, Any] | None = None
        self.ended = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="sparsedet camera", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        index, start = 0, time.monotonic()
        while not self.ended:
            ok, image = self.capture.read()
            with self.changed:
                if ok and image is not None:
                    self.frame = index, time.monotonic() - start, image
                else:
                    self.ended = True
                self.changed.notify_all()
            index += 1
        self.capture.release()

    def take(self, timeout: float) -> tuple[int, float, Any] | None:
        """The newest frame that was not taken; None at the end, or when none comes."""
        with self.changed:
            self.changed.wait_for(lambda: self.frame is not None or self.ended, timeout)
            self.silent = self.frame is None and not self.ended
            frame, self.frame = self.frame, None
            return frame

    def stop(self) -> None:
        self.ended = True
