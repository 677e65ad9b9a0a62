"""Files of each image: what is inside each box as a picture, and YOLO's labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..detections import Detections
from ..errors import InputError
from ..files import check_folder, make_folder, write_atomic
from ..images.write import QUALITY, encode_image
from ..sources import Frame
from .base import Sink, Stems, safe_folder


class Crops(Sink):
    """A JPEG of each detection: FOLDER/CLASS/IMAGE_N.jpg, N from 1, the best first.

    Args:
        folder: made if it is not there.
        overwrite: existing files may be replaced.
        quality: 1..100.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False, quality: int = QUALITY) -> None:
        check_folder(folder)
        self.folder, self.overwrite, self.quality = folder, overwrite, quality
        self.stems = Stems()

    def write(self, frame: Frame, found: Detections) -> Path | None:
        stem = self.stems.stem(frame.name, frame.number)
        for place, (name, _, box) in enumerate(found, 1):
            x0, y0 = np.floor(box[:2]).astype(int)
            x1, y1 = np.ceil(box[2:]).astype(int)
            crop = frame.image[y0:y1, x0:x1]
            if crop.size == 0:  # a box in the padding
                continue
            target = self.folder / safe_folder(name) / f"{stem}_{place}.jpg"
            make_folder(target.parent)
            data = encode_image(np.ascontiguousarray(crop), target.name, quality=self.quality)
            write_atomic(target, data, overwrite=self.overwrite)
        return None

    def skip(self, name: str) -> None:
        self.stems.stem(name)


class YoloLabels(Sink):
    """A text file for each image: FOLDER/IMAGE.txt, empty where nothing was found.

    A line is a detection: class, x and y of the centre, width, height. The class counts from 0;
    the others are divided by the image's size. This is the form in which YOLO trains.

    Args:
        folder: made if it is not there.
        overwrite: existing files may be replaced.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        check_folder(folder)
        self.folder, self.overwrite = folder, overwrite
        self.stems = Stems()

    def write(self, frame: Frame, found: Detections) -> Path | None:
        height, width = frame.image.shape[:2]
        target = self.folder / f"{self.stems.stem(frame.name, frame.number)}.txt"
        lines = []
        for label, (x0, y0, x1, y1) in zip(found.labels, found.boxes.tolist(), strict=True):
            centre = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
            size = (x1 - x0) / width, (y1 - y0) / height
            lines.append(" ".join([str(label - 1), *(f"{v:.6f}" for v in (*centre, *size))]))
        make_folder(self.folder)
        data = "".join(f"{line}\n" for line in lines).encode()
        if os.path.lexists(target) and not self.overwrite:
            raise InputError(f"{target}: exists already; give another folder or --overwrite")
        write_atomic(target, data, overwrite=self.overwrite)
        return None

    def skip(self, name: str) -> None:
        self.stems.stem(name)
