"""`sparsedet prune`: prune a trained model, gradually or at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError
from .convert_onnx import check_no_onnx_flags, load_network, onnx_flags
from .messages import Progress, warn
from .options import Command, add, group, settings_of
from .train import add_training, train

if TYPE_CHECKING:
    from ..evaluation.coco import CocoDataset
    from ..model.file import AnyFile
    from ..pruning.run import Comparing

DETAILS = """\
MODEL is a network of any kind: an ONNX file, a model file, a detector of another project. It is
pruned at once, without training or labels, by --method reconstruct (the default for MODEL) or
magnitude. With --annotations the result's AP is compared, too: on their images, of which none is
used to prune. SIGINT and SIGTERM finish the layer and write a checkpoint; --resume continues to the
same bits (on as many threads).
--method gradual (the default for --init) prunes a Faster R-CNN while fine-tuning it on
--annotations."""

FINE_TUNING = {
    "sparsity": 0.6,
    "prune_end": "two thirds of the steps",
    "learning_rate": 0.001,
    "warmup_steps": "100, at most a tenth of the steps",
}
"""Defaults of `prune` in words, where they differ from those of `train`."""
CHECKPOINTS = "checkpoint_minutes"


def register(command: Command) -> None:
    """Add the parser."""
    prune = command(
        "prune",
        run_prune,
        "Prune a trained model, gradually while fine-tuning it, or at once.",
        usage="MODEL --images FOLDER [OPTIONS]",
        details=DETAILS,
        examples=(
            "sparsedet prune yolox_nano.onnx --images photos --sparsity 0.5 --output pruned",
            "sparsedet prune --init run --annotations train.json --images train --output pruned "
            "--sparsity 0.7",
        ),
    )
    prune.set_defaults(preset=None)
    prune.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="the network to prune")
    pruning = group(prune, "pruning")
    pruning.add_argument(
        "--method",
        choices=("gradual", "magnitude", "reconstruct"),
        help="how weights are chosen and removed (default: reconstruct for MODEL, else gradual)",
    )
    pruning.add_argument(
        "--damping",
        type=float,
        metavar="D",
        help="of reconstruct: more of it fits the calibration images less (default: 0.01)",
    )
    add(prune, "--annotations", "--val-images", "--no-compare")
    add(prune, "--calibration-images", default=128)
    add_training(prune, FINE_TUNING, output_required=False)
    onnx = group(prune, "ONNX")
    onnx_flags(onnx)
    add(prune, "--shape", "--max-detections")


def run_prune(arguments: argparse.Namespace) -> int:
    model, init = arguments.model, arguments.init
    if model is not None and init is not None:
        raise UsageError(f"{model} and --init {init} are two models to prune, expected one")
    method = arguments.method or ("gradual" if model is None else "reconstruct")
    arguments.init = init if model is None else model
    if arguments.init is None and (method != "gradual" or not arguments.resume):
        raise UsageError("MODEL is needed: the network to prune")
    if method != "gradual":
        return _prune_once(arguments, method)
    check_no_onnx_flags(arguments)
    if arguments.damping is not None:
        raise UsageError("--damping is for --method reconstruct")
    if arguments.annotations is None:
        raise UsageError("--annotations is needed to prune gradually")
    if arguments.output is None:
        raise UsageError("--output is needed to prune gradually")
    return train(arguments, FINE_TUNING)


def _prune_once(arguments: argparse.Namespace, method: Any) -> int:
    try:
        from ..detector import model_path
        from ..pruning.one_shot import OneShotConfig
        from ..pruning.run import prune_files
        from ..training.start import model_of_run, set_threads
    except ImportError as error:
        raise InputError(f"pruning needs: pip install 'sparsedet[train]' ({error})") from None

    given: dict[str, Any] = settings_of(arguments, "recipe")
    for flag in ("teacher", "recipe"):
        if getattr(arguments, flag):
            raise UsageError(f"--{flag} is for --method gradual")
    for key in given:
        if key not in ("sparsity", "pattern", "allocation", "exclude", "seed", CHECKPOINTS):
            raise UsageError(f"--{key.replace('_', '-')} is for --method gradual")
    if "exclude" in given:
        given["exclude"] = tuple(given["exclude"])
    if arguments.damping is not None:
        given["damping"] = arguments.damping
    if arguments.threads is not None:
        set_threads(arguments.threads)
    minutes = {CHECKPOINTS: given.pop(CHECKPOINTS)} if CHECKPOINTS in given else {}
    settings = OneShotConfig(method=method, **given)
    model = model_of_run(Path(model_path(arguments.init)))
    # Read once: the data set may take long, and needs the names of the model's classes.
    file, notes = load_network(model, arguments)
    output = arguments.output or Path(f"{model.stem}-pruned")
    bar = Progress("prune", "steps")
    report = prune_files(
        model,
        arguments.images,
        output,
        settings,
        calibration_images=arguments.calibration_images,
        comparing=comparing(arguments, file),
        progress=lambda done, steps, what: bar(done + 1, steps),
        bad_images=arguments.bad_images,
        load=lambda _: file,
        resume=arguments.resume,
        **minutes,
    )
    if report is None:
        print("stopped; --resume continues")
        return 130
    for line in notes:
        print(f"{model}: {line}")
    print(report.table())
    print(f"-> {output / 'model.safetensors'}")
    return 0


def comparing(arguments: argparse.Namespace, file: AnyFile) -> Comparing | None:
    """How the result is compared with its dense network; None: it is not."""
    from ..pruning.run import Comparing

    if arguments.no_compare:
        return None
    return Comparing(
        dataset=_annotated(arguments, file),
        threads=arguments.threads,
        progress=Progress("compare"),
    )


def _annotated(arguments: argparse.Namespace, file: AnyFile) -> CocoDataset | None:
    """The images that `--annotations` names, for AP; None without the flag.

    Raises:
        InputError: they cannot be used, or the network is no detector.
    """
    from ..evaluation.coco import load_coco
    from ..model.network import NetworkConfig

    if arguments.annotations is None:
        if arguments.val_images is not None:
            raise UsageError("--val-images needs --annotations")
        return None
    if isinstance(file.config, NetworkConfig):
        raise UsageError(f"--annotations is for detectors, and {file.config.name} is none")
    folder = arguments.val_images or arguments.images
    dataset = load_coco(arguments.annotations, folder, file.config.class_names)
    warn(dataset.warnings())
    return dataset
