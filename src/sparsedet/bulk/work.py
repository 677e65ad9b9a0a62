"""The work on one part of a plan: read, detect, write."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..detections import Detections
from ..detector import Detector
from ..errors import InputError
from ..images.read import decode_image, read_image
from ..sinks.journal import JournalEntry
from ..sinks.parquet import arrow, write_parquet
from ..sources.ahead import map_in_order
from . import storage
from .listing import BulkEntry, content_column
from .plan import Plan

READERS = 8
"""Images of a remote storage that are on their way, beside those that are detected."""

ROWS_AT_ONCE = 16
"""Rows of a Parquet file that are decoded together: images are large."""

Detect = Callable[[Any], Detections]


@dataclass(frozen=True)
class Wanted:
    """Which detections a run keeps.

    Attributes:
        score: ignore detections with a lower score, 0..1.
        classes: only these; None: all.
        top: at most so many of an image, the best; None: all.
    """

    score: float = 0.5
    classes: tuple[str, ...] | None = None
    top: int | None = None

    def of(self, detector: Detector) -> Detect:
        """What finds them in an image."""

        def detect(image: Any) -> Detections:
            found = detector(image, self.score)
            found = found if self.classes is None else found.only(self.classes)
            return found if self.top is None else found.best(self.top)

        return detect


@dataclass(frozen=True)
class PartDone:
    """What became of a part.

    Attributes:
        images, failed: all of its images, and those without a result.
        detections: of the others.
    """

    part: int
    images: int
    failed: int
    detections: int


def do_part(
    plan: Plan,
    part: int,
    detect: Detect,
    workers: int,
    tell: Callable[[int], None] = lambda count: None,
) -> PartDone:
    """Detect in the images of a part, and write its two files; what is done is not done again.

    Args:
        detect: called by several threads.
        workers: images that are detected at once.
        tell: told that so many more images are done.

    Raises:
        InputError: the results cannot be written.
    """
    if storage.exists(plan.file("images", part)):
        return read_done(plan, part)
    entries = list(plan.entries(part))
    readers = READERS if any(storage.is_remote(entry.file) for entry in entries) else 1

    def look(item: tuple[BulkEntry, bytes | InputError | None]) -> Detections | str:
        entry, data = item
        try:
            if isinstance(data, InputError):
                raise data
            return detect(_image(entry, data))
        except (InputError, OSError) as error:
            return str(error)
        except MemoryError:
            return f"{entry.name}: not enough memory"

    found: list[JournalEntry] = []
    images: list[tuple[Any, ...]] = []
    failed = 0
    for (entry, _), result in map_in_order(look, _contents(entries), workers + readers):
        if isinstance(result, str):
            failed += 1
            images.append((entry.name, None, None, None, result))
        else:
            size = result.letterbox.width, result.letterbox.height
            images.append((entry.name, *size, len(result), None))
            found.append(JournalEntry(entry.name, None, None, result))
        tell(1)
    detections = io.BytesIO()
    write_parquet(found, detections)
    storage.write_bytes(plan.file("detections", part), detections.getvalue())
    storage.write_bytes(plan.file("images", part), _images_file(images))
    return PartDone(part, len(images), failed, sum(len(one.found) for one in found))


def _contents(entries: list[BulkEntry]) -> Iterator[tuple[BulkEntry, bytes | InputError | None]]:
    """Each image with its bytes, where it lies in a Parquet file; a worker reads all others."""
    place = 0
    while place < len(entries):
        entry = entries[place]
        if entry.row is None:
            yield entry, None
            place += 1
            continue
        end = place
        while end < len(entries) and entries[end].file == entry.file:
            end += 1
        together = entries[place:end]
        place = end
        rows = _rows(entry.file, {one.row or 0 for one in together})
        problem = InputError(f"{entry.file}: has fewer rows than when the run began")
        for one in together:
            data: bytes | InputError | None
            try:
                data = next(rows)
            except StopIteration:  # also after an error
                data = problem
            except (InputError, OSError, ValueError) as error:
                data = problem = InputError(f"{one.name}: {error}")
            yield one, InputError(f"{one.name}: the row holds no image") if data is None else data


def _rows(address: str, wanted: set[int]) -> Iterator[bytes | None]:
    """The images of these rows of a Parquet file, in order."""
    file = storage.open_parquet(address)
    column = content_column(file.schema_arrow)
    if column is None:
        raise InputError(f"{address}: has no column of images any more")
    first = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if not wanted.isdisjoint(range(first, first + count)):
            row = first
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                values = batch.column(0)
                if "." in column:
                    values = values.field("bytes")
                for value in values:
                    if row in wanted:
                        yield value.as_py()
                    row += 1
        first += count


def _image(entry: BulkEntry, data: bytes | None) -> Any:
    if data is None and not storage.is_remote(entry.file):
        return read_image(Path(entry.file))
    return decode_image(storage.read_bytes(entry.file) if data is None else data, entry.name)


def _images_file(images: list[tuple[Any, ...]]) -> bytes:
    """One row an image: photo, width, height, number of detections; or why there are none."""
    pa = arrow()
    schema = pa.schema(
        [
            ("photo", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("detections", pa.int32()),
            ("error", pa.string()),
        ]
    )
    columns = zip(*images, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    data = io.BytesIO()
    pa.parquet.write_table(pa.table(arrays, schema=schema), data)
    return data.getvalue()


def read_done(plan: Plan, part: int) -> PartDone:
    """What became of a part that is done.

    Raises:
        InputError: its file is damaged.
    """
    table = storage.open_parquet(plan.file("images", part)).read()
    counts = [count for count in table.column("detections").to_pylist() if count is not None]
    return PartDone(part, table.num_rows, table.num_rows - len(counts), sum(counts))
