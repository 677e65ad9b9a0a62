"""`sparsedet export`: a model as OpenVINO IR or ONNX."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError
from .options import (
    MODEL_OR_NAME,
    OUTPUT,
    Command,
    add,
    add_bad_images,
    add_old,
    group,
    output_file,
)

if TYPE_CHECKING:
    from ..model.file import ModelFile

SUFFIXES = {".xml": "openvino", ".onnx": "onnx"}


def register(command: Command) -> None:
    """Add the parser."""
    export = command(
        "export",
        run_export,
        "Export a model to OpenVINO IR or ONNX.",
        usage="[MODEL] --output PATH [OPTIONS]",
        details="The output is FILE.onnx, or FILE.xml with FILE.bin beside it; the whole detector\n"
        "is inside, from BGR pixels 0..255 to rows of detections.",
        examples=(
            "sparsedet export mine.safetensors -o mine.onnx",
            "sparsedet export -o int8.xml --int8 --images photos",
        ),
    )
    export.add_argument("file", nargs="?", type=Path, metavar="MODEL", help=MODEL_OR_NAME)
    add(export, "--max-detections")
    add(export, "--output", required=True, type=output_file)
    form = group(export, OUTPUT)
    form.add_argument(
        "--to", choices=tuple(SUFFIXES.values()), help="form (default: by the file's suffix)"
    )
    for old in ("-f", "--format"):
        add_old(export, old, "--to", choices=tuple(SUFFIXES.values()))
    add(export, "--dtype", default="float32")
    form.add_argument(
        "--layout",
        choices=("NCHW", "NHWC"),
        default="NCHW",
        help="the input is `input` [1,3,H,W] or `image` [1,H,W,3]",
    )
    form.add_argument(
        "--rows", choices=("4d", "2d"), default="4d", help="the output is [1,1,N,7] or [N,7]"
    )
    form.add_argument(
        "--image-info",
        action="store_true",
        help="add the unused input image_info [1,3] that Open Model Zoo's accuracy checker feeds",
    )
    form.add_argument(
        "--hoist",
        action="store_true",
        help="run the RoI head's first linear layers once on the feature map, not for each RoI: "
        "the same detections",
    )
    form.add_argument(
        "--dynamic-batch",
        action="store_true",
        help="ONNX: leave the batch axis open (one image per run)",
    )
    form.add_argument(
        "--int8", action="store_true", help="OpenVINO: quantize with NNCF; needs --images"
    )
    add(export, "--overwrite", "--images", "--calibration-images")
    add_bad_images(export)


def run_export(arguments: argparse.Namespace) -> int:
    from ..detector import model_path
    from ..model.detector_config import with_form
    from ..model.file import load_model

    form = arguments.to or SUFFIXES.get(arguments.output.suffix)
    if form is None:
        raise UsageError(f"{arguments.output}: ends in neither .xml nor .onnx; give --to")
    _check_flags(arguments, form)
    model = load_model(model_path(arguments.file))
    if arguments.max_detections is not None:
        try:
            config = with_form(model.config, max_detections=arguments.max_detections)
        except InputError as error:
            raise UsageError(str(error)) from None
        model = replace(model, config=config)
    settings: dict[str, Any] = {
        key: getattr(arguments, key) for key in ("dtype", "layout", "rows", "image_info", "hoist")
    }
    if form == "onnx":
        from ..exporters.onnx import save_onnx

        save_onnx(
            arguments.output,
            model.config,
            model.tensors,
            overwrite=arguments.overwrite,
            dynamic_batch=arguments.dynamic_batch,
            **settings,
        )
    else:
        _export_openvino(arguments, model, settings)
    _describe(arguments, model, settings)
    return 0


def _check_flags(arguments: argparse.Namespace, form: str) -> None:
    if form == "onnx" and arguments.int8:
        raise UsageError("--int8 is for --to openvino")
    if form == "openvino" and arguments.dynamic_batch:
        raise UsageError("--dynamic-batch is for --to onnx; whoever reads an IR can reshape it")
    if arguments.int8:
        if arguments.images is None:
            raise UsageError("--int8 needs --images FOLDER to calibrate on")
        if arguments.dtype != "float32" or arguments.image_info:
            raise UsageError("--int8 cannot be combined with --dtype float16 or --image-info")
    elif arguments.images is not None or arguments.calibration_images is not None:
        raise UsageError("--images and --calibration-images are for --int8")


def _export_openvino(
    arguments: argparse.Namespace, model: ModelFile, settings: dict[str, Any]
) -> None:
    from ..exporters.form import output_path
    from ..exporters.openvino import to_openvino, write_ir

    target = output_path(arguments.output, ".xml", arguments.overwrite)
    if arguments.int8:
        from ..exporters.nncf import calibration_images, quantize, require_nncf

        require_nncf()
        paths = calibration_images(
            arguments.images, arguments.calibration_images, arguments.bad_images
        )
    graph = to_openvino(model.config, model.tensors, **settings)
    if arguments.int8:
        graph = quantize(graph, paths, model.config, arguments.layout)
    write_ir(graph, target, arguments.overwrite)


def _describe(arguments: argparse.Namespace, model: ModelFile, settings: dict[str, Any]) -> None:
    """What was written, for the terminal."""
    from ..exporters.form import Form
    from ..model.sparsity import sparsity_report

    shape = Form(**settings)
    report = sparsity_report(model.config, model.tensors)
    for file in (arguments.output, arguments.output.with_suffix(".bin")):
        if file.exists() and (file == arguments.output or arguments.output.suffix == ".xml"):
            print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    if model.config.resize == "shorter":
        print(
            "all images have one network input: they are letterboxed, not resized by shorter side"
        )
    info = " and image_info [1, 3]" if shape.image_info else ""
    print(f"input {shape.input_name} {shape.input_shape(model.config)}{info}, BGR, 0..255")
    for name, output in shape.output_shapes(model.config).items():
        print(f"output {name} {output}")
    print(
        f"{report.zeros:,} of {report.parameters:,} parameters are zero "
        f"({100 * report.sparsity:.2f} %)"
    )
