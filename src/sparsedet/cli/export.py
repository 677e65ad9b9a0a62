"""`sparsedet export`: a model as OpenVINO IR or ONNX."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import Command

if TYPE_CHECKING:
    from ..model.file import ModelFile

SUFFIXES = {".xml": "openvino", ".onnx": "onnx"}


def register(command: Command) -> None:
    """Add the parser."""
    export = command("export", run_export, "Write a model as OpenVINO IR or ONNX.")
    export.add_argument("model", nargs="?", type=Path, help="default: the embedded model")
    export.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="FILE.xml (beside it goes FILE.bin) or FILE.onnx",
    )
    export.add_argument(
        "-f", "--format", choices=tuple(SUFFIXES.values()), help="default: by the file's ending"
    )
    export.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the stored weights"
    )
    export.add_argument(
        "--layout",
        choices=("NCHW", "NHWC"),
        default="NCHW",
        help="input `input` [1,3,H,W] or `image` [1,H,W,3]",
    )
    export.add_argument(
        "--rows", choices=("4d", "2d"), default="4d", help="output [1,1,N,7] or [N,7]"
    )
    export.add_argument(
        "--max-detections", type=int, metavar="N", help="rows of the output (default: the model's)"
    )
    export.add_argument(
        "--image-info",
        action="store_true",
        help="add the unused input image_info [1,3] that Open Model Zoo's accuracy checker feeds",
    )
    export.add_argument(
        "--hoist",
        action="store_true",
        help="run res5's first linear layers once "
        "on the map, not for each region: the same detections",
    )
    export.add_argument(
        "--dynamic-batch",
        action="store_true",
        help="ONNX: leave the batch axis open; one picture a run",
    )
    export.add_argument(
        "--int8", action="store_true", help="OpenVINO: quantise with NNCF; needs --images"
    )
    export.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="calibration photographs of --int8, without labels",
    )
    export.add_argument(
        "--photos", type=int, metavar="N", help="how many of them (default: 128, or all if fewer)"
    )
    export.add_argument("--overwrite", action="store_true", help="replace existing files")


def run_export(arguments: argparse.Namespace) -> int:
    from ..detector import embedded_model
    from ..model.file import load_model

    kind = arguments.format or SUFFIXES.get(arguments.output.suffix)
    if kind is None:
        raise InputError(f"{arguments.output}: ends in neither .xml nor .onnx; give -f")
    _check_flags(arguments, kind)
    model = load_model(arguments.model or embedded_model())
    if arguments.max_detections is not None:
        config = replace(model.config, max_detections=arguments.max_detections)
        model = replace(model, config=config)
    form: dict[str, Any] = {
        key: getattr(arguments, key) for key in ("dtype", "layout", "rows", "image_info", "hoist")
    }
    if kind == "onnx":
        from ..exporters.onnx import save_onnx

        save_onnx(
            arguments.output,
            model.config,
            model.tensors,
            overwrite=arguments.overwrite,
            dynamic_batch=arguments.dynamic_batch,
            **form,
        )
    else:
        _export_openvino(arguments, model, form)
    _describe(arguments, model, form)
    return 0


def _check_flags(arguments: argparse.Namespace, kind: str) -> None:
    if kind == "onnx" and arguments.int8:
        raise InputError("--int8 is for -f openvino")
    if kind == "openvino" and arguments.dynamic_batch:
        raise InputError("--dynamic-batch is for -f onnx; an IR is reshaped by its reader")
    if arguments.int8:
        if arguments.images is None:
            raise InputError("--int8 needs --images FOLDER, photographs to calibrate on")
        if arguments.dtype != "float32" or arguments.image_info:
            raise InputError("--int8 goes with neither --dtype float16 nor --image-info")
    elif arguments.images is not None or arguments.photos is not None:
        raise InputError("--images and --photos are for --int8")


def _export_openvino(arguments: argparse.Namespace, model: ModelFile, form: dict[str, Any]) -> None:
    from ..exporters.form import output_path
    from ..exporters.openvino import to_openvino, write_ir

    target = output_path(arguments.output, ".xml", arguments.overwrite)
    if arguments.int8:
        from ..exporters.nncf import calibration_images, quantize, require_nncf

        require_nncf()
        paths = calibration_images(arguments.images, arguments.photos)
    graph = to_openvino(model.config, model.tensors, **form)
    if arguments.int8:
        graph = quantize(graph, paths, model.config, arguments.layout)
    write_ir(graph, target, arguments.overwrite)


def _describe(arguments: argparse.Namespace, model: ModelFile, form: dict[str, Any]) -> None:
    """What was written, for the terminal."""
    from ..exporters.form import Form
    from ..model.sparsity import sparsity_report

    shape = Form(**form)
    report = sparsity_report(model.config, model.tensors)
    for file in (arguments.output, arguments.output.with_suffix(".bin")):
        if file.exists() and (file == arguments.output or arguments.output.suffix == ".xml"):
            print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    info = " and image_info [1, 3]" if shape.image_info else ""
    print(f"input {shape.input_name} {shape.input_shape(model.config)}{info}, BGR, 0..255")
    print(f"output detections {shape.output_shape(model.config)}")
    print(
        f"{report.zeros:,} of {report.parameters:,} parameters are zero "
        f"({100 * report.sparsity:.2f} %)"
    )
