"""Images checked before long work, by their headers; and what a bad one does: `BadImages`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .read import image_size, read_image

BadImages = Literal["stop", "skip", "keep"]
"""stop: an error. skip: left out, with a warning. keep: what of it can be decoded is used, with a
warning; left out where that is nothing."""


def check_choice(bad_images: str) -> None:
    """Raises InputError unless it is one of `BadImages`."""
    if bad_images not in get_args(BadImages):
        raise InputError(f"bad_images is {bad_images!r}, expected one of {get_args(BadImages)}")


def find_bad(
    paths: Sequence[Path],
    fits: Callable[[int, int, int], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, str]:
    """Read the headers of images, without decoding them.

    Args:
        paths: the files.
        fits: (index, height, width) -> why an image of that size cannot be used, or "".
        progress: called with (done, total) after each image.

    Returns:
        Index of each bad image -> one line, which names it.
    """
    bad = {}
    for index, path in enumerate(paths):
        try:
            problem = fits(index, *image_size(path)) if fits else image_size(path) and ""
        except InputError as error:
            problem = str(error)
        if problem:
            bad[index] = problem
        if progress is not None:
            progress(index + 1, len(paths))
    return bad


def refuse_bad(bad: dict[int, str], total: int) -> None:
    """Stop at bad images.

    Raises:
        InputError: there are some; the message is that of the first, and counts the others.
    """
    if not bad:
        return
    first = bad[min(bad)]
    others = f"; {len(bad) - 1} more of {total} images are bad" if len(bad) > 1 else ""
    raise InputError(f"{first}{others}; --bad-images skip leaves bad images out")


def read_images(
    paths: Sequence[Path], bad_images: BadImages = "stop"
) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Read images one after the other, as for calibration.

    Raises:
        InputError: one is bad and `bad_images` is "stop" (what the headers show is reported before
            the first), or none can be read.
    """
    check_choice(bad_images)
    if bad_images == "stop":
        refuse_bad(find_bad(paths), len(paths))
    some = False
    for path in paths:
        image = read_usable(path, bad_images)
        if image is not None:
            some = True
            yield path, image
    if not some:
        raise InputError(f"none of the {len(paths)} images can be read, first {paths[0]}")


def read_usable(path: Path, bad_images: BadImages) -> NDArray[np.uint8] | None:
    """Read an image; None, with a warning, for a bad one that is left out.

    Raises:
        InputError: it is bad and `bad_images` is "stop".
    """
    try:
        return read_image(path, keep_damaged=bad_images == "keep")
    except InputError as error:
        if bad_images == "stop":
            raise
        warnings.warn(f"left out: {error}", stacklevel=2)
        return None
