"""`sparsedet quantize`: give a model file the ranges that int8 needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import Command


def register(command: Command) -> None:
    """Add the parser."""
    quantize = command(
        "quantize",
        run_quantize,
        "Calibrate a model for --precision int8 on a few photographs without labels.",
    )
    quantize.add_argument(
        "file", nargs="?", type=Path, metavar="MODEL", help="default: the embedded model"
    )
    quantize.add_argument("--images", type=Path, required=True, help="folder of the photographs")
    quantize.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="model file to write: the same weights, and the ranges",
    )
    quantize.add_argument(
        "--photos",
        type=int,
        default=16,
        metavar="N",
        help="photographs to take at most (default 16)",
    )
    quantize.add_argument("--threads", type=int, help="default: the CPUs this process may use")


def run_quantize(arguments: argparse.Namespace) -> int:
    from ..detector import embedded_model
    from ..engine.calibrate import quantize_file

    def progress(done: int, photographs: int) -> None:
        print(f"{done}/{photographs}", flush=True)

    quantize_file(
        arguments.file or embedded_model(),
        arguments.images,
        arguments.output,
        calibration_images=arguments.photos,
        threads=arguments.threads,
        progress=progress,
    )
    print(f"-> {arguments.output}")
    return 0
