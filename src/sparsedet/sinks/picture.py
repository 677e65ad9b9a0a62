"""Annotated images, written beside their originals, to a file, or into a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..files import check_folder, check_name, is_stream, make_folder, write_atomic
from ..images.write import QUALITY, SUFFIXES, can_write, encode_image


class AnnotatedImages:
    """Writes annotated images, never over an input or output of the same run.

    Args:
        images: inputs of the run.
        output: a file for one image; a folder for several, or with a slash at its end; default:
            beside each image, as NAME_detected.EXT.
        overwrite: existing files may be replaced.
        quality: 1..100, of JPEG, WebP and AVIF.
        several: more than one image may come; default: more than one is in `images`.

    Raises:
        InputError: the name of the output cannot be used.
    """

    def __init__(
        self,
        images: Sequence[Path],
        output: str | None = None,
        *,
        overwrite: bool = False,
        quality: int = QUALITY,
        several: bool | None = None,
    ) -> None:
        self.output = None if output is None else Path(output)
        self.overwrite, self.quality = overwrite, quality
        self.taken = {os.path.realpath(image) for image in images}
        self.into_folder = self.output is not None and (
            (len(images) > 1 if several is None else several)
            or str(output).endswith(os.sep)
            or os.path.isdir(self.output)
        )
        if self.output is None:
            return
        if self.into_folder:
            check_folder(self.output)
            return
        if is_stream(self.output):
            return
        if os.path.realpath(self.output) in self.taken:
            raise UsageError(f"{self.output}: is an input of this run, choose another output")
        if not can_write(self.output.name):
            raise UsageError(
                f"{self.output}: no image format that can be written; use one of "
                f"{', '.join(SUFFIXES)}, or {self.output}/ for a folder"
            )
        check_name(self.output, overwrite=overwrite)

    def write(self, image: Path, annotated: NDArray[np.uint8]) -> Path:
        """Write the annotated copy of an image; returns its path.

        Raises:
            InputError: it exists, or cannot be written.
        """
        target = self.choose(image)
        name = str(target)
        if is_stream(target) and not can_write(name):  # /dev/stdout: the image's own format
            name += _suffix(image)
        data = encode_image(annotated, name, quality=self.quality)
        if self.into_folder:  # not earlier: a run that fails leaves no empty folder
            make_folder(target.parent)
        write_atomic(target, data, overwrite=self.overwrite)
        self.taken.add(os.path.realpath(target))
        return target

    def choose(self, image: Path, suffix: str | None = None) -> Path:
        """The path of an image's annotated copy, or of a video's with that suffix.

        Raises:
            InputError: it exists in the folder that was asked for.
        """
        suffix = suffix or _suffix(image)
        if self.output is not None and not self.into_folder:
            return self.output
        folder, stem = image.parent, f"{image.stem}_detected"
        if self.output is not None:
            folder, stem = self.output, image.stem
        # Of the same name: street_detected.jpg, street_detected-2.jpg, ...
        target, number = folder / f"{stem}{suffix}", 2
        while self._is_taken(target):
            target = folder / f"{stem}-{number}{suffix}"
            number += 1
        return target

    def _is_taken(self, target: Path) -> bool:
        """Whether a path is an input or output of this run, or a file of an earlier one.

        Raises:
            InputError: it is an existing file in the folder that was asked for.
        """
        if os.path.realpath(target) in self.taken:
            return True
        if self.overwrite or not os.path.exists(target):
            return False
        if self.output is not None:
            raise InputError(f"{target}: exists already; give another name or --overwrite")
        return True


def _suffix(image: Path) -> str:
    """The suffix of an annotated copy: the image's own, if everyone can open it."""
    own = image.suffix
    return own if own.lower() in SUFFIXES and can_write(image.name) else ".jpg"
