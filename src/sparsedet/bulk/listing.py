"""What a bulk run reads: a folder, a list, or Parquet, as a table with one row an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import InputError
from ..images.read import IMAGE_SUFFIXES
from ..sinks.parquet import arrow
from . import storage

MAX_LIST_BYTES = 1 << 30

NAMES = ("photo", "path", "uri", "url", "file_name", "image_path")
"""Columns that name images, the first that is there. Source: what `detect --write`, Ray Data,
COCO and data sets on hubs call them."""

CONTENTS = ("bytes", "image", "content")
"""Columns with image files: binary, or a struct with the field `bytes` (Hugging Face)."""


class BulkEntry(NamedTuple):
    """One image.

    Attributes:
        name: in the results.
        file: address of the image, or of a Parquet file that holds it.
        row: of the Parquet file; None: the file is the image.
    """

    name: str
    file: str
    row: int | None


def list_entries(given: str) -> tuple[Any, int]:
    """The images of an input, each once.

    Args:
        given: a folder (with its subfolders), a list (.txt, one path or address a line), Parquet
            (a file, or a folder that holds no images but .parquet files); each may be in S3.

    Returns:
        A `pyarrow.Table` of the columns of `BulkEntry`; how many repetitions of a name were left
        out.

    Raises:
        InputError: it cannot be read, or holds no images.
    """
    entries: Iterator[BulkEntry]
    if storage.is_folder(given):  # also one called NAME.parquet, as Spark writes it
        images = storage.list_files(given, IMAGE_SUFFIXES)
        tables = [] if images else storage.list_files(given, (".parquet",))
        if not images and not tables:
            raise InputError(f"{given}: the folder holds no images and no Parquet files")
        entries = (
            (BulkEntry(image, image, None) for image in images)
            if images
            else (entry for table in tables for entry in _of_parquet(table))
        )
    elif given.lower().endswith(".txt"):
        entries = _of_list(given)
    elif given.lower().endswith(".parquet"):
        entries = _of_parquet(given)
    else:
        raise InputError(
            f"{given}: expected a folder, a list (.txt) or Parquet (.parquet), here or in s3://"
        )
    return _table(given, entries)


def _table(given: str, entries: Iterator[BulkEntry]) -> tuple[Any, int]:
    pa = arrow()
    seen: set[tuple[str, int | None]] = set()  # names of rows may be the same
    kept: list[BulkEntry] = []
    repeated = 0
    for entry in entries:
        if (place := (entry.file, entry.row)) in seen:
            repeated += 1
            continue
        seen.add(place)
        kept.append(entry)
    if not kept:
        raise InputError(f"{given}: names no images")
    names, files, rows = zip(*kept, strict=True)
    text = [pa.array([_utf8(one) for one in column], pa.string()) for column in (names, files)]
    return pa.table([*text, pa.array(rows, pa.int64())], names=list(BulkEntry._fields)), repeated


def _utf8(name: str) -> str:
    """A name as the table holds it; a file whose name is no UTF-8 cannot be found by it again."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name!r}: the name is not UTF-8, rename it") from None
    return name


def _of_list(address: str) -> Iterator[BulkEntry]:
    data = storage.read_bytes(address, MAX_LIST_BYTES)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{address}: not a list of paths in UTF-8") from None
    for line in lines:
        if (name := line.strip()) and not name.startswith("#"):
            found = _beside(address, name)
            yield BulkEntry(found, found, None)


def _beside(address: str, name: str) -> str:
    """A path in a list or table is relative to its folder, as everywhere."""
    if "://" in name and not storage.is_remote(name):
        raise InputError(f"{address}: names {name[:80]}, expected paths and s3:// addresses")
    if storage.is_remote(name) or os.path.isabs(name):
        return name
    folder = address.rsplit("/", 1)[0] if storage.is_remote(address) else os.path.dirname(address)
    return storage.join(folder, name) if folder else name


def _of_parquet(address: str) -> Iterator[BulkEntry]:
    """A file with images in it, or one that names images."""
    file = storage.open_parquet(address)
    content, name = content_column(file.schema_arrow), name_column(file.schema_arrow)
    if content is None and name is None:
        raise InputError(
            f"{address}: has no column of images ({', '.join(CONTENTS)}) and none that names them "
            f"({', '.join(NAMES)})"
        )
    rows = file.metadata.num_rows
    names = _strings(file.read(columns=[name])) if name else [None] * rows
    for row, given in enumerate(names):
        if content is not None:
            yield BulkEntry(given or f"{address}#{row}", address, row)
        elif given:
            found = _beside(address, given)
            yield BulkEntry(found, found, None)


def _strings(table: Any) -> list[str | None]:
    """The one column of a table, or the one field of its structs."""
    pa = arrow()
    if pa.types.is_struct(table.column(0).type):
        table = table.flatten()
    names: list[str | None] = table.column(0).to_pylist()
    return names


def name_column(schema: Any) -> str | None:
    """The column that names images, "image.path" for a field of a struct."""
    pa = arrow()
    for name in NAMES:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return name
    for name in CONTENTS:
        if name in schema.names and pa.types.is_struct(schema.field(name).type):
            fields = schema.field(name).type
            if any(fields.field(i).name == "path" for i in range(fields.num_fields)):
                return f"{name}.path"
    return None


def content_column(schema: Any) -> str | None:
    """The column with image files, "image.bytes" for a field of a struct."""
    pa = arrow()
    for name in CONTENTS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return name
        if pa.types.is_struct(kind):
            fields = [kind.field(i).name for i in range(kind.num_fields)]
            if "bytes" in fields:
                return f"{name}.bytes"
    return None
