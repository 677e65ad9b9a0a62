"""`sparsedet cache`: list and clear what sparsedet keeps on the disk."""

from __future__ import annotations

import argparse
import time

from .options import Command

DETAILS = """\
The folder is SPARSEDET_CACHE, by default ~/.cache/sparsedet. Packed weights stay below
SPARSEDET_CACHE_LIMIT (default 10GB; 0: no limit): the least recently used files go first.
Files of other programs are left alone."""


def register(command: Command) -> None:
    """Add the parser."""
    cache = command(
        "cache",
        run_cache,
        "List or clear downloads and packed weights.",
        usage="[OPTIONS]",
        details=DETAILS,
        examples=("sparsedet cache", "sparsedet cache --clear packed"),
    )
    cache.add_argument(
        "--clear",
        choices=("packed", "downloads", "all"),
        help="delete packed weights, downloads, or both",
    )


def run_cache(arguments: argparse.Namespace) -> int:
    from ..engine import packed_cache
    from ..files import cache_folder
    from ..hub.cache import list_cached, remove_cached

    packed = packed_cache.entries(cache_folder() / "packed")
    downloads = list_cached()
    if arguments.clear:
        freed = 0
        if arguments.clear in ("packed", "all"):
            packed_cache.remove(packed)
            freed += sum(entry.bytes for entry in packed)
        if arguments.clear in ("downloads", "all"):
            freed += sum(file.size for file in remove_cached())
        print(f"freed {freed / 1e6:.1f} MB in {cache_folder()}")
        return 0
    print(f"{cache_folder()}")
    for title, files in (
        ("packed weights", [(f.path, f.bytes, f.last_used) for f in packed]),
        ("downloads", [(f.path, f.size, f.last_used) for f in downloads]),
    ):
        print(f"{title}: {len(files)} files, {sum(size for _, size, _ in files) / 1e6:.1f} MB")
        for path, size, used in files:
            day = time.strftime("%Y-%m-%d", time.localtime(used))
            print(f"  {size / 1e6:10.1f} MB  used {day}  {path.relative_to(cache_folder())}")
    return 0
