"""Where results go: pictures, video, tables, labels, crops; opened, written to, closed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from ..images.write import QUALITY
from ..sources import ImageSource
from .annotated import Annotated
from .base import Sink
from .crops import Crops, YoloLabels
from .results import RESULT_SUFFIXES, ResultFiles

__all__ = ["Annotated", "Crops", "ResultFiles", "Sink", "YoloLabels", "open_sink"]

Form = Literal["annotated", "yolo", "crops", "results"]


def open_sink(
    target: str | os.PathLike[str],
    form: Form | None = None,
    *,
    overwrite: bool = False,
    quality: int = QUALITY,
) -> Sink:
    """A sink for a file or folder.

    >>> from sparsedet import Detector, open_sink
    >>> import tempfile
    >>> detector, folder = Detector.load(), tempfile.TemporaryDirectory()
    >>> with open_sink(f"{folder.name}/found.csv") as sink:
    ...     for frame, found in detector.stream("examples/beach.jpg", 0.9, frames=True):
    ...         path = sink.write(frame, found)
    >>> print(Path(f"{folder.name}/found.csv").read_text().splitlines()[0])
    photo,name,label,category_id,score,x0,y0,x1,y1
    >>> folder.cleanup()

    Args:
        target: a file: .jsonl, .csv, .json (COCO results) or .parquet for detections, .mp4 for
            annotated video, .jpg and others for an annotated image; or a folder.
        form: "annotated" (default for folders), "yolo" (labels) or "crops", of a folder;
            "results", of a file.
        overwrite: existing files may be replaced.
        quality: 1..100, of JPEG, WebP, AVIF and video.

    Raises:
        InputError: the file exists, or is of no such form.
    """
    path = Path(target)
    text = os.fspath(target)
    if form == "yolo":
        return YoloLabels(path, overwrite=overwrite)
    if form == "crops":
        return Crops(path, overwrite=overwrite, quality=quality)
    if form == "results" or (form is None and path.suffix.lower() in RESULT_SUFFIXES):
        return ResultFiles([path], overwrite=overwrite)
    if form not in (None, "annotated"):
        raise UsageError(f"form is {form!r}, expected 'annotated', 'yolo', 'crops' or 'results'")
    several = text.endswith(os.sep) or not path.suffix
    sink = Annotated(ImageSource([]), text, several=several, overwrite=overwrite, quality=quality)
    sink.check()
    return sink
