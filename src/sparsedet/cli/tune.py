"""`sparsedet tune`: a pruned network learns from its dense one."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..errors import InputError
from .messages import Progress
from .options import Command, add, add_bad_images, group, settings_of
from .prune import comparing


def register(command: Command) -> None:
    """Add the parser."""
    tune = command(
        "tune",
        run_tune,
        "Tune a pruned network on the outputs of its dense one, without labels; zeros stay.",
        usage="MODEL --teacher DENSE --images FOLDER --output PATH [OPTIONS]",
        details="MODEL is a pruned network or its folder, DENSE the network that it was pruned "
        "from.\nSIGINT and SIGTERM finish the step and write a checkpoint; --resume continues to "
        "the same bits.",
        examples=(
            "sparsedet tune pruned --teacher yolox_nano.onnx --images photos --output tuned",
            "sparsedet tune pruned --teacher yolox_nano.onnx --images photos --output tuned "
            "--resume",
        ),
    )
    tune.add_argument("file", type=Path, metavar="MODEL", help="pruned network, or its folder")
    add(tune, "--teacher", "--images", "--output", required=True)
    add(tune, "--annotations", "--val-images", "--no-compare")
    add_bad_images(tune)
    add(tune, "--threads", "--resume")
    from ..training.tune_config import HELP, TuneConfig

    settings = group(tune, "settings")
    for field in dataclasses.fields(TuneConfig):
        kind = type(field.default)
        settings.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=f"tune.{field.name}",
            type=kind,
            metavar=kind.__name__.upper(),
            default=field.default,
            help=f"{HELP[field.name]} (default: {field.default})",
        )


def run_tune(arguments: argparse.Namespace) -> int:
    try:
        from ..importers import load_trained
        from ..model.file import NetworkFile
        from ..training.start import model_of_run, set_threads
        from ..training.tune_config import TuneConfig
        from ..training.tune_run import tune_files
    except ImportError as error:
        raise InputError(f"tuning needs: pip install 'sparsedet[train]' ({error})") from None

    settings = TuneConfig(**settings_of(arguments, "tune"))
    if arguments.threads is not None:
        set_threads(arguments.threads)
    names = model_of_run(arguments.file), model_of_run(arguments.teacher)
    pruned = load_trained(names[0])[0]
    dense = load_trained(names[1], raw=isinstance(pruned, NetworkFile))[0]
    bar = Progress("tune", "steps")
    report = tune_files(
        pruned,
        dense,
        arguments.images,
        arguments.output,
        settings,
        names=names,
        resume=arguments.resume,
        comparing=comparing(arguments, pruned),
        bad_images=arguments.bad_images,
        progress=lambda step, steps, loss: bar(step, steps),
    )
    if report is None:
        print("stopped; --resume continues")
        return 130
    print(report.table())
    print(f"-> {arguments.output / 'model.safetensors'}")
    return 0
