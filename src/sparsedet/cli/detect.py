"""`sparsedet detect`: find objects in photographs and draw them."""

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
from .options import Command, complain, running_flags

if TYPE_CHECKING:
    from ..detections import Detections
    from ..detector import Detector

SHOWN = 0.5
"""Detections of this score and above are shown unless told otherwise."""


def register(command: Command) -> None:
    """Add the parser."""
    detect = command("detect", run_detect, "Find objects in photographs and draw them.")
    detect.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    detect.add_argument(
        "-o",
        "--output",
        type=Path,
        help="annotated picture (one photograph) or "
        "folder; default: NAME_detected.EXT beside the photograph",
    )
    detect.add_argument("--overwrite", action="store_true", help="replace existing output files")
    detect.add_argument("--no-picture", action="store_true", help="draw nothing")
    detect.add_argument(
        "--format",
        choices=("table", "json", "csv"),
        default="table",
        help="of what is printed; json: one line a photograph",
    )
    detect.add_argument(
        "--score-threshold",
        type=float,
        default=SHOWN,
        metavar="S",
        help=f"show scores of at least S (default {SHOWN})",
    )
    detect.add_argument(
        "--resize",
        choices=("letterbox", "stretch"),
        help="keep the aspect ratio or fill the network input (default: the model's)",
    )
    detect.add_argument(
        "--cache",
        action="store_true",
        help="keep packed weights in a file of "
        "$SPARSEDET_CACHE/packed (default ~/.cache/sparsedet/packed), so that the "
        "next start is faster",
    )
    running_flags(detect)


def run_detect(arguments: argparse.Namespace) -> int:
    from ..detector import Detector

    photos: list[Path] = arguments.photos
    output: Path | None = arguments.output
    if not 0 <= arguments.score_threshold <= 1:
        raise InputError(f"--score-threshold is {arguments.score_threshold}, expected 0..1")
    into_folder = output is not None and (output.is_dir() or len(photos) > 1)
    if into_folder and output is not None:
        _check_folder(output)
    detector = Detector.load(
        arguments.model,
        threads=arguments.threads,
        isa=arguments.isa,
        precision=arguments.precision,
        resize=arguments.resize,
        tuning=arguments.plan,
        cache=arguments.cache,
        backend=arguments.backend,
    )
    # What this run never writes over: its photographs and what it has written itself.
    taken = {os.path.realpath(photo) for photo in photos}
    failed = 0
    for index, photo in enumerate(photos):
        try:
            found, seconds, target = _detect_one(
                detector, photo, output, into_folder, taken, arguments
            )
        except (InputError, OSError) as error:
            complain(error)
            failed += 1
            continue
        if arguments.format == "json":
            record = {"photo": str(photo), **json.loads(found.to_json())}
            print(json.dumps(record, ensure_ascii=False))
        elif arguments.format == "csv":
            _print_csv(photo, found, header=index == failed)
        else:
            print(_table(photo, found, seconds))
            if target is not None:
                print(f"-> {target}")
    if failed and len(photos) > 1:
        complain(f"{failed} of {len(photos)} photographs failed")
    return 2 if failed else 0


def _detect_one(
    detector: Detector,
    photo: Path,
    output: Path | None,
    into_folder: bool,
    taken: set[str],
    arguments: argparse.Namespace,
) -> tuple[Detections, float, Path | None]:
    """Detections, seconds, and the annotated picture's path, which is added to `taken`."""
    from ..images.read import read_image

    image = read_image(photo)
    target = None
    if not arguments.no_picture:
        target = _picture_path(photo, output, into_folder, taken, arguments.overwrite)
    start = time.perf_counter()
    found = detector(image, arguments.score_threshold)
    seconds = time.perf_counter() - start
    if target is not None:
        if into_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        _write_picture(found.draw(image), target, arguments.overwrite)
        taken.add(os.path.realpath(target))
    return found, seconds, target


def _table(photo: Path, found: Detections, seconds: float) -> str:
    lines = [f"{photo}: {len(found)} objects in {seconds * 1000:.0f} ms"]
    width = max((len(name) for name in found.names), default=0)
    for name, score, box in found:
        corners = "  ".join(f"{value:7.1f}" for value in box)
        lines.append(f"  {name:<{width}}  {score:.2f}  {corners}")
    return "\n".join(lines)


def _print_csv(photo: Path, found: Detections, header: bool) -> None:
    """`Detections.to_csv` with the photograph's name before each line."""
    first, *rows = csv.reader(found.to_csv().splitlines())
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(["photo", *first])
    writer.writerows([photo, *row] for row in rows)


def _picture_path(
    photo: Path, output: Path | None, into_folder: bool, taken: set[str], overwrite: bool
) -> Path:
    """Where the annotated picture goes; never a file in `taken`."""
    suffix = photo.suffix if photo.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") else ".jpg"
    if output is None:
        # A picture of an earlier run stays: street_detected.jpg, street_detected-2.jpg, ...
        target = photo.with_name(f"{photo.stem}_detected{suffix}")
        number = 2
        while (target.exists() and not overwrite) or os.path.realpath(target) in taken:
            target = photo.with_name(f"{photo.stem}_detected-{number}{suffix}")
            number += 1
    else:
        target = output / f"{photo.stem}{suffix}" if into_folder else output
    if os.path.realpath(target) in taken:
        raise InputError(f"{target}: is a photograph or picture of this run, choose another output")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; choose another output or give --overwrite")
    return target


def _write_picture(picture: Any, target: Path, overwrite: bool) -> None:
    import cv2

    from ..files import write_atomic

    try:
        ok, data = cv2.imencode(target.suffix or ".", picture)
    except cv2.error:
        ok = False
    if not ok:
        raise InputError(f"{target}: cannot write this kind of picture, use .jpg or .png")
    write_atomic(target, data.tobytes(), overwrite=overwrite)


def _check_folder(folder: Path) -> None:
    """Fail before the work, and leave no empty folder if the work fails."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{folder}: cannot be used as a folder ({existing} is none or read-only)")
