"""`sparsedet quantize`: calibrate a model file for int8."""

from __future__ import annotations

import argparse
from pathlib import Path

from .messages import Progress
from .options import Command, add, add_bad_images, output_file


def register(command: Command) -> None:
    """Add the parser."""
    quantize = command(
        "quantize",
        run_quantize,
        "Calibrate a model for --precision int8, on unlabelled images.",
        usage="[MODEL] --images FOLDER --output PATH [OPTIONS]",
        details="The result is a model file with the same weights, and the clipping threshold of\n"
        "each layer's output. int8 is fast for models that are pruned with --pattern 1x4.",
        examples=(
            "sparsedet quantize pruned.safetensors --images photos --output int8.safetensors",
            "sparsedet detect street.jpg --model int8.safetensors --precision int8",
        ),
    )
    quantize.add_argument(
        "file", nargs="?", type=Path, metavar="MODEL", help="model file (default: the embedded one)"
    )
    add(quantize, "--images", required=True)
    add(quantize, "--calibration-images", default=16)
    add_bad_images(quantize)
    add(quantize, "--output", required=True, type=output_file)
    add(quantize, "--threads")


def run_quantize(arguments: argparse.Namespace) -> int:
    from ..detector import embedded_model
    from ..engine.calibrate import quantize_file

    quantize_file(
        arguments.file or embedded_model(),
        arguments.images,
        arguments.output,
        calibration_images=arguments.calibration_images,
        threads=arguments.threads,
        progress=Progress("calibrate"),
        bad_images=arguments.bad_images,
    )
    print(f"-> {arguments.output}")
    return 0
