"""`sparsedet quantize`: calibrate a model file for int8."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..choices import DEFAULT_MODEL
from .convert_onnx import load_network, onnx_flags
from .messages import Progress, warn
from .options import Command, add, add_bad_images, group, output_file


def register(command: Command) -> None:
    """Add the parser."""
    quantize = command(
        "quantize",
        run_quantize,
        "Calibrate a model for --precision int8, on unlabelled images.",
        usage="[MODEL] --images FOLDER --output PATH [OPTIONS]",
        details="MODEL is a network of any kind: a model file, an ONNX file, a detector of another "
        "project.\nThe result is a model file with the same weights, and what bytes hold of each "
        "value.\nint8 is fast for models that are pruned with --pattern 1x4.",
        examples=(
            "sparsedet quantize yolox_nano.onnx --images photos --output int8.safetensors",
            "sparsedet detect street.jpg --model int8.safetensors --precision int8",
        ),
    )
    quantize.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help=f"the network (default: {DEFAULT_MODEL})",
    )
    add(quantize, "--images", required=True)
    add(quantize, "--calibration-images", default=16)
    add_bad_images(quantize)
    add(quantize, "--output", required=True, type=output_file)
    add(quantize, "--threads")
    onnx = group(quantize, "ONNX")
    onnx_flags(onnx)
    add(quantize, "--shape", "--max-detections")


def run_quantize(arguments: argparse.Namespace) -> int:
    from ..detector import model_path
    from ..engine.calibrate import quantize_file

    model = Path(model_path(arguments.file))
    arguments.init = model
    file, notes = load_network(model, arguments)
    for note in notes:
        warn(note)
    quantize_file(
        model,
        arguments.images,
        arguments.output,
        calibration_images=arguments.calibration_images,
        threads=arguments.threads,
        progress=Progress("calibrate"),
        bad_images=arguments.bad_images,
        load=lambda path: file,
    )
    print(f"-> {arguments.output}")
    return 0
