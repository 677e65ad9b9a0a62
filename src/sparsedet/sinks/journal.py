"""The journal of a run: the exact detections of each finished image, one line each.

It is what makes a run resumable. A line is written when all else of its image is written; a line
that was cut by the end of a process is dropped. Result files are made from it (`results.py`).
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..detections import Detections, from_rows
from ..errors import InputError
from ..files import what_it_is
from ..images.letterbox import Letterbox

_KIND = "sparsedet journal 1"

Key = tuple[str, "int | None"]
"""Name of an input, number of its frame."""


class JournalEntry(NamedTuple):
    """One finished image: its frame without pixels, and its detections."""

    name: str
    time: float | None
    number: int | None
    found: Detections


class Journal:
    """A file that grows by one line for each finished image.

    Args:
        path: the file, made by the first entry.
        settings: of the run, which a run that goes on must share.
        resume: go on with the file, if it is there.
        overwrite: an earlier file may be replaced.

    Raises:
        InputError: the file is there and neither is asked for; or it is of other settings, or no
            journal.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path, self.settings = path, json.loads(json.dumps(dict(settings)))
        self.known: Counter[Key] = Counter()
        self.ended: Counter[str] = Counter()
        self._offsets: dict[Key, int] = {}
        self._classes: tuple[tuple[str, ...], tuple[int, ...]] | None = None
        self._file: Any = None
        if not os.path.lexists(path):
            return
        if resume:
            self._go_on()
        elif not overwrite:
            raise InputError(
                f"{path}: belongs to a run that was stopped; --resume goes on, --overwrite starts "
                "again"
            )
        else:
            path.unlink()

    def _go_on(self) -> None:
        whole = 0
        try:
            with open(self.path, "rb") as file:
                start = file.readline()
                self._read_header(start)
                whole = len(start)
                for line in file:
                    try:
                        record = json.loads(line)
                        if record.get("end"):
                            self.ended[record["photo"]] += 1
                            whole += len(line)
                            continue
                        key = str(record["photo"]), record["number"]
                    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                        break
                    if not line.endswith(b"\n"):
                        break
                    self.known[key] += 1
                    if key[1] is not None:
                        self._offsets[key] = whole
                    whole += len(line)
            os.truncate(self.path, whole)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror or error}") from None

    def _read_header(self, line: bytes) -> None:
        try:
            header = json.loads(line)
            if header["kind"] != _KIND:
                raise ValueError
            names, ids = tuple(header["class_names"]), tuple(header["category_ids"])
            settings = dict(header["settings"])
        except (ValueError, LookupError, TypeError, RecursionError):
            kind = what_it_is(line[:128]) or "not the journal of a stopped run; move it away"
            raise InputError(f"{self.path}: {kind}") from None
        self._classes = names, ids
        for key in sorted({*settings, *self.settings}):
            then, now = settings.get(key), self.settings.get(key)
            if then != now:
                raise InputError(
                    f"{self.path}: the stopped run had {key} {then}, this one has {now}; give the "
                    "same, or --overwrite to start again"
                )

    def add(self, name: str, time: float | None, number: int | None, found: Detections) -> None:
        """Append one finished image.

        Raises:
            InputError: the file cannot be written.
        """
        record: dict[str, Any] = {"photo": name, "number": number, "time": time}
        record["letterbox"] = astuple(found.letterbox)
        record["rows"] = _text(found.rows())
        if found.track_ids is not None:
            record["tracks"] = found.track_ids.tolist()
        if found.mask_probabilities is not None:
            record["masks"] = _text(found.mask_probabilities)
            record["cells"] = found.mask_probabilities.shape[1:]
        self._check_classes(found)
        self._append(record)

    def end(self, name: str) -> None:
        """Append that a video has no more frames."""
        if self._classes is not None:
            self._append({"photo": name, "end": True})

    def _append(self, record: dict[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = open(self.path, "ab")  # noqa: SIM115 - until the end of the run
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _check_classes(self, found: Detections) -> None:
        classes = found.class_names, found.category_ids
        if self._classes is not None and self._classes != classes:
            raise InputError(f"{self.path}: the stopped run had a model with other classes")
        if self._classes is None:
            header = {"kind": _KIND, "settings": self.settings}
            self._append({**header, "class_names": classes[0], "category_ids": classes[1]})
            self._classes = classes

    def find(self, name: str, number: int) -> JournalEntry | None:
        """A frame of a video that an earlier run finished."""
        offset = self._offsets.get((name, number))
        if offset is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(offset)
            return self._entry(file.readline())

    def __iter__(self) -> Iterator[JournalEntry]:
        """All entries, in the order of their writing."""
        if not self.path.exists():
            return
        if self._file is not None:
            self._file.flush()
        with open(self.path, "rb") as file:
            file.readline()
            for line in file:
                if b'"end": true' not in line[-14:]:
                    yield self._entry(line)

    def _entry(self, line: bytes) -> JournalEntry:
        try:
            record = json.loads(line)
            rows = np.frombuffer(base64.b64decode(record["rows"]), np.float32).reshape(-1, 7)
            masks = None
            if "masks" in record:
                data = np.frombuffer(base64.b64decode(record["masks"]), np.float32)
                masks = data.reshape(len(rows), *record["cells"])
            letterbox = Letterbox(*record["letterbox"])
            names, ids = self._classes or ((), ())
            found = from_rows(rows, letterbox, names, ids, None, masks)
            if "tracks" in record:
                tracks = np.array(record["tracks"], np.int64)
                found.__dict__["track_ids"] = tracks.reshape(len(found))
            return JournalEntry(record["photo"], record["time"], record["number"], found)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: damaged ({error}); --overwrite starts again") from None

    def close(self, keep: bool) -> None:
        """Close it; a run that is complete does not `keep` its journal."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if not keep:
            self.path.unlink(missing_ok=True)


def _text(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()
