"""Detections as text: JSON lines, CSV, COCO results; printed, or in files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Any, TextIO

from ..detections import Detections
from .journal import JournalEntry


def json_line(name: str, time: float | None, number: int | None, found: Detections) -> str:
    """One image as one line: `Detections.to_dict`, with `photo`, and of a video frame and time."""
    where = {} if number is None else {"frame": number, "time": _seconds(time)}
    return json.dumps({"photo": name, **where, **found.to_dict()})


def _seconds(time: float | None) -> float | None:
    return None if time is None else round(time, 3)


class CsvWriter:
    """`Detections.to_csv` of many images: with `photo` before each line, and a header once.

    Args:
        stream: where the lines go.
        moving: there are videos, whose frames have the columns `frame` and `time` too.
    """

    def __init__(self, stream: TextIO, moving: bool) -> None:
        self.moving, self.started = moving, False
        self.writer = csv.writer(stream, lineterminator="\n")

    def write(self, name: str, time: float | None, number: int | None, found: Detections) -> None:
        first, *rows = csv.reader(found.to_csv().splitlines())
        where: list[Any] = [number, _seconds(time)] if self.moving else []
        if not self.started:
            self.writer.writerow(["photo", *(["frame", "time"] if self.moving else []), *first])
        self.started = True
        self.writer.writerows([name, *where, *row] for row in rows)


def image_id(name: str, number: int | None) -> int | str:
    """Of COCO results: the number that a file is named after, as in COCO, else its name."""
    from .base import safe_name

    stem = safe_name(name)
    if number is not None:
        return f"{name}#{number}"
    return int(stem) if stem.isascii() and stem.isdigit() else name


def write_json_lines(entries: Iterable[JournalEntry], file: TextIO, moving: bool) -> None:
    for entry in entries:
        file.write(json_line(*entry) + "\n")


def write_csv(entries: Iterable[JournalEntry], file: TextIO, moving: bool) -> None:
    writer = CsvWriter(file, moving)
    for entry in entries:
        writer.write(*entry)


def write_coco(entries: Iterable[JournalEntry], file: TextIO, moving: bool) -> None:
    """COCO results: one list, with `image_id` as `image_id` says."""
    file.write("[")
    comma = "\n"
    for name, _, number, found in entries:
        for record in found.to_coco(image_id(name, number)):
            file.write(comma + json.dumps(record))
            comma = ",\n"
    file.write("\n]\n")
