"""What a sink is: opened, written to, closed; and names of files that a stranger cannot choose."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from ..detections import Detections
from ..sources import Frame


class Sink:
    """Takes frames with their detections, one after the other.

    As a context manager it is closed at the end, also after an error: what was finished is whole.

    Attributes:
        replays: it needs all frames of a video again when a stopped run goes on, because its
            file cannot be continued.
        overwrite: existing files may be replaced.
    """

    replays = False
    overwrite = False

    def write(self, frame: Frame, found: Detections) -> Path | None:
        """Write one image's detections; returns the file, where it has one of its own.

        Raises:
            InputError: it cannot be written. The sink can be written to again.
        """
        raise NotImplementedError

    def skip(self, name: str) -> None:
        """Know of an input that an earlier run finished, so that no other takes its file."""

    def go_on(self, names: set[str]) -> None:
        """Know of videos that an earlier run began: their files may be replaced."""

    def end(self, name: str) -> list[Path]:
        """Know that an input has no more frames; returns the files that were finished now.

        Raises:
            InputError: one cannot be written.
        """
        return []

    def close(self) -> list[Path]:
        """Finish; returns the files that were finished now.

        Raises:
            InputError: one cannot be written.
        """
        return []

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def safe_name(name: str, default: str = "image") -> str:
    """A file's name without its folder and suffix, from a path, an address, a class.

    No separator, control character or leading dot stays, so that no name, whoever chose it, leads
    out of a folder or hides in it.
    """
    if "://" in name:
        name = unquote(urlsplit(name).path)
    name = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    stem = Path(name).stem if name not in ("", ".", "..") else ""
    return _clean(stem) or default


def safe_folder(name: str, default: str = "class") -> str:
    """The name of a folder, from the name of a class, which a stranger's model file may choose."""
    return _clean(name) or default


def _clean(name: str) -> str:
    name = re.sub(r"[\x00-\x1f\x7f/\\:*?\"<>|]", "_", name).lstrip(". ").rstrip(". ")
    while len(name.encode("utf-8", "surrogateescape")) > 150:  # 255 with what is appended
        name = name[:-1]
    return name


class Stems:
    """Names for the files of a folder: each input its own, the same in every run."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._taken: set[str] = set()

    def stem(self, name: str, number: int | None = None) -> str:
        """The file's name without a suffix; of a frame of a video with its number."""
        if name not in self._of:
            stem = safe_name(name)
            counted, count = stem, 2
            while counted.lower() in self._taken:
                counted, count = f"{stem}-{count}", count + 1
            self._taken.add(counted.lower())
            self._of[name] = counted
        return self._of[name] if number is None else f"{self._of[name]}_{number:06d}"
