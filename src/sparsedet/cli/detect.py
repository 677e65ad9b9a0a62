"""`sparsedet detect`: find objects in images and draw them."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import Command, add, add_running, check_score_threshold, complain, load_detector

if TYPE_CHECKING:
    from ..detections import Detections
    from ..detector import Detector

DETAILS = """\
Prints the detections and writes an annotated copy of each image: beside it as NAME_detected.EXT,
or to --output, a file for one image and a folder for several. Nothing is overwritten unasked."""


def register(command: Command) -> None:
    """Add the parser."""
    detect = command(
        "detect",
        run_detect,
        "Find objects in images and draw them.",
        usage="[OPTIONS] IMAGE...",
        details=DETAILS,
        examples=(
            "sparsedet detect street.jpg",
            "sparsedet detect *.jpg -o found --format json --score-threshold 0.3 > found.jsonl",
        ),
    )
    detect.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file")
    add(detect, "--resize")
    add(detect, "--output", "--overwrite", "--no-save")
    add(detect, "--format", default="table")
    add(detect, "--score-threshold", default=0.5)
    add_running(detect)
    add(detect, "--cache")


def run_detect(arguments: argparse.Namespace) -> int:
    images: list[Path] = arguments.images
    output: Path | None = arguments.output
    check_score_threshold(arguments)
    into_folder = output is not None and (output.is_dir() or len(images) > 1)
    if into_folder and output is not None:
        _check_folder(output)
    detector = load_detector(arguments)
    # What this run never writes over: its images and what it has written itself.
    taken = {os.path.realpath(image) for image in images}
    failed = 0
    for index, image in enumerate(images):
        try:
            detections, seconds, target = _detect_one(
                detector, image, output, into_folder, taken, arguments
            )
        except (InputError, OSError) as error:
            complain(error)
            failed += 1
            continue
        _print(arguments.format, image, detections, seconds, target, first=index == failed)
    if failed and len(images) > 1:
        complain(f"{failed} of {len(images)} images failed")
    return 2 if failed else 0


def _detect_one(
    detector: Detector,
    path: Path,
    output: Path | None,
    into_folder: bool,
    taken: set[str],
    arguments: argparse.Namespace,
) -> tuple[Detections, float, Path | None]:
    """Detections, seconds, and the annotated image's path, which is added to `taken`."""
    from ..images.read import read_image

    image = read_image(path)
    target = None
    if not arguments.no_save:
        target = _annotated_path(path, output, into_folder, taken, arguments.overwrite)
    start = time.perf_counter()
    detections = detector(image, arguments.score_threshold)
    seconds = time.perf_counter() - start
    if target is not None:
        if into_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        _write_image(detections.draw(image), target, arguments.overwrite)
        taken.add(os.path.realpath(target))
    return detections, seconds, target


def _print(
    form: str, image: Path, detections: Detections, seconds: float, target: Path | None, first: bool
) -> None:
    """One image's detections in one of the forms of --format.

    Args:
        target: where the annotated image went.
        first: nothing was printed before.
    """
    if form == "json":
        print(json.dumps({"photo": str(image), **detections.to_dict()}, ensure_ascii=False))
    elif form == "csv":
        _print_csv(image, detections, header=first)
    else:
        print(_table(image, detections, seconds))
        if target is not None:
            print(f"-> {target}")


def _table(image: Path, detections: Detections, seconds: float) -> str:
    lines = [f"{image}: {len(detections)} objects in {seconds * 1000:.0f} ms"]
    width = max((len(name) for name in detections.names), default=0)
    for name, score, box in detections:
        corners = "  ".join(f"{value:7.1f}" for value in box)
        lines.append(f"  {name:<{width}}  {score:.2f}  {corners}")
    return "\n".join(lines)


def _print_csv(image: Path, detections: Detections, header: bool) -> None:
    """`Detections.to_csv` with the image's name before each line; the column is named `photo`."""
    first, *rows = csv.reader(detections.to_csv().splitlines())
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(["photo", *first])
    writer.writerows([image, *row] for row in rows)


def _annotated_path(
    image: Path, output: Path | None, into_folder: bool, taken: set[str], overwrite: bool
) -> Path:
    """Where the annotated image goes; never a file in `taken`."""
    suffix = image.suffix if image.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") else ".jpg"
    if output is None:
        # A file of an earlier run stays: street_detected.jpg, street_detected-2.jpg, ...
        target = image.with_name(f"{image.stem}_detected{suffix}")
        number = 2
        while (target.exists() and not overwrite) or os.path.realpath(target) in taken:
            target = image.with_name(f"{image.stem}_detected-{number}{suffix}")
            number += 1
    else:
        target = output / f"{image.stem}{suffix}" if into_folder else output
    if os.path.realpath(target) in taken:
        raise InputError(f"{target}: is an input or output of this run, choose another output")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; give another name or --overwrite")
    return target


def _write_image(image: Any, target: Path, overwrite: bool) -> None:
    import cv2

    from ..files import write_atomic

    try:
        ok, data = cv2.imencode(target.suffix or ".", image)
    except cv2.error:
        ok = False
    if not ok:
        raise InputError(f"{target}: cannot write this kind of image, use .jpg or .png")
    write_atomic(target, data.tobytes(), overwrite=overwrite)


def _check_folder(folder: Path) -> None:
    """Fail before the work, and leave no empty folder if the work fails."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(
            f"{folder}: cannot be used as a folder ({existing} is not one, or is read-only)"
        )
