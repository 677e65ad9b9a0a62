"""`sparsedet info`: layers, parameters, sparsity and cost of a model, and how it runs here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import DEFAULT_MODEL
from ..errors import InputError, UsageError
from .forecast import forecast_lines
from .messages import warn
from .options import RUNNING, Command, add, add_old, group, output_file

if TYPE_CHECKING:
    from ..model.detector_config import Config
    from ..model.file import ModelFile


def register(command: Command) -> None:
    """Add the parser."""
    info = command(
        "info",
        run_info,
        "Show layers, parameters, sparsity and cost of a model.",
        usage="[MODEL] [OPTIONS]",
        examples=(
            "sparsedet info yolov8s.onnx --shape 1x3x640x640",
            "sparsedet info mine.safetensors --autotune mine.tuning.json",
        ),
    )
    info.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="model file, or a checkpoint or ONNX file that `convert` reads (default: "
        f"{DEFAULT_MODEL})",
    )
    add(info, "--preset", "--rois")
    running = group(info, RUNNING)
    running.add_argument(
        "--operations",
        action="store_true",
        help="show how each operation runs here: algorithm, expected and measured GFLOP/s, memory",
    )
    running.add_argument(
        "--autotune",
        type=output_file,
        metavar="FILE",
        help="measure all algorithms of each operation and write the fastest to a tuning file",
    )
    add(info, "--precision", default="full")
    add_old(info, "--plan", "--operations", action="store_true")
    add(info, "--shape")
    info.add_argument("--model", dest="model", metavar="FILE", help=argparse.SUPPRESS)


def _model(arguments: argparse.Namespace) -> Path | None:
    """The model file, by its place or by --model, which named a preset in release 0.1."""
    from ..model.presets import PRESETS

    given: list[Path] = [path for path in (arguments.file,) if path]
    if arguments.model in PRESETS and not Path(arguments.model).exists():
        warn([f"--model {arguments.model} is now --preset {arguments.model}"])
        arguments.preset = arguments.model
    elif arguments.model:
        given.append(Path(arguments.model))
    if len(given) + bool(arguments.preset) > 1:
        raise UsageError("give a model file or --preset NAME, not both")
    return given[0] if given else None


def run_info(arguments: argparse.Namespace) -> int:
    from ..detector import model_path
    from ..engine import choose_isa
    from ..files import check_output
    from ..importers import load_any
    from ..model.detector_config import build_graph
    from ..model.presets import detector_preset
    from ..model.sparsity import sparsity_report

    if arguments.rois is not None and arguments.rois < 1:
        raise UsageError(f"--rois is {arguments.rois}, expected at least 1")
    file = _model(arguments)
    operations = arguments.operations or arguments.autotune
    if arguments.preset and operations:
        raise UsageError("--operations and --autotune need a model file: a preset has no weights")
    if arguments.autotune:
        check_output(arguments.autotune, flag="")  # before the work, not after
    if arguments.preset:
        config = detector_preset(arguments.preset)
        rois = arguments.rois or config.proposals
        print(_describe(config))
        graph = build_graph(config)
        cells = graph.cells(rois)
        rows = [
            (
                layer.name,
                layer.weight_shape,
                layer.parameters,
                None,
                layer.weights * cells[layer.name],
                None,
            )
            for layer in graph.layers
        ]
        print(_layer_table(rows, rois))
        print(_costs(config, rois))
        print("\n".join(forecast_lines(config, rois, None, arguments.precision)))
        return 0
    path = Path(model_path(file))
    if path.suffix.lower() == ".onnx" and not operations:
        from .info_onnx import show_onnx

        return show_onnx(path, arguments)
    model, notes = load_any(path)
    warn(notes)
    try:
        isa = choose_isa()
    except ValueError as error:  # SPARSEDET_ISA
        raise InputError(str(error)) from None
    if operations:
        return _show_operations(arguments, model)
    report = sparsity_report(model.config, model.tensors, arguments.rois)
    print(f"{path}  ({path.stat().st_size / 1e6:.2f} MB, {model.storage_dtype})")
    print(_describe(model.config))
    print(
        _layer_table(
            [
                (r.name, r.shape, r.parameters, r.sparsity, r.macs, r.sparse_macs)
                for r in report.layers
            ],
            report.rois,
        )
    )
    print(
        f"{report.zeros:,} of {report.parameters:,} parameters are zero: "
        f"sparsity {100 * report.sparsity:.2f} % of all weights and biases, batch norm folded"
    )
    print(_costs(model.config, report.rois))
    print(
        f"After pruning {report.sparse_gflops:.2f} of {report.gflops:.2f} GFLOPs remain "
        f"({report.rois} RoIs)."
    )
    for key, value in model.provenance.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    print(f"instruction set here: {isa}")
    lines = forecast_lines(
        model.config,
        report.rois,
        report,
        arguments.precision,
        bool(model.clipping_thresholds),
    )
    print("\n".join(lines))
    return 0


def _show_operations(arguments: argparse.Namespace, model: ModelFile) -> int:
    """`info --operations`: measured here, on noise; `--autotune` measures all algorithms first."""
    from ..engine import Engine
    from ..engine.autotune import autotune, measure, save_tuning, table

    algorithms = None
    if arguments.autotune:
        algorithms = autotune(
            model.config,
            model.tensors,
            precision=arguments.precision,
            clipping_thresholds=model.clipping_thresholds,
            int8_biases=model.int8_biases,
        )
        save_tuning(arguments.autotune, algorithms)
    engine = Engine(
        model.config,
        model.tensors,
        precision=arguments.precision,
        algorithms=algorithms,
        clipping_thresholds=model.clipping_thresholds,
        int8_biases=model.int8_biases,
    )
    rows = measure(engine)
    print(table(rows))
    work, busy = sum(r.gflop for r in rows), sum(r.seconds for r in rows)
    print(
        f"{engine.isa}, {engine.precision}, {engine.threads} threads: {work:.1f} GFLOP in "
        f"{busy:.3f} s, RoIAlign, pooling and NMS apart"
    )
    if engine.precision_reason:
        print(f"precision {engine.precision}, {engine.precision_reason}")
    memory = engine.memory
    print(
        f"memory: packed weights {memory.weights / 1e6:.1f} MB, activations "
        f"{memory.activations / 1e6:.1f} MB"
    )
    if engine.conversions:
        moved = engine.native.converted_bytes / 1e6
        print(
            f"{len(engine.conversions)} conversions between formats read and write "
            f"{moved:.1f} MB in a run"
        )
    return 0


def _describe(config: Config) -> str:
    from ..model.config import ModelConfig

    family = "Faster R-CNN C4, " if isinstance(config, ModelConfig) else ""
    return (
        f"{config.name}: {family}{config.num_classes} classes, network input "
        f"{config.input_width}x{config.input_height}, {config.proposals} proposals, "
        f"{config.max_detections} rows"
    )


def _layer_table(rows: list[tuple[Any, ...]], rois: int) -> str:
    """name, weight shape, parameters, sparsity, MACs and MACs after pruning of each layer."""
    heads = ("parameters", 13), ("sparsity", 10), ("GMACs", 10), ("pruned", 10)
    lines = [f"{'layer':<18}{'weights':>20}" + "".join(f"{text:>{width}}" for text, width in heads)]
    for name, shape, parameters, sparsity, macs, pruned in rows:
        lines.append(
            f"{name:<18}{'x'.join(map(str, shape)):>20}{parameters:>13,}"
            f"{'' if sparsity is None else f'{100 * sparsity:.1f} %':>10}{macs / 1e9:>10.3f}"
            f"{'' if pruned is None else f'{pruned / 1e9:.3f}':>10}"
        )
    lines.append(f"(GMACs of one image with {rois} RoIs)")
    return "\n".join(lines)


def _costs(config: Config, rois: int) -> str:
    """Parameters and GFLOPs of the configuration, the published figures beside them."""
    from ..model.detector_config import build_graph
    from ..model.presets import preset

    graph = build_graph(config)
    many, one = graph.flops(rois) / 1e9, graph.flops(1) / 1e9
    text = (
        f"{graph.parameters:,} parameters (batch norm folded)\n"
        f"{many:.2f} GFLOPs by convolutions and fully connected layers with {rois} regions, "
        f"{one:.2f} with one (2 FLOPs a multiply-add)"
    )
    if config == preset("r101-c4"):
        text += (
            "\nPublished: 52.79 M parameters; 849.91 GFLOPs (current description) and 364.21 "
            "(first one).\nBoth are this network: the first counts the RoI head for 300 regions, "
            "the second for one;\nthe rest, 2.4 and 1.2 GFLOPs, is element-wise work that is not "
            "counted here."
        )
    return text
