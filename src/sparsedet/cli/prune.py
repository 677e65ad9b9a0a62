"""`sparsedet prune`: prune a trained model, gradually or at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from .options import Command, Progress, add, group
from .train import add_training, train

if TYPE_CHECKING:
    from ..model.file import ModelFile

DETAILS = """\
--method gradual (the default) prunes while fine-tuning and needs --annotations.
magnitude and reconstruct prune at once, without training or labels."""

FINE_TUNING = {
    "sparsity": 0.6,
    "prune_end": "two thirds of the steps",
    "learning_rate": 0.001,
    "warmup_steps": "100, at most a tenth of the steps",
}
"""Defaults of `prune` in words, where they differ from those of `train`."""


def register(command: Command) -> None:
    """Add the parser."""
    prune = command(
        "prune",
        run_prune,
        "Prune a trained model, gradually while fine-tuning it, or at once.",
        usage="--init PATH --images FOLDER --output PATH [OPTIONS]",
        details=DETAILS,
        examples=(
            "sparsedet prune --method reconstruct --init mine.safetensors --images photos "
            "--output pruned",
            "sparsedet prune --init run --annotations train.json --images train --output pruned "
            "--sparsity 0.7",
        ),
    )
    prune.set_defaults(preset=None)
    group(prune, "pruning").add_argument(
        "--method",
        choices=("gradual", "magnitude", "reconstruct"),
        default="gradual",
        help="how weights are chosen and removed",
    )
    add(prune, "--annotations")
    add(prune, "--calibration-images", default=128)
    add_training(prune, FINE_TUNING)


def run_prune(arguments: argparse.Namespace) -> int:
    if arguments.init is None and not arguments.resume:
        raise UsageError("--init is needed: the model to prune")
    if arguments.method != "gradual":
        return _prune_once(arguments)
    if arguments.annotations is None:
        raise UsageError("--annotations is needed to prune gradually")
    return train(arguments, FINE_TUNING)


def _prune_once(arguments: argparse.Namespace) -> int:
    try:
        from ..importers import load_any
        from ..pruning.one_shot import OneShotConfig
        from ..pruning.run import prune_files
        from ..training.start import model_of_run, set_threads
    except ImportError as error:
        raise InputError(f"pruning needs: pip install 'sparsedet[train]' ({error})") from None

    given = {
        key.removeprefix("recipe."): value
        for key, value in vars(arguments).items()
        if key.startswith("recipe.")
    }
    for flag in ("teacher", "recipe", "resume"):
        if getattr(arguments, flag):
            raise UsageError(f"--{flag} is for --method gradual")
    for key in given:
        if key not in ("sparsity", "pattern", "allocation", "exclude", "seed"):
            raise UsageError(f"--{key.replace('_', '-')} is for --method gradual")
    if "exclude" in given:
        given["exclude"] = tuple(given["exclude"])
    if arguments.threads is not None:
        set_threads(arguments.threads)
    settings = OneShotConfig(method=arguments.method, **given)

    bar = Progress("prune", "steps")

    def load(path: Path) -> ModelFile:
        model, notes = load_any(path)
        for line in notes:
            print(f"{path}: {line}")
        return model

    report = prune_files(
        model_of_run(arguments.init),
        arguments.images,
        arguments.output,
        settings,
        calibration_images=arguments.calibration_images,
        progress=lambda done, steps, what: bar(done + 1, steps),
        bad_images=arguments.bad_images,
        load=load,
    )
    print(report.table())
    print(f"-> {arguments.output / 'model.safetensors'}")
    return 0
