"""The plan of a bulk run: its images in parts of equal size, written down before the first one.

OUTPUT/bulk.json has the settings, OUTPUT/inputs.parquet the images in their order. A part is done
when OUTPUT/images/part-N.parquet is there, which is written last and at once. So a part is done
once, whoever does it, and a run that goes on, on another machine too, knows what is left.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError, UsageError
from ..sinks.parquet import arrow
from . import storage
from .listing import BulkEntry, list_entries

SETTINGS, INPUTS = "bulk.json", "inputs.parquet"
_KIND = "sparsedet bulk 1"


class Plan:
    """The parts of a run.

    Args:
        output: folder of the results.
        settings: of the run, JSON-ready.
        table: the images, as of `list_entries`.
        size: images of a part; the last one may be smaller.
    """

    def __init__(self, output: str, settings: Mapping[str, Any], table: Any, size: int) -> None:
        self.output, self.settings, self.table, self.size = output, dict(settings), table, size

    @property
    def images(self) -> int:
        return int(self.table.num_rows)

    @property
    def parts(self) -> int:
        return -(-self.images // self.size)

    def entries(self, part: int) -> Iterator[BulkEntry]:
        """The images of a part, in order."""
        rows = self.table.slice(part * self.size, self.size)
        columns = [rows.column(name).to_pylist() for name in BulkEntry._fields]
        return map(BulkEntry._make, zip(*columns, strict=True))

    def images_of(self, part: int) -> int:
        """How many images a part has."""
        return min(self.size, self.images - part * self.size)

    def file(self, kind: str, part: int) -> str:
        """The address of a part's file; kind: "images" or "detections"."""
        return storage.join(storage.join(self.output, kind), f"part-{part:06}.parquet")

    def missing(self) -> list[int]:
        """The parts that are not done yet."""
        folder = storage.join(self.output, "images")
        done: set[str] = set()
        if storage.is_folder(folder):
            done = set(storage.list_files(folder, (".parquet",)))
        return [part for part in range(self.parts) if self.file("images", part) not in done]

    def save(self) -> None:
        """Write the plan down; the settings last, because they say that it is whole.

        Raises:
            InputError: it cannot be written.
        """
        data = io.BytesIO()
        arrow().parquet.write_table(self.table, data)
        storage.write_bytes(storage.join(self.output, INPUTS), data.getvalue())
        content = {"kind": _KIND, "part_images": self.size, "settings": self.settings}
        text = json.dumps(content, indent=1) + "\n"
        storage.write_bytes(storage.join(self.output, SETTINGS), text.encode())


def load_plan(output: str) -> Plan:
    """The plan of a run that has begun.

    Raises:
        InputError: there is none, or it is damaged.
    """
    address = storage.join(output, SETTINGS)
    try:
        content = json.loads(storage.read_bytes(address, 1 << 24))
        if content["kind"] != _KIND:
            raise ValueError
        settings, size = dict(content["settings"]), int(content["part_images"])
        if size < 1:
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{address}: not the plan of a bulk run; take another folder") from None
    table = storage.open_parquet(storage.join(output, INPUTS)).read()
    if table.column_names != list(BulkEntry._fields):
        raise InputError(f"{storage.join(output, INPUTS)}: not the inputs of a bulk run")
    return Plan(output, settings, table, size)


def make_plan(
    given: str, output: str, settings: Mapping[str, Any], size: int, *, resume: bool
) -> tuple[Plan, int]:
    """A new plan, or with `resume` the one of the run that was stopped.

    Args:
        given: the input, see `list_entries`; a run that goes on does not list it again.
        settings: of the run; one that goes on must have the same.

    Returns:
        The plan; how many repetitions of a name were left out.

    Raises:
        InputError: a run has begun there, or it had other settings; or as `list_entries`.
    """
    if size < 1:
        raise UsageError(f"a part has {size} images, expected at least 1")
    wanted = {"--input": given, **json.loads(json.dumps(dict(settings)))}
    begun = storage.exists(storage.join(output, SETTINGS))
    if begun and not resume:
        raise InputError(
            f"{output}: a bulk run has begun there; --resume goes on, or take another folder"
        )
    if not begun:
        table, repeated = list_entries(given)
        plan = Plan(output, wanted, table, size)
        plan.save()
        return plan, repeated
    plan = load_plan(output)
    for key in sorted({*plan.settings, *wanted}):
        then, now = plan.settings.get(key), wanted.get(key)
        if then != now:
            raise InputError(
                f"{output}: the run had {key} {then}, this one has {now}; give the same"
            )
    return plan, 0
