"""The images of a data set: read one after the other, and what a bad one does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, warn_renamed
from ..images.check import BadImages, check_choice, find_bad, read_usable, refuse_bad
from ..images.read import read_image
from .coco import CocoDataset, CocoImage
from .coco_fields import Id


def chosen(bad_images: BadImages, skip_bad: bool | None) -> BadImages:
    """`bad_images`, or what the deprecated `skip_bad` says."""
    check_choice(bad_images)
    if skip_bad is None:
        return bad_images
    warn_renamed("skip_bad", "bad_images='skip'")
    return "skip" if skip_bad else bad_images


def read_images(
    dataset: CocoDataset, bad_images: BadImages = "stop"
) -> Iterator[tuple[Id, NDArray[np.uint8] | None, str]]:
    """Read the images of a data set one after the other, to score them.

    Args:
        bad_images: see `evaluate`; a bad image that does not stop is (image id, None, warning).

    Yields:
        (image id, (H, W, 3) uint8 BGR, "").

    Raises:
        InputError: an image is bad and `bad_images` is "stop"; what the headers show is reported
            before the first image.
    """
    if bad_images == "stop":
        _refuse(dataset, _size_differs)
    for entry in dataset.images:
        path = dataset.image_path(entry)
        try:
            image = read_image(path, keep_damaged=bad_images == "keep")
            if problem := _size_differs(dataset, entry, *image.shape[:2]):
                raise InputError(problem)
        except InputError as error:
            if bad_images == "stop":
                raise
            yield entry.id, None, f"counted as without detections: {error}"
        else:
            yield entry.id, image, ""


def without_bad_images(
    dataset: CocoDataset,
    bad_images: BadImages = "stop",
    progress: Callable[[int, int], None] | None = None,
) -> CocoDataset:
    """The data set without the images whose headers show that they cannot be used to train.

    Args:
        bad_images: "skip" leaves them out, each with a warning; "keep" those of which nothing can
            be decoded.
        progress: called with (done, total).

    Raises:
        InputError: an image is bad and `bad_images` is "stop"; or none is left.
    """
    check_choice(bad_images)
    if bad_images == "stop":
        _refuse(dataset, shape_differs, progress)
        return dataset
    left_out = set()
    for index, problem in _find_bad(dataset, shape_differs, progress).items():
        entry = dataset.images[index]
        if bad_images == "keep":
            image = read_usable(dataset.image_path(entry), bad_images)
            if image is None:  # the reader has said so
                left_out.add(index)
                continue
            problem = shape_differs(dataset, entry, *image.shape[:2])
        if problem:
            left_out.add(index)
            warnings.warn(f"left out: {problem}", stacklevel=2)
    kept = tuple(entry for i, entry in enumerate(dataset.images) if i not in left_out)
    if not kept:
        raise InputError(f"{dataset.root}: none of the images can be read")
    return replace(dataset, images=kept)


def shape_differs(dataset: CocoDataset, entry: CocoImage, height: int, width: int) -> str:
    """Why an image cannot be trained on: its aspect ratio is not the annotated one; else ""."""
    difference = abs(width * entry.height - height * entry.width)
    if difference <= max(entry.width, entry.height):
        return ""
    return (
        f"{dataset.image_path(entry)}: is {width}x{height}, but annotated as "
        f"{entry.width}x{entry.height}"
    )


def _size_differs(dataset: CocoDataset, entry: CocoImage, height: int, width: int) -> str:
    """Why an image cannot be scored: its size is not the annotated one; else ""."""
    if (height, width) == (entry.height, entry.width):
        return ""
    return (
        f"{dataset.image_path(entry)}: {width}x{height} pixels, "
        f"expected {entry.width}x{entry.height} as in {dataset.path}"
    )


_Differs = Callable[[CocoDataset, CocoImage, int, int], str]


def _find_bad(
    dataset: CocoDataset, differs: _Differs, progress: Callable[[int, int], None] | None = None
) -> dict[int, str]:
    """Index of each image whose header shows that it is bad -> why."""

    def fits(index: int, height: int, width: int) -> str:
        entry = dataset.images[index]
        problem = differs(dataset, entry, height, width)
        # An EXIF orientation may turn it, which shows when it is decoded.
        return problem and differs(dataset, entry, width, height) and problem

    return find_bad([dataset.image_path(entry) for entry in dataset.images], fits, progress)


def _refuse(
    dataset: CocoDataset, differs: _Differs, progress: Callable[[int, int], None] | None = None
) -> None:
    dataset.require_images()
    refuse_bad(_find_bad(dataset, differs, progress), len(dataset.images))
