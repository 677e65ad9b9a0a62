"""From what a user names to the parts of a source: files, folders, patterns, lists, addresses."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError
from ..images.read import IMAGE_SUFFIXES, read_image
from .folder import walk
from .frame import BadFrame, BadPart, Frame, Limits, Part
from .live import STREAM_SCHEMES, LivePart
from .stdin import StdinPart
from .values import ValuePart, is_image
from .video import VIDEO_SUFFIXES, VideoPart, is_video

MAX_LIST_BYTES = 1 << 28


class FilePart(Part):
    """An image file."""

    def __init__(self, path: Path, keep_damaged: bool = False, name: str = "") -> None:
        super().__init__(name or str(path), path)
        self.file, self.keep_damaged = path, keep_damaged

    def read(self) -> Iterator[Frame | BadFrame]:
        try:
            yield Frame(self.name, read_image(self.file, keep_damaged=self.keep_damaged))
        except (InputError, OSError) as error:
            yield BadFrame(self.name, InputError(str(error)))
        except MemoryError:
            yield BadFrame(self.name, InputError(f"{self.name}: not enough memory"))


@dataclass(frozen=True, slots=True)
class Reading:
    """How parts are read; see `open_source`."""

    recursive: bool = False
    every: int = 1
    keep_damaged: bool = False
    limits: Limits = field(default_factory=Limits)


def parts_of(anything: Any, how: Reading) -> Iterator[Part]:
    """The parts of what a user names, or of several such things; what is wrong is a `BadPart`."""
    if isinstance(anything, Part):
        yield anything
    elif isinstance(anything, int) and not isinstance(anything, bool):
        yield LivePart(f"webcam {anything}", anything, how.every, how.limits.timeout)
    elif isinstance(anything, str | os.PathLike):
        yield from _named(os.fspath(anything), how)
    elif is_image(anything) and getattr(anything, "ndim", 3) != 4:  # 4: a batch, image by image
        yield ValuePart("image", anything, how.keep_damaged)
    elif hasattr(anything, "read"):
        name = str(getattr(anything, "name", "image"))
        yield ValuePart(name, anything.read(how.limits.image_bytes), how.keep_damaged)
    elif isinstance(anything, Iterable):
        for number, one in enumerate(anything):
            if is_image(one):
                yield ValuePart(f"image {number}", one, how.keep_damaged)
            else:
                yield from parts_of(one, how)
    else:
        kind = type(anything).__name__
        error = f"the source is a {kind}, expected paths, addresses, images, or several of them"
        yield BadPart(kind, InputError(error))


def _named(text: str, how: Reading, in_list: str = "") -> Iterator[Part]:
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", text)
    if text == "-" and not in_list:
        yield StdinPart(how.every, how.limits, how.keep_damaged)
    elif scheme:
        yield from _address(text, scheme[1].lower(), how)
    elif text.isascii() and text.isdigit() and not os.path.exists(text) and not in_list:
        yield LivePart(f"webcam {text}", int(text), how.every, how.limits.timeout)
    else:
        yield from _path(Path(text), how, in_list)


def _address(text: str, scheme: str, how: Reading) -> Iterator[Part]:
    if scheme in ("http", "https"):
        from .url import UrlPart  # urllib.request takes 15 ms

        yield UrlPart(text, how.every, how.limits, how.keep_damaged)
    elif scheme in STREAM_SCHEMES:
        name = re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", text)  # no password in files and logs
        yield LivePart(name, text, how.every, how.limits.timeout)
    elif scheme == "file":
        from urllib.request import url2pathname  # imports all of HTTP

        yield from _path(Path(url2pathname(urlsplit(text).path)), how, "")
    else:
        known = ", ".join(("http", "https", "file", *STREAM_SCHEMES))
        yield BadPart(text, InputError(f"{text}: addresses of {scheme} are not read, but {known}"))


def _path(path: Path, how: Reading, in_list: str) -> Iterator[Part]:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # FilePart says which
        if glob.has_magic(str(path)) and not in_list:
            yield from _pattern(path, how)
            return
        mode = stat.S_IFREG
    suffix = path.suffix.lower()
    if stat.S_ISDIR(mode):
        yield from _folder(path, how)
    elif stat.S_ISCHR(mode) and re.fullmatch(r"video\d+", path.name):
        yield LivePart(str(path), int(path.name[5:]), how.every, how.limits.timeout)
    elif suffix in IMAGE_SUFFIXES or not stat.S_ISREG(mode):
        yield FilePart(path, how.keep_damaged)
    elif suffix == ".txt":
        yield from _list(path, how, in_list)
    elif suffix in VIDEO_SUFFIXES or _starts_as_video(path):
        yield VideoPart(str(path), path, how.every)
    else:
        yield FilePart(path, how.keep_damaged)


def _starts_as_video(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return is_video(file.read(400))
    except (OSError, ValueError):
        return False


def _file(path: Path, how: Reading) -> Part:
    """An image or video of a folder, told by its suffix alone."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoPart(str(path), path, how.every)
    return FilePart(path, how.keep_damaged)


def _folder(path: Path, how: Reading) -> Iterator[Part]:
    some = False
    for found in walk(path, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES), how.recursive):
        some = True
        if isinstance(found, InputError):
            yield BadPart(str(path), found)
        else:
            yield _file(found, how)
    if not some:
        more = "" if how.recursive else "; -r (recursive) looks into its subfolders"
        yield BadPart(str(path), InputError(f"{path}: the folder holds no images or videos{more}"))


def _pattern(path: Path, how: Reading) -> Iterator[Part]:
    found = sorted(glob.glob(str(path), recursive=True))
    files = [Path(name) for name in found if not os.path.isdir(name)]
    if not files:
        yield BadPart(str(path), InputError(f"{path}: No such file, and no file of that pattern"))
    for file in files:
        yield from _path(file, how, "")


def _list(path: Path, how: Reading, in_list: str) -> Iterator[Part]:
    """A text file with one path or address a line, relative to its folder; # begins a comment."""
    try:
        if in_list:
            raise InputError(f"{path}: is a list, named in the list {in_list}")
        if (size := os.path.getsize(path)) > MAX_LIST_BYTES:
            raise InputError(f"{path}: the list has {size} bytes, expected {MAX_LIST_BYTES}")
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        yield BadPart(str(path), InputError(f"{path}: not a list of paths in UTF-8"))
        return
    except (OSError, InputError) as error:
        what = error if isinstance(error, InputError) else f"{path}: {error.strerror or error}"
        yield BadPart(str(path), InputError(str(what)))
        return
    names = [line.strip() for line in lines]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        yield BadPart(str(path), InputError(f"{path}: the list is empty, expected paths"))
    for name in names:
        text = name if "://" in name else os.path.join(path.parent, name)
        yield from _named(text, how, str(path))
