"""A training run from files to files: data, initial weights, training, the model file."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.coco import load_coco
from ..files import sha256_of, weights_file
from ..model.config import COCO_NAMES
from ..model.presets import preset
from ..pruning.allocation import prunable_layers
from . import distributed
from .recipe import Recipe
from .start import build_model, check_folder, load_teacher, open_start, prepare_folder
from .trainer import Trainer


def train(
    recipe: Recipe,
    annotations: Path,
    images: Path,
    output: Path,
    *,
    init: Path | None = None,
    model: str | None = None,
    teacher: Path | None = None,
    resume: bool = False,
    command: Sequence[str] = (),
) -> bool:
    """Train a model, or prune it gradually; under torchrun together with the other processes.

    Args:
        recipe: all settings.
        annotations: COCO-format JSON; its classes become the model's.
        images: folder of its images.
        output: the run folder.
        init: initial weights: a run folder, or a file that `open_start` reads.
        model: name of a preset; default: the configuration of `init`, for a classifier the preset
            that it fits, else `r50half-c4`.
        teacher: a run folder or detector whose outputs are further targets (`distill`).
        resume: continue the run in `output`; `init` is not read.
        command: command line, recorded in the run folder.

    Returns:
        whether the run finished; if not, it was stopped and can be resumed.

    Raises:
        InputError: an input cannot be used, or training cannot go on.
    """
    with distributed.session() as ranks:
        begin = output if resume else init
        start = open_start(begin) if begin else None
        source = start.config if start else None
        if model:
            config = preset(model)
        else:
            config = source or preset((start and start.preset) or "r50half-c4")
        dataset = load_coco(annotations, images)
        if set(dataset.class_names) == set(COCO_NAMES):
            dataset = load_coco(annotations, images, COCO_NAMES)
        # The data's own classes and ids; labels and predictors follow.
        config = dataclasses.replace(
            config, class_names=dataset.class_names, category_ids=dataset.category_ids
        )
        if ranks.writes:
            for line in dataset.warnings():
                warnings.warn(line, stacklevel=2)
            for line in start.notes if start else ():
                print(f"{init}: {line}")
            if not start and recipe.freeze_at:
                warnings.warn(
                    "without --init all weights are initialised randomly, and the layers frozen "
                    f"by freeze_at={recipe.freeze_at} stay random",
                    stacklevel=2,
                )
        dataset.require_images()
        initial = start.tensors(config) if start else {}
        if source and source.class_names != config.class_names and not resume:
            if ranks.writes:
                print(f"{init} has other classes: the box predictors are initialised randomly")
            initial = {name: v for name, v in initial.items() if not name.startswith("box.")}
        origin = {}
        if init and not resume:
            assert start is not None
            file = weights_file(start.path)
            origin["init"] = {
                "name": f"{init.name}/{file.name}" if init.is_dir() else file.name,
                "sha256": sha256_of(file),
            }
        loaded = load_teacher(teacher) if teacher else None
        if loaded:
            origin["teacher"] = {"name": Path(loaded.name).name, "sha256": loaded.sha256}
        student = build_model(config, initial)
        trainer = Trainer(student, dataset, recipe, output, ranks, loaded, origin)
        if recipe.prunes and not resume and ranks.writes:
            layers = prunable_layers(trainer.model.network, recipe.exclude)
            zeros = sum(int((trainer.model.layers[n].weight == 0).sum()) for n in layers)
            if zeros > 0.1 * trainer.model.network.parameters:
                print(
                    f"{init}: {zeros:,} weights are zero and may become nonzero until the schedule "
                    "prunes them"
                )
        check_folder(output, resume)  # on every process, before one of them writes
        if ranks.writes:
            prepare_folder(output, resume)
        if resume and start and start.checkpoint:
            trainer.resume(start.checkpoint)
            if ranks.writes:
                print(f"continuing from {start.path}")
        del start, initial  # a checkpoint takes several times the model's memory
        trainer.describe(command)
        finished = trainer.run()
        if not ranks.writes:
            return finished
        if not finished:
            print(f"stopped after step {trainer.step} of {recipe.steps}; --resume continues")
            return False
        path = trainer.save_model(
            {"made_by": "sparsedet", "recipe": recipe.to_dict(), "data": annotations.name}
        )
        print(f"-> {path}")
        return True
