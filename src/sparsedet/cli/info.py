"""`sparsedet info`: layers, parameters, sparsity, cost and plan of a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import PRECISIONS, Command

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..model.file import ModelFile


def register(command: Command) -> None:
    """Add the parser."""
    info = command("info", run_info, "Layers, parameters, sparsity and cost of a model.")
    info.add_argument("file", nargs="?", type=Path, help="default: the embedded model")
    info.add_argument("--model", metavar="PRESET", help="a preset instead of a file")
    info.add_argument(
        "--plan",
        action="store_true",
        help="how each operation is run here: method, expected and measured GFLOP/s",
    )
    info.add_argument(
        "--autotune",
        type=Path,
        metavar="FILE",
        help="measure all methods of each operation, write the fastest to a plan file",
    )
    info.add_argument("--precision", choices=PRECISIONS, default="f32", help="of --plan")
    info.add_argument("--rois", type=int, help="regions an image (default: the model's)")


def run_info(arguments: argparse.Namespace) -> int:
    from ..detector import embedded_model
    from ..engine import choose_isa
    from ..model.c4 import build_network
    from ..model.file import load_model
    from ..model.presets import preset
    from ..model.sparsity import sparsity_report

    if arguments.rois is not None and arguments.rois < 1:
        raise InputError(f"--rois is {arguments.rois}, expected at least 1")
    if arguments.model and arguments.file:
        raise InputError("give a file or --model PRESET, not both")
    if arguments.model and (arguments.plan or arguments.autotune):
        raise InputError("--plan and --autotune need a file: a preset has no weights")
    if arguments.model:
        config = preset(arguments.model)
        rois = arguments.rois or config.proposals
        print(_describe(config))
        network = build_network(config)
        rows = [
            (
                layer.name,
                layer.weight_shape,
                layer.parameters,
                None,
                layer.macs * (rois if layer.component == "roi" else 1),
                None,
            )
            for layer in network.weighted
        ]
        print(_layer_table(rows, rois))
        print(_costs(config, rois))
        return 0
    path = arguments.file or embedded_model()
    model = load_model(path)
    try:
        isa = choose_isa()
    except ValueError as error:  # SPARSEDET_ISA
        raise InputError(str(error)) from None
    if arguments.plan or arguments.autotune:
        return _show_plan(arguments, model)
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
        f"({report.rois} regions)."
    )
    for key, value in model.provenance.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    print(f"instruction set here: {isa}")
    return 0


def _show_plan(arguments: argparse.Namespace, model: ModelFile) -> int:
    """`info --plan`: measured here, on noise; `--autotune` chooses by measuring first."""
    from ..engine import Engine
    from ..engine.autotune import autotune, measure, save_tuning, table

    algorithms = None
    if arguments.autotune:
        algorithms = autotune(
            model.config,
            model.tensors,
            precision=arguments.precision,
            clipping_thresholds=model.clipping_thresholds,
        )
        save_tuning(arguments.autotune, algorithms)
    engine = Engine(
        model.config,
        model.tensors,
        precision=arguments.precision,
        algorithms=algorithms,
        clipping_thresholds=model.clipping_thresholds,
    )
    rows = measure(engine)
    print(table(rows))
    work, busy = sum(r.gflop for r in rows), sum(r.seconds for r in rows)
    print(
        f"{engine.isa}, {engine.precision}, {engine.threads} threads: {work:.1f} GFLOP in "
        f"{busy:.3f} s, RoIAlign, pooling and NMS apart"
    )
    memory = engine.memory
    print(
        f"memory: packed weights {memory.weights / 1e6:.1f} MB, activations "
        f"{memory.activations / 1e6:.1f} MB"
    )
    return 0


def _describe(config: ModelConfig) -> str:
    return (
        f"{config.name}: Faster R-CNN C4, {config.num_classes} classes, network input "
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
    lines.append(f"(GMACs of one image with {rois} regions)")
    return "\n".join(lines)


def _costs(config: ModelConfig, rois: int) -> str:
    """Parameters and GFLOPs of the configuration, the published figures beside them."""
    from ..model.c4 import build_network
    from ..model.presets import preset

    network = build_network(config)
    many, one = network.flops(rois) / 1e9, network.flops(1) / 1e9
    text = (
        f"{network.parameters:,} parameters (batch norm folded)\n"
        f"{many:.2f} GFLOPs by convolutions and fully connected layers with {rois} regions, "
        f"{one:.2f} with one (2 FLOPs a multiply-add)"
    )
    if config == preset("r101-c4"):
        text += (
            "\nPublished: 52.79 M parameters; 849.91 GFLOPs (current description) and 364.21 "
            "(first one).\nBoth are this network: the first counts res5 and the predictors for "
            "300 regions, the second\nfor one; the rest, 2.4 and 1.2 GFLOPs, is element-wise "
            "work that is not counted here."
        )
    return text
