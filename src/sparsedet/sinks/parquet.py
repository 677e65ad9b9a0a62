"""Detections as Parquet: one row each, exact, for pandas, polars, DuckDB, Spark."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from .journal import JournalEntry

_ROWS = 100_000
"""Of a row group, at least: some megabytes."""


def arrow() -> Any:
    """The module pyarrow.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'sparsedet[tables]'") from None
    return pyarrow


def write_parquet(entries: Iterable[JournalEntry], path: Path | BinaryIO) -> None:
    """Columns photo, frame, time, width, height, and those of `Detections.to_columns`; track_id.

    `frame` and `time` are null of still images, `track_id` where nothing was tracked.
    """
    pa = arrow()
    schema = pa.schema(
        [
            ("photo", pa.string()),
            ("frame", pa.int64()),
            ("time", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("name", pa.string()),
            ("label", pa.int64()),
            ("category_id", pa.int64()),
            ("score", pa.float32()),
            *((corner, pa.float32()) for corner in ("x0", "y0", "x1", "y1")),
            ("track_id", pa.int64()),
        ]
    )
    with pa.parquet.ParquetWriter(path, schema) as writer:
        batches: list[Any] = []
        rows = 0
        for entry in entries:
            batches.append(_batch(pa, schema, entry))
            rows += len(entry.found)
            if rows >= _ROWS:
                writer.write_table(pa.Table.from_batches(batches, schema))
                batches, rows = [], 0
        writer.write_table(pa.Table.from_batches(batches, schema))


def _batch(pa: Any, schema: Any, entry: JournalEntry) -> Any:
    found, count = entry.found, len(entry.found)
    name = entry.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    columns: dict[str, Any] = {
        "photo": [name] * count,
        "frame": [entry.number] * count,
        "time": [entry.time] * count,
        "width": [found.letterbox.width] * count,
        "height": [found.letterbox.height] * count,
        "track_id": [None] * count,
        **found.to_columns(),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
