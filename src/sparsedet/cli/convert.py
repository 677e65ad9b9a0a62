"""`sparsedet convert`: a model of another project -> a model file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import Command

if TYPE_CHECKING:
    from ..importers import Imported

SHOWN = 8
"""So many names of ignored tensors are printed without --verbose."""


def register(command: Command) -> None:
    """Add the parser."""
    from ..importers import FORMATS

    convert = command(
        "convert",
        run_convert,
        "Read a model of another project (Detectron2, "
        "TensorPack, OpenVINO) or a training run, write a model file.",
    )
    convert.add_argument("source", type=Path, help="; ".join(FORMATS.values()))
    convert.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the model file to write"
    )
    convert.add_argument(
        "--from", dest="format", choices=tuple(FORMATS), help="default: found out by content"
    )
    convert.add_argument(
        "--preset",
        help="conventions that the source does not state; default: those that its project uses",
    )
    convert.add_argument(
        "--config",
        type=Path,
        metavar="JSON",
        help='an object of configuration fields that override all else, as {"class_names": [...]}',
    )
    convert.add_argument(
        "--rgb",
        action="store_true",
        help="a Detectron2 model of INPUT.FORMAT RGB, on a backbone of torchvision's",
    )
    convert.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the weights in the file (default float32: nothing is rounded)",
    )
    convert.add_argument(
        "--probe",
        type=Path,
        metavar="PHOTO",
        help="OpenVINO IR: what source and import are compared on (default: a synthetic picture)",
    )
    convert.add_argument(
        "--force", action="store_true", help="save even if it answers otherwise than its source"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace an existing file")
    convert.add_argument("--verbose", action="store_true", help="name every ignored tensor")


def run_convert(arguments: argparse.Namespace) -> int:
    from ..files import read_json
    from ..importers import detect_format, load_foreign
    from ..model.file import load_model, save_model
    from ..model.presets import preset
    from ..model.sparsity import sparsity_report

    output: Path = arguments.output
    if output.exists() and not arguments.overwrite:
        raise InputError(f"{output}: exists already; give --overwrite or another name")
    if not output.parent.is_dir():
        raise InputError(f"{output}: cannot be written ({output.parent} is no folder)")
    base = preset(arguments.preset) if arguments.preset else None
    fields: Any = read_json(arguments.config) if arguments.config else {}
    if not isinstance(fields, dict):
        raise InputError(f"{arguments.config}: expected a JSON object of configuration fields")
    kind = arguments.format or detect_format(arguments.source)
    imported = load_foreign(arguments.source, kind, base=base, fields=fields, rgb=arguments.rgb)
    if kind == "openvino":
        _probe(arguments, imported)
    elif arguments.probe or arguments.force:
        raise InputError("--probe and --force are for an OpenVINO IR")
    report = sparsity_report(imported.config, imported.tensors)  # complete and finite
    save_model(
        output,
        imported.config,
        imported.tensors,
        imported.provenance,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
    )
    written = sparsity_report(imported.config, load_model(output).tensors)
    _print(imported, arguments.verbose)
    print(
        f"{report.parameters:,} parameters (batch norm folded), {report.zeros:,} of them zero "
        f"({100 * report.sparsity:.2f} %)"
    )
    if written.zeros != report.zeros:
        print(
            f"{written.zeros:,} zero in the file: {written.zeros - report.zeros:,} were too small "
            "for float16"
        )
    print(f"-> {output}  ({output.stat().st_size / 1e6:.2f} MB, {arguments.dtype})")
    return 0


def _probe(arguments: argparse.Namespace, imported: Imported) -> None:
    """Run the source beside the import, where OpenVINO is installed."""
    from ..images.read import read_image
    from ..importers.openvino_ir.verify import compare_with_openvino, have_openvino

    photo = read_image(arguments.probe) if arguments.probe else None
    if not have_openvino():
        print("not compared with its source: OpenVINO is not installed")
        return
    result = compare_with_openvino(arguments.source, imported, photo)
    print(f"beside OpenVINO on one picture: {result}")
    if not result.source and not result.ours:
        print("nothing was detected there, which proves little: give --probe PHOTO")
    if not result.agrees and not arguments.force:
        reasons = "; ".join(imported.notes)
        raise InputError(
            f"{arguments.source}: the import answers otherwise than its source ({result}); --force "
            f"saves it all the same{f'. Known differences: {reasons}' if reasons else ''}"
        )


def _print(imported: Imported, verbose: bool) -> None:
    from ..importers.tensor_source import printable

    config = imported.config
    print(
        f"{config.name}: {config.num_classes} classes, blocks {config.blocks}, network input "
        f"{config.input_width}x{config.input_height}, {config.proposals} proposals"
    )
    for line in imported.notes:
        print(line)
    names = [printable(name) for name in imported.ignored]
    if names:
        shown = names if verbose else names[:SHOWN]
        more = f", ... (--verbose names all {len(names)})" if len(shown) < len(names) else ""
        print(
            f"{len(names)} tensors of the source are no part of the network: "
            f"{', '.join(shown)}{more}"
        )
    print(
        f"each of the {len(imported.tensors)} tensors of the network was found, of its shape "
        "and finite"
    )
