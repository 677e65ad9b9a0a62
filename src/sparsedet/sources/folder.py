"""The images of a folder: all of them, or a fixed sample for calibration."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError, UsageError
from ..images.read import IMAGE_SUFFIXES


def find_images(folder: Path) -> list[Path]:
    """All images of a folder and its subfolders, sorted by path; their suffixes tell them.

    Hidden files and folders are left out: macOS writes `._street.jpg`, which is no image, beside
    images on foreign drives, and cameras and viewers keep thumbnails in hidden folders.

    Raises:
        InputError: it is not a folder, or holds no image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder of images")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    )
    if not found:
        raise InputError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def walk(folder: Path, suffixes: tuple[str, ...], recursive: bool) -> Iterator[Path | InputError]:
    """Files of a folder, sorted by path, and in their place the folders that cannot be read.

    Hidden files and folders are left out, as by `find_images`.

    Args:
        suffixes: of the files, in lower case.
        recursive: look into subfolders, not into links to folders.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield InputError(f"{folder}: the folder cannot be read ({error.strerror or error})")
        return
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive and not entry.is_symlink():
                yield from walk(folder / entry.name, suffixes, recursive)
        elif entry.name.lower().endswith(suffixes):
            yield folder / entry.name


def sample_images(folder: Path, count: int, *, seed: int = 0, exact: bool = True) -> list[Path]:
    """A random sample of a folder's images; the same names and seed give the same sample.

    Args:
        folder: searched with its subfolders.
        count: how many images, at least 1.
        exact: False: take all where there are fewer than `count`.

    Raises:
        InputError: it is not a folder, or holds no or too few images.
    """
    if count < 1:
        raise UsageError(f"{count} images asked for, expected at least 1")
    found = find_images(folder)
    if len(found) < count and exact:
        raise InputError(f"{folder}: holds {len(found)} images, but {count} are asked for")
    return random.Random(seed).sample(found, min(count, len(found)))
