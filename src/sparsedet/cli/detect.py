"""`sparsedet detect`: find objects in images and draw them."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from .options import (
    Command,
    add,
    add_running,
    check_score_threshold,
    complain,
    load_detector,
)

if TYPE_CHECKING:
    from ..detections import Detections

DETAILS = """\
Prints the detections and writes an annotated copy of each image: beside it as NAME_detected.EXT,
or to --output, a file for one image and a folder for several (or FOLDER/). Nothing is overwritten
unasked. Exit codes: 0 all images done, 1 some failed, 2 the command line is wrong."""


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
    add(detect, "--bad-images", default="skip")
    add(detect, "--resize")
    add(detect, "--output", type=str)  # a Path would lose the slash of FOLDER/
    add(detect, "--overwrite", "--no-save")
    add(detect, "--quality", default=90)
    add(detect, "--format", default="table")
    add(detect, "--score-threshold", default=0.5)
    add_running(detect)
    add(detect, "--cache")


def run_detect(arguments: argparse.Namespace) -> int:
    from ..images.read import read_image
    from ..sinks.picture import AnnotatedImages

    images: list[Path] = arguments.images
    check_score_threshold(arguments)
    if not 1 <= arguments.quality <= 100:
        raise UsageError(f"--quality is {arguments.quality}, expected 1..100")
    annotated = None
    if not arguments.no_save:
        annotated = AnnotatedImages(
            images, arguments.output, overwrite=arguments.overwrite, quality=arguments.quality
        )
    detector = load_detector(arguments)
    failed = printed = 0
    for path in images:
        try:
            image = read_image(path, keep_damaged=arguments.bad_images == "keep")
            start = time.perf_counter()
            detections = detector(image, arguments.score_threshold)
            seconds = time.perf_counter() - start
        except (InputError, OSError, MemoryError) as error:
            complain(f"{path}: not enough memory" if isinstance(error, MemoryError) else error)
            failed += 1
            if arguments.bad_images == "stop":
                break
            continue
        target: Path | None = None
        problem: Exception | None = None
        if annotated is not None:
            try:  # the detections are printed even if their image cannot be written
                target = annotated.write(path, detections.draw(image))
            except (InputError, OSError) as error:
                problem = error
        _print(arguments.format, path, detections, seconds, target, first=printed == 0)
        printed += 1
        if problem is not None:
            complain(problem)
            failed += 1
    if failed and len(images) > 1:
        complain(f"{failed} of {len(images)} images failed")
    return 1 if failed else 0


def _print(
    form: str, image: Path, detections: Detections, seconds: float, target: Path | None, first: bool
) -> None:
    """One image's detections in one of the forms of --format, at once: a reader may wait.

    Args:
        target: where the annotated image went.
        first: nothing was printed before.
    """
    if form == "json":
        print(json.dumps({"photo": str(image), **detections.to_dict()}))
    elif form == "csv":
        _print_csv(image, detections, header=first)
    else:
        print(_table(image, detections, seconds))
        if target is not None:
            print(f"-> {target}")
    sys.stdout.flush()


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
