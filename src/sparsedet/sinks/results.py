"""Files with the detections of a whole run: JSON lines, CSV, COCO results, Parquet.

While the run goes on its journal grows; the files are made from it, each at once, when it ends.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..detections import Detections
from ..errors import InputError, UsageError
from ..files import check_output, follow, is_stream, replacing_path, write_atomic
from ..sources import Frame
from .base import Sink
from .journal import Journal
from .parquet import arrow, write_parquet
from .text import write_coco, write_csv, write_json_lines

_TEXT: dict[str, Callable[..., None]] = {
    ".jsonl": write_json_lines,
    ".ndjson": write_json_lines,
    ".csv": write_csv,
    ".json": write_coco,
}

RESULT_SUFFIXES = (*_TEXT, ".parquet")


class ResultFiles(Sink):
    """The journal of a run, and the files that are made from it.

    Args:
        paths: files; the suffix says the form: .jsonl, .csv, .json (COCO results), .parquet.
        journal: of the run; default: beside the first file, as NAME.part.
        settings, resume, overwrite: as of `Journal`.

    Raises:
        InputError: a form is unknown, or a file exists and may not be replaced.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        journal: Path | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.paths = list(paths)
        self.moving = False
        self.complete = True
        for path in self.paths:
            if path.suffix.lower() not in RESULT_SUFFIXES:
                raise UsageError(
                    f"{path}: the detections go into {', '.join(RESULT_SUFFIXES)} (.json is COCO "
                    "results)"
                )
            if path.suffix.lower() == ".parquet":
                arrow()
        place = journal or self.paths[0].with_name(self.paths[0].name + ".part")
        going_on = resume and place.exists()
        for path in self.paths:
            check_output(path, overwrite=overwrite or going_on)
        self.journal = Journal(place, settings or {}, resume=resume, overwrite=overwrite)
        self.moving = any(number is not None for _, number in self.journal.known)

    def write(self, frame: Frame, found: Detections) -> Path | None:
        self.moving = self.moving or frame.number is not None
        self.journal.add(frame.name, frame.time, frame.number, found)
        return None

    def close(self) -> list[Path]:
        """Make the files; the journal stays where the run is not `complete`."""
        if not self.complete and not self.journal.path.exists():
            return []  # nothing was done: an empty file would look like a whole run
        for path in self.paths:
            self._make(path)
        self.journal.close(keep=not self.complete)
        return self.paths

    def _make(self, path: Path) -> None:
        form = path.suffix.lower()
        if is_stream(path):
            text = io.StringIO()
            if form == ".parquet":
                raise InputError(f"{path}: Parquet needs a file")
            _TEXT[form](self.journal, text, self.moving)
            write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))
            return
        try:
            with replacing_path(follow(path)) as temporary:
                if form == ".parquet":
                    write_parquet(self.journal, temporary)
                    return
                with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
                    _TEXT[form](self.journal, file, self.moving)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
