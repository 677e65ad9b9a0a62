"""What a source gives: frames, and in their place what could not be read; and what a part is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

U8 = NDArray[np.uint8]


class Frame(NamedTuple):
    """An image, and where it is from.

    Attributes:
        name: the path or address as it was given, "webcam 0", "stdin", "image 3".
        image: (H, W, 3) uint8 BGR.
        time: seconds since the start of the video or stream; None for a still image.
        number: of the frame in the video or stream, from 0; None for a still image.
    """

    name: str
    image: U8
    time: float | None = None
    number: int | None = None


class BadFrame(NamedTuple):
    """What stands in the place of one or several frames that cannot be read.

    Attributes:
        name: as of `Frame`.
        error: one line, which names it.
    """

    name: str
    error: InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """What is read at most of a source that somebody else controls.

    Attributes:
        image_bytes: of an image from an address or standard input.
        video_bytes: of a video from an address or standard input, kept in a temporary file.
        seconds: for a whole download; a stream (MJPEG, RTSP) may take as long as it likes.
        timeout: seconds without new bytes.
    """

    image_bytes: int = 1 << 28
    video_bytes: int = 1 << 32
    seconds: float = 600.0
    timeout: float = 30.0


class Part:
    """One of the inputs of a source: a file, an address, a camera.

    Attributes:
        name: of all its frames.
        path: of a file, else None.
        moving: it gives several frames, which have a time.
        live: it has no end of its own, and frames that nobody takes are lost.
        once: its frames cannot be read again: a camera, standard input.
    """

    def __init__(
        self, name: str, path: Path | None = None, *, moving: bool = False, live: bool = False
    ) -> None:
        self.name, self.path, self.moving, self.live = name, path, moving, live
        self.once = live

    def count(self) -> int | None:
        """How many frames it will give; None: unknown."""
        return None if self.moving else 1

    def rate(self) -> float:
        """Frames a second, for a video of them; 25 where that is not known."""
        return 25.0

    def read(self) -> Iterator[Frame | BadFrame]:
        """Its frames, in order."""
        raise NotImplementedError


class BadPart(Part):
    """An input that cannot be opened."""

    def __init__(self, name: str, error: InputError) -> None:
        super().__init__(name)
        self.error = error

    def read(self) -> Iterator[Frame | BadFrame]:
        yield BadFrame(self.name, self.error)
