"""`sparsedet train` and `sparsedet prune`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from ..errors import InputError
from .options import Command

if TYPE_CHECKING:
    from ..model.file import ModelFile
    from ..training.recipe import Recipe


def register(command: Command) -> None:
    """Add both parsers."""
    train = command("train", run_train, "Train a model on COCO-format data.")
    train.add_argument(
        "--model", metavar="PRESET", help="default: that of --init or that fits it, else r50half-c4"
    )
    prune = command(
        "prune", run_prune, "Prune a trained model, gradually while fine-tuning it or at once."
    )
    prune.set_defaults(model=None)
    prune.add_argument(
        "--method",
        choices=("gradual", "magnitude", "reconstruct"),
        default="gradual",
        help="gradual trains and needs annotations; the others "
        "prune at once and need photographs alone",
    )
    prune.add_argument(
        "--calibration-photos",
        type=int,
        default=128,
        metavar="N",
        help="photographs to prune at once by, drawn from --images (default 128)",
    )
    for sub in (train, prune):
        sub.add_argument("--annotations", type=Path, required=sub is train, help="COCO-format JSON")
        sub.add_argument("--images", type=Path, required=True, help="folder of the photographs")
        sub.add_argument(
            "--init",
            type=Path,
            help="run folder, "
            "checkpoint, model file, a detector as `convert` reads it (Detectron2, "
            "TensorPack, OpenVINO), torchvision or open_nsfw classifier",
        )
        sub.add_argument(
            "--teacher",
            type=Path,
            metavar="MODEL",
            help="run folder or detector to learn from, too",
        )
        sub.add_argument("--output", type=Path, required=True, help="run folder")
        sub.add_argument(
            "--resume",
            action="store_true",
            help="continue the run in the folder, by its own recipe unless told otherwise",
        )
        sub.add_argument("--threads", type=int, help="CPU threads")
        sub.add_argument("--recipe", type=Path, help="JSON file of the settings below")
        _recipe_flags(sub, FINE_TUNING if sub is prune else {})


FINE_TUNING = {
    "sparsity": 0.6,
    "prune_end": "two thirds of the steps",
    "learning_rate": 0.001,
    "warmup_steps": "100, at most a tenth of the steps",
}
"""What `prune` does unless told otherwise: `_recipe`."""


def _recipe_flags(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """A flag for each field of `Recipe`, named after it."""
    from ..training.recipe import HELP, Recipe

    group = parser.add_argument_group("recipe")
    hints = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        hint, flag = hints[field.name], "--" + field.name.replace("_", "-")
        default = defaults.get(field.name, field.default)
        common: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "dest": f"recipe.{field.name}",
            "help": f"{HELP[field.name]} (default {'none' if default == () else default})",
        }
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif hint in (int, float):
            group.add_argument(flag, type=hint, metavar=hint.__name__.upper(), **common)
        elif get_args(hint) and get_args(hint)[-1] is Ellipsis:
            group.add_argument(flag, type=get_args(hint)[0], nargs="*", metavar="X", **common)
        else:
            choices = field.metadata.get("choices", get_args(hint))
            group.add_argument(flag, choices=choices, **common)


def run_train(arguments: argparse.Namespace) -> int:
    return _train(arguments, prune=False)


def run_prune(arguments: argparse.Namespace) -> int:
    if arguments.init is None and not arguments.resume:
        raise InputError("--init is needed: what is to be pruned")
    if arguments.method != "gradual":
        return _prune_once(arguments)
    if arguments.annotations is None:
        raise InputError("--annotations is needed to prune gradually")
    return _train(arguments, prune=True)


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
            raise InputError(f"--{flag} is for --method gradual")
    for key in given:
        if key not in ("sparsity", "pattern", "allocation", "exclude", "seed"):
            raise InputError(f"--{key.replace('_', '-')} is for --method gradual")
    if "exclude" in given:
        given["exclude"] = tuple(given["exclude"])
    if arguments.threads is not None:
        set_threads(arguments.threads)
    settings = OneShotConfig(method=arguments.method, **given)

    def progress(done: int, steps: int, what: str) -> None:
        print(f"{done + 1}/{steps} {what}", flush=True)

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
        calibration_images=arguments.calibration_photos,
        progress=progress,
        load=load,
    )
    print(report.table())
    print(f"-> {arguments.output / 'model.safetensors'}")
    return 0


def _recipe(arguments: argparse.Namespace, prune: bool) -> Recipe:
    """The settings: those of the command or of the run that is resumed, of the recipe file, of
    the flags; the last one wins."""
    from ..files import read_json
    from ..pruning.patterns import PATTERNS
    from ..training.recipe import Recipe

    values: dict[str, Any] = {}
    noted = arguments.output / "run.json"
    if arguments.resume and noted.exists():
        try:
            values = dict(read_json(noted)["recipe"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{noted}: holds no recipe of a run") from None
        prune = False  # its defaults are in there
    if arguments.recipe:
        given = read_json(arguments.recipe)
        if not isinstance(given, dict):
            raise InputError(f"{arguments.recipe}: expected a JSON object of recipe settings")
        values |= given
    values |= {
        key.removeprefix("recipe."): value
        for key, value in vars(arguments).items()
        if key.startswith("recipe.")
    }
    steps = values.get("steps", Recipe().steps)
    if prune and isinstance(steps, int):
        # Fine-tuning: zeros grow over the first two thirds, then the rest recovers.
        pattern = PATTERNS.get(str(values.get("pattern")))
        fixed = {"sparsity": 0.0} if pattern and pattern.fixed_sparsity is not None else {}
        values = {
            **FINE_TUNING,
            "prune_end": max(1, steps * 2 // 3),
            "warmup_steps": min(100, steps // 10),
            **fixed,
            **values,
        }
    return Recipe.from_dict(values)


def _train(arguments: argparse.Namespace, prune: bool) -> int:
    recipe = _recipe(arguments, prune)
    if prune and not recipe.prunes:
        raise InputError("sparsity is 0.0, expected more for prune")
    try:
        from ..training import run, start
    except ImportError as error:
        raise InputError(f"training needs: pip install 'sparsedet[train]' ({error})") from None
    if arguments.threads is not None:
        start.set_threads(arguments.threads)
    finished = run.train(
        recipe,
        arguments.annotations,
        arguments.images,
        arguments.output,
        init=arguments.init,
        model=arguments.model,
        teacher=arguments.teacher,
        resume=arguments.resume,
        command=arguments.command_line,
    )
    return 0 if finished else 130
