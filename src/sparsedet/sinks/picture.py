"""Annotated images, written beside their originals, to a file, or into a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import check_output, is_stream, write_atomic
from ..images.write import QUALITY, SUFFIXES, encode_image


class AnnotatedImages:
    """Writes annotated images, never over an input or output of the same run.

    Args:
        images: inputs of the run.
        output: a file for one image; a folder for several, or with a slash at its end; default:
            beside each image, as NAME_detected.EXT.
        overwrite: existing files may be replaced.
        quality: 1..100, of JPEG, WebP and AVIF.

    Raises:
        InputError: the folder cannot be used.
    """

    def __init__(
        self,
        images: Sequence[Path],
        output: str | None,
        *,
        overwrite: bool = False,
        quality: int = QUALITY,
    ) -> None:
        self.output = None if output is None else Path(output)
        self.overwrite, self.quality = overwrite, quality
        self.taken = {os.path.realpath(image) for image in images}
        self.into_folder = self.output is not None and (
            self.output.is_dir() or len(images) > 1 or str(output).endswith("/")
        )
        if self.output is not None and self.into_folder:
            _check_folder(self.output)

    def _choose(self, image: Path) -> Path:
        """The path of an image's annotated copy: never an input or output of this run."""
        if self.output is not None and not self.into_folder:
            if os.path.realpath(self.output) in self.taken and not is_stream(self.output):
                raise InputError(f"{self.output}: is an input of this run, choose another output")
            check_output(self.output, overwrite=self.overwrite)
            return self.output
        suffix = image.suffix if image.suffix.lower() in SUFFIXES else ".jpg"
        folder, stem = image.parent, f"{image.stem}_detected"
        if self.output is not None:
            folder, stem = self.output, image.stem
        # A file of an earlier run stays: street_detected.jpg, street_detected-2.jpg, ...
        target, number = folder / f"{stem}{suffix}", 2
        while os.path.realpath(target) in self.taken or self._keep(target):
            target = folder / f"{stem}-{number}{suffix}"
            number += 1
        return target

    def _keep(self, target: Path) -> bool:
        if not target.exists() or self.overwrite:
            return False
        if self.output is not None:
            raise InputError(f"{target}: exists already; give another name or --overwrite")
        return True

    def write(self, image: Path, annotated: NDArray[np.uint8]) -> Path:
        """Write the annotated copy of an image; returns its path.

        Raises:
            InputError: it exists, is an input of this run, or cannot be written.
        """
        target = self._choose(image)
        data = encode_image(annotated, str(target), quality=self.quality)
        if self.into_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data, overwrite=self.overwrite)
        self.taken.add(os.path.realpath(target))
        return target


def _check_folder(folder: Path) -> None:
    """Fail before the work, and leave no empty folder if the work fails."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(
            f"{folder}: cannot be used as a folder ({existing} is not one, or is read-only)"
        )
