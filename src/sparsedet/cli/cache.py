"""`sparsedet cache`: list and clear what sparsedet keeps on the disk."""

from __future__ import annotations

import argparse

from .options import Command


def register(command: Command) -> None:
    """Add the parser."""
    cache = command(
        "cache",
        run_cache,
        "List or clear downloads and packed weights.",
        usage="[OPTIONS]",
        details="The folder is SPARSEDET_CACHE, by default ~/.cache/sparsedet. Files of other\n"
        "programs in it are left alone.",
        examples=("sparsedet cache", "sparsedet cache --clear packed"),
    )
    cache.add_argument(
        "--clear",
        choices=("packed", "downloads", "all"),
        help="delete packed weights, downloads, or both",
    )


def run_cache(arguments: argparse.Namespace) -> int:
    raise NotImplementedError
