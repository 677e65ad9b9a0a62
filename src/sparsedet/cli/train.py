"""`sparsedet train`: train a model; the recipe's flags, which `prune` shares."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from ..errors import InputError, UsageError
from .messages import Progress
from .options import MODEL, Command, OldSpelling, add, add_bad_images, group, settings_of

if TYPE_CHECKING:
    from ..training.recipe import Recipe

DETAILS = """\
--output is the run folder: checkpoints, log, plots, and at the end model.safetensors.
SIGINT and SIGTERM finish the step and write a checkpoint; --resume continues to the same bits."""


def register(command: Command) -> None:
    """Add the parser."""
    train = command(
        "train",
        run_train,
        "Train a model on COCO-format data.",
        usage="--annotations FILE --images FOLDER --output PATH [OPTIONS]",
        details=DETAILS,
        examples=(
            "sparsedet train --annotations train.json --images train --output run "
            "--init resnet101.pth",
            "sparsedet train --annotations train.json --images train --output run --resume",
        ),
    )
    add(train, "--annotations", required=True)
    add_training(train, {})
    add(train, "--preset")
    train.add_argument("--model", action=OldSpelling, dest="preset", new="--preset", metavar="NAME")


def add_training(
    parser: argparse.ArgumentParser, defaults: dict[str, Any], *, output_required: bool = True
) -> None:
    """The flags that `train` and `prune` share.

    Args:
        defaults: of the recipe's fields, where they differ from `Recipe`.
        output_required: whether `--output` must be given.
    """
    add(parser, "--images", required=True)
    add(parser, "--output", required=output_required)
    add_bad_images(parser)
    add(parser, "--init", "--teacher", "--threads")
    add(parser, "--resume")
    group(parser, MODEL).add_argument(
        "--recipe", type=Path, metavar="FILE", help="JSON file of the recipe settings below"
    )
    _add_recipe(parser, defaults)


def _add_recipe(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """A flag for each field of `Recipe`, named after it."""
    from ..training.recipe import HELP, Recipe

    settings = group(parser, "recipe")
    hints = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        hint, flag = hints[field.name], "--" + field.name.replace("_", "-")
        default = defaults.get(field.name, field.default)
        common: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "dest": f"recipe.{field.name}",
            "help": f"{HELP[field.name]} (default: {'none' if default == () else default})",
        }
        if hint is bool:
            settings.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif hint in (int, float):
            settings.add_argument(flag, type=hint, metavar=hint.__name__.upper(), **common)
        elif get_args(hint) and get_args(hint)[-1] is Ellipsis:
            settings.add_argument(flag, type=get_args(hint)[0], nargs="*", metavar="X", **common)
        else:
            choices = field.metadata.get("choices", get_args(hint))
            settings.add_argument(flag, choices=choices, **common)


def run_train(arguments: argparse.Namespace) -> int:
    return train(arguments, {})


def _recipe(arguments: argparse.Namespace, fine_tuning: dict[str, Any]) -> Recipe:
    """The settings: defaults of the command or of the resumed run, then the recipe file, then the
    flags; later ones win.

    Args:
        fine_tuning: the command's defaults in words; empty for `train`.
    """
    from ..files import read_json
    from ..training.recipe import Recipe

    values: dict[str, Any] = {}
    noted = arguments.output / "run.json"
    if arguments.resume and noted.exists():
        try:
            values = dict(read_json(noted)["recipe"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{noted}: not the description of a run: it has no recipe") from None
        fine_tuning = {}  # its defaults are in there
    if arguments.recipe:
        given = read_json(arguments.recipe)
        if not isinstance(given, dict):
            raise InputError(f"{arguments.recipe}: expected a JSON object of recipe settings")
        values |= given
    flags = settings_of(arguments, "recipe")
    try:
        return Recipe.from_dict(_with_defaults({**values, **flags}, fine_tuning))
    except InputError as error:
        Recipe.from_dict(_with_defaults(values, fine_tuning))  # the files are wrong, or else:
        raise UsageError(str(error)) from None


def _with_defaults(values: dict[str, Any], fine_tuning: dict[str, Any]) -> dict[str, Any]:
    """The settings with those defaults of `prune` that depend on others."""
    from ..pruning.patterns import PATTERNS
    from ..training.recipe import Recipe

    steps = values.get("steps", Recipe().steps)
    if fine_tuning and isinstance(steps, int):
        # Fine-tuning: zeros grow over the first two thirds, then the rest recovers.
        pattern = PATTERNS.get(str(values.get("pattern")))
        fixed = {"sparsity": 0.0} if pattern and pattern.fixed_sparsity is not None else {}
        return {
            **fine_tuning,
            "prune_end": max(1, steps * 2 // 3),
            "warmup_steps": min(100, steps // 10),
            **fixed,
            **values,
        }
    return values


def train(arguments: argparse.Namespace, fine_tuning: dict[str, Any]) -> int:
    """Train as the flags say; returns the exit code.

    Args:
        fine_tuning: defaults of `prune`, which must then make zeros; empty for `train`.
    """
    recipe = _recipe(arguments, fine_tuning)
    if fine_tuning and not recipe.prunes:
        raise UsageError("sparsity is 0.0, expected more for prune")
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
        model=arguments.preset,
        teacher=arguments.teacher,
        resume=arguments.resume,
        command=arguments.command_line,
        bad_images=arguments.bad_images,
        progress=Progress("check", "images"),
    )
    return 0 if finished else 130
