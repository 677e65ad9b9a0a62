"""Where images come from: files, folders, addresses, cameras, standard input, Python values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from ..errors import InputError, UsageError
from .frame import BadFrame, Frame, Limits, Part
from .parts import Reading, parts_of

__all__ = ["BadFrame", "Frame", "ImageSource", "Limits", "Part", "open_source"]

Bad = Literal["stop", "skip", "keep"]


class ImageSource:
    """Images of one or several inputs, in order; made by `open_source`.

    Iterating gives `Frame`s: (name, image, time, number).

    Attributes:
        parts: the inputs; a sequence, or an iterator where the source was one.
        bad_images: what a frame that cannot be read does to the iteration.
    """

    def __init__(self, parts: Iterable[Part], bad_images: Bad = "stop") -> None:
        self.parts, self.bad_images = parts, bad_images

    @property
    def live(self) -> bool:
        """Whether one of its inputs is a camera or a stream."""
        return isinstance(self.parts, Sequence) and any(part.live for part in self.parts)

    @property
    def once(self) -> bool:
        """Whether one of its inputs cannot be read again."""
        return isinstance(self.parts, Sequence) and any(part.once for part in self.parts)

    def count(self) -> int | None:
        """How many frames it will give; None: unknown."""
        if not isinstance(self.parts, Sequence):
            return None
        total = 0
        for part in self.parts:
            if (count := part.count()) is None:
                return None
            total += count
        return total

    def read(self) -> Iterator[Frame | BadFrame]:
        """All frames, and in their place a `BadFrame` for what cannot be read."""
        for part in self.parts:
            yield from part.read()

    def __iter__(self) -> Iterator[Frame]:
        """Raises InputError at a bad frame, or warns and leaves it out (`bad_images`)."""
        for frame in self.read():
            if isinstance(frame, Frame):
                yield frame
            elif self.bad_images == "stop":
                raise frame.error
            else:
                warnings.warn(f"left out: {frame.error}", stacklevel=2)


def open_source(
    anything: Any,
    *,
    recursive: bool = False,
    every: int = 1,
    bad_images: Bad = "stop",
    limits: Limits | None = None,
) -> ImageSource:
    """Images from anything.

    >>> source = open_source("examples")
    >>> [(frame.name, frame.image.shape) for frame in source]
    [('examples/beach.jpg', (427, 640, 3)), ('examples/frisbee.jpg', (457, 640, 3))]

    Args:
        anything: a path of an image, a video, a folder of both, or a list (.txt: a path or
            address a line, relative to the list); a pattern (`photos/*.jpg`, `**/*.png`); an http
            or https address of an image, a video or a camera's MJPEG; rtsp and rtmp; `-` for
            standard input; a number for a webcam; an array (H, W, 3) uint8 BGR, a PIL image, the
            bytes of an image file, an opened file; or several of all these. An iterator is read
            as it is needed.
        recursive: look into the subfolders of folders.
        every: take only each Nth frame of videos and streams.
        bad_images: "stop": a frame that cannot be read is an error. "skip": it is left out, with
            a warning. "keep": what can be decoded of a damaged image is used, with a warning.
        limits: what is read at most from addresses and standard input.

    Raises:
        InputError: `every` is less than 1, or `bad_images` is unknown. What is wrong with an
            input is raised when its turn comes.
    """
    if every < 1:
        raise UsageError(f"every is {every}, expected at least 1")
    if bad_images not in get_args(Bad):
        raise InputError(f"bad_images is {bad_images!r}, expected one of {get_args(Bad)}")
    if isinstance(anything, ImageSource):
        return anything
    how = Reading(recursive, every, bad_images == "keep", limits or Limits())
    parts = parts_of(anything, how)
    return ImageSource(parts if isinstance(anything, Iterator) else list(parts), bad_images)
