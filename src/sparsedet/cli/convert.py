"""`sparsedet convert`: a model of another project -> a model file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError
from .convert_onnx import check_no_onnx_flags, convert_onnx, onnx_flags
from .options import INPUT, Command, add, check_outputs, group, output_file

if TYPE_CHECKING:
    from ..importers import Imported
    from ..model.config import ModelConfig
    from ..model.file import StorageDtype

SHOWN = 8
"""Number of ignored tensors that are named without --verbose."""


def _sources() -> str:
    from ..importers import FORMATS  # they need numpy, which the help of all commands does not

    return "SOURCE is one of: " + "; ".join(FORMATS.values()) + "."


def register(command: Command) -> None:
    """Add the parser."""
    convert = command(
        "convert",
        run_convert,
        "Convert a model of another project, or a training run, to a model file.",
        usage="SOURCE --output PATH [OPTIONS]",
        details=_sources,
        examples=(
            "sparsedet convert model_final.pth --config config.yaml -o mine.safetensors",
            "sparsedet convert yolox_nano.onnx -o mine.safetensors",
        ),
    )
    from ..importers import FORMATS

    convert.add_argument("source", type=Path, metavar="SOURCE", help="the file or run folder")
    source = group(convert, INPUT)
    source.add_argument(
        "--from",
        dest="format",
        choices=tuple(FORMATS),
        help="form of the source (default: detected by its content)",
    )
    source.add_argument(
        "--rgb",
        action="store_true",
        help="Detectron2: the model was trained with INPUT.FORMAT RGB",
    )
    source.add_argument(
        "--eps",
        type=float,
        metavar="E",
        help="torchvision: epsilon of the batch norms (default: 1e-5; torchvision's published "
        "COCO_V1 weights run with 0)",
    )
    source.add_argument(
        "--min-size",
        type=int,
        metavar="PIXELS",
        help="torchvision: shorter side of the resized image (default: 800)",
    )
    source.add_argument(
        "--max-size",
        type=int,
        metavar="PIXELS",
        help="torchvision: longest side of the resized image (default: 1333)",
    )
    source.add_argument(
        "--proposals",
        type=int,
        metavar="N",
        help="torchvision: proposals before and after non-maximum suppression (default: 1000; "
        "fasterrcnn_mobilenet_v3_large_320_fpn has 150)",
    )
    source.add_argument(
        "--probe",
        type=Path,
        metavar="IMAGE",
        help="OpenVINO: image on which source and result are compared (default: a synthetic one)",
    )
    source.add_argument(
        "--force",
        action="store_true",
        help="save the result even if its detections differ from those of the source",
    )
    source.add_argument(
        "--weights",
        metavar="NAME",
        help="which of several models in a checkpoint, as ema or teacher (default: the one that "
        "its project's own loader takes)",
    )
    onnx_flags(source)
    add(convert, "--shape", "--max-detections")
    add(convert, "--preset")
    add(convert, "--config", action="append")
    add(convert, "--output", required=True, type=output_file)
    add(convert, "--dtype", default="float32")
    add(convert, "--overwrite", "--verbose")


def run_convert(arguments: argparse.Namespace) -> int:
    from ..model.presets import preset

    if arguments.source.suffix.lower() == ".onnx" and arguments.format in (None, "onnx"):
        return convert_onnx(arguments)
    check_no_onnx_flags(arguments)
    base = preset(arguments.preset) if arguments.preset else None
    stated = {
        key: value
        for key in ("eps", "min_size", "max_size", "proposals")
        if (value := getattr(arguments, key)) is not None
    }
    return convert_file(
        arguments.source,
        arguments.output,
        form=arguments.format,
        base=base,
        config=arguments.config or (),
        rgb=arguments.rgb,
        weights=arguments.weights,
        torchvision=stated,
        dtype=arguments.dtype,
        probe=arguments.probe,
        force=arguments.force,
        overwrite=arguments.overwrite,
        verbose=arguments.verbose,
    )


def convert_file(
    source: Path,
    output: Path,
    *,
    form: str | None = None,
    base: ModelConfig | None = None,
    fields: dict[str, Any] | None = None,
    config: Sequence[Path] = (),
    rgb: bool = False,
    weights: str | None = None,
    torchvision: dict[str, Any] | None = None,
    dtype: StorageDtype = "float32",
    probe: Path | None = None,
    force: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
) -> int:
    """Convert one source and print what was done; returns the exit code.

    Args:
        source, output: files; the source may be a run folder.
        form: a key of `importers.FORMATS`; default: detected by content.
        base, fields, config, rgb, weights, torchvision: as `importers.load_foreign` takes them.
        probe, force: of an OpenVINO source, see `--probe` and `--force`.

    Raises:
        InputError: the source cannot be converted, or the output cannot be written.
    """
    from ..files import is_stream
    from ..importers import detect_format, load_foreign
    from ..model.file import load_model, save_model
    from ..model.sparsity import sparsity_report

    check_outputs(overwrite, output)
    form = form or detect_format(source, weights)
    imported = load_foreign(
        source,
        form,
        base=base,
        fields=fields,
        rgb=rgb,
        config=config,
        weights=weights,
        torchvision=torchvision,
    )
    if form == "openvino":
        _probe(source, imported, probe, force)
    elif probe or force:
        raise UsageError("--probe and --force are for an OpenVINO IR")
    report = sparsity_report(imported.config, imported.tensors)  # complete and finite
    save_model(
        output,
        imported.config,
        imported.tensors,
        imported.provenance,
        dtype=dtype,
        overwrite=overwrite,
    )
    written = report
    if not is_stream(output):
        written = sparsity_report(imported.config, load_model(output).tensors)
    _print(imported, verbose)
    print(
        f"{report.parameters:,} parameters (batch norm folded), {report.zeros:,} of them zero "
        f"({100 * report.sparsity:.2f} %)"
    )
    if written.zeros != report.zeros:
        print(
            f"{written.zeros:,} zero in the file: {written.zeros - report.zeros:,} were too small "
            "for float16"
        )
    print(f"-> {output}  ({output.stat().st_size / 1e6:.2f} MB, {dtype})")
    return 0


def _probe(source: Path, imported: Imported, probe: Path | None, force: bool) -> None:
    """Run the source beside the import, where OpenVINO is installed."""
    from ..evaluation.imported import compare_with_openvino, have_openvino
    from ..images.read import read_image

    image = read_image(probe) if probe else None
    if not have_openvino():
        print("not compared with the source: OpenVINO is not installed")
        return
    result = compare_with_openvino(source, imported, image)
    print(f"compared with OpenVINO on one image: {result}")
    if not result.source and not result.ours:
        print("no detections in the probe image, so the comparison is weak: pass --probe IMAGE")
    if not result.agrees and not force:
        reasons = "; ".join(imported.notes)
        raise InputError(
            f"{source}: the converted model's detections differ from the source's ({result}); "
            f"--force saves it anyway{f'. Known differences: {reasons}' if reasons else ''}"
        )


def _print(imported: Imported, verbose: bool) -> None:
    from ..importers.tensor_source import printable
    from ..model.config import ModelConfig

    config = imported.config
    blocks = f", blocks {config.blocks}" if isinstance(config, ModelConfig) else ""
    print(
        f"{config.name}: {config.num_classes} classes{blocks}, network input "
        f"{config.input_width}x{config.input_height}, {config.proposals} proposals"
    )
    for line in imported.notes:
        print(line)
    names = [printable(name) for name in imported.ignored]
    if names:
        shown = names if verbose else names[:SHOWN]
        more = f", ... (--verbose names all {len(names)})" if len(shown) < len(names) else ""
        print(
            f"{len(names)} tensors of the source are not part of the network: "
            f"{', '.join(shown)}{more}"
        )
    print(
        f"each of the {len(imported.tensors)} tensors of the network was found, of the right shape "
        "and finite"
    )
