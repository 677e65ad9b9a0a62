"""Annotated copies of what came: of images as pictures, of videos and streams as video."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections
from ..errors import InputError, UsageError
from ..files import check_name, make_folder
from ..images.draw import load_font
from ..images.write import QUALITY
from ..sources import Frame, ImageSource, Part
from .base import Sink, safe_name
from .picture import AnnotatedImages
from .video import VIDEO_OUTPUTS, VideoFile, pyav


class Annotated(Sink):
    """Draws the detections on each frame.

    Args:
        source: of the frames; none of its files is written over.
        output: a file for one input; a folder for several, or with a slash at its end; default:
            beside each input, as NAME_detected.EXT. Inputs that are no files (cameras, addresses,
            standard input) are then not saved.
        several: more than one input may come; default: the source has more than one part.
        overwrite: existing files may be replaced.
        quality: 1..100, of JPEG, WebP, AVIF and video.

    Raises:
        InputError: the name of the output cannot be used, or PyAV is missing for a video.
    """

    replays = True

    def __init__(
        self,
        source: ImageSource,
        output: str | None = None,
        *,
        several: bool | None = None,
        overwrite: bool = False,
        quality: int = QUALITY,
    ) -> None:
        parts = source.parts if isinstance(source.parts, list) else []
        self.parts: dict[str, Part] = {part.name: part for part in parts}
        self.output, self.quality = output, quality
        self.video: VideoFile | None = None
        self.name = ""  # of the video that is being written
        self.begun: set[str] = set()
        several = len(parts) != 1 if several is None else several
        self.one_file = (
            output is not None
            and not several
            and not output.endswith(os.sep)
            and not os.path.isdir(output)
        )
        moving = [part for part in parts if part.moving and (part.path or output)]
        self.to_video = self.one_file and str(output).lower().endswith(VIDEO_OUTPUTS)
        if moving or self.to_video:
            pyav()
        if self.one_file and moving and not self.to_video:
            raise UsageError(
                f"{output}: video is written as {', '.join(VIDEO_OUTPUTS)}, or into {output}/ for "
                "a folder"
            )
        paths = [part.path for part in parts if part.path is not None]
        if self.to_video and os.path.realpath(str(output)) in map(os.path.realpath, paths):
            raise UsageError(f"{output}: is an input of this run, choose another output")
        self._images = AnnotatedImages(
            paths,
            None if self.to_video else output,
            overwrite=overwrite,
            quality=quality,
            several=several,
        )
        self.overwrite = overwrite
        # OpenCV unpacks its font for each thread. One thread draws: once, while the detector loads.
        self._drawer: ThreadPoolExecutor | None = ThreadPoolExecutor(1)
        self._drawer.submit(load_font)
        self._process = os.getpid()

    def check(self) -> None:
        """Refuse a video file that exists; apart, because a run that goes on may replace it."""
        if self.to_video:
            replaced = self.overwrite or bool(self.begun)
            check_name(Path(str(self.output)), overwrite=replaced)

    def _draw(self, frame: Frame, found: Detections) -> NDArray[np.uint8]:
        if self._drawer is None or self._process != os.getpid():  # a fork has no such thread
            return found.draw(frame.image)
        return self._drawer.submit(found.draw, frame.image).result()

    def write(self, frame: Frame, found: Detections) -> Path | None:
        part = self.parts.get(frame.name)
        if self.output is None and (part is None or part.path is None):
            return None
        if frame.number is None:
            if self.to_video:
                raise InputError(f"{self.output}: {frame.name} is an image, expected a video")
            self._images.overwrite = self.overwrite
            place = part.path if part is not None and part.path is not None else None
            name = place or Path(f"{safe_name(frame.name)}.jpg")
            return self._images.write(name, self._draw(frame, found))
        if self.video is None or self.name != frame.name:
            self.end(self.name)
            self.video, self.name = self._open(frame, part), frame.name
        self.video.write(self._draw(frame, found), frame.time)
        return None

    def _open(self, frame: Frame, part: Part | None) -> VideoFile:
        replaced = self.overwrite or frame.name in self.begun
        if self.one_file:
            path = Path(str(self.output))
        else:
            place = part.path if part is not None else None
            self._images.overwrite = replaced
            path = self._images.choose(place or Path(safe_name(frame.name)), ".mp4")
            if self.output is not None:
                make_folder(path.parent)
            self._images.taken.add(os.path.realpath(path))
        rate = 25.0 if part is None else part.rate()
        return VideoFile(path, rate, quality=self.quality, overwrite=replaced)

    def skip(self, name: str) -> None:
        part = self.parts.get(name)
        if self.output is not None and not self.one_file:
            place = part.path if part is not None and part.path is not None else None
            kept, self._images.overwrite = self._images.overwrite, True
            suffix = ".mp4" if part is not None and part.moving else None
            target = self._images.choose(place or Path(f"{safe_name(name)}.jpg"), suffix)
            self._images.overwrite = kept
            self._images.taken.add(os.path.realpath(target))

    def go_on(self, names: set[str]) -> None:
        self.begun = names

    def end(self, name: str) -> list[Path]:
        if self.video is None or name != self.name:
            return []
        video, self.video = self.video, None
        path = video.close()
        return [] if path is None else [path]

    def close(self) -> list[Path]:
        drawer, self._drawer = self._drawer, None
        if drawer is not None:
            drawer.shutdown(wait=False)
        return self.end(self.name)
