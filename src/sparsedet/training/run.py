"""A training run from files to files: data, initial weights, training, the model file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from ..errors import InputError
from ..evaluation.coco import CocoDataset, load_coco
from ..evaluation.images import without_bad_images
from ..files import sha256_of, weights_file
from ..images.check import BadImages
from ..model.checkpoint import check_run_folder, prepare_run_folder
from ..model.config import COCO_NAMES
from ..model.detector_config import Config, require_faster_rcnn, with_classes
from ..model.presets import detector_preset
from ..pruning.allocation import prunable_layers
from . import distributed
from .initial import initial_tensors
from .pulse import Pulse
from .recipe import Recipe
from .start import build_model, load_teacher, open_start
from .trainer import Trainer

_SLOW_TO_READ = 50.0
"""MB of JSON that take seconds to parse."""


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
    bad_images: BadImages = "stop",
    progress: Callable[[int, int], None] | None = None,
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
        bad_images: what an image does that cannot be used. "stop": an error, before the first step
            where its header shows it, else after a checkpoint. "skip": it is left out, with a
            warning. "keep": what of it can be decoded is used, with a warning.
        progress: called with (done, total) while the headers of the images are checked.

    Returns:
        whether the run finished; if not, it was stopped and can be resumed.

    Raises:
        InputError: an input cannot be used, or training cannot go on.
    """
    with distributed.session() as ranks, Pulse() if ranks.writes else nullcontext() as pulse:
        begin = output if resume else init
        start = open_start(begin) if begin else None
        source = start.config if start else None
        if model:
            config = detector_preset(model)
        else:
            config = source or detector_preset((start and start.preset) or "r50half-c4")
        require_faster_rcnn(config)
        if ranks.writes and os.path.isfile(annotations):
            megabytes = annotations.stat().st_size / 1e6
            if megabytes > _SLOW_TO_READ:  # nothing else can be printed while it is parsed
                print(f"reading {annotations} ({megabytes:.0f} MB)", flush=True)
        dataset = _load_data(annotations, images, source if resume else None, output)
        # The data's own classes and ids; labels and predictors follow.
        config = with_classes(config, dataset.class_names, dataset.whole_category_ids())
        if ranks.writes:
            for line in dataset.warnings():
                warnings.warn(line, stacklevel=2)
            for line in start.notes if start else ():
                print(f"{init}: {line}", flush=True)
            if not start and recipe.freeze_at:
                warnings.warn(
                    "without --init all weights are initialised randomly, and the layers frozen "
                    f"by freeze_at={recipe.freeze_at} stay random",
                    stacklevel=2,
                )
        if pulse:
            pulse.doing = f"checking the headers of {len(dataset.images)} images"
        with warnings.catch_warnings():
            if not ranks.writes:  # one process tells
                warnings.simplefilter("ignore")
                progress = None
            dataset = without_bad_images(dataset, bad_images, progress)
        if pulse:
            pulse.doing = "building the model"
        initial, note = initial_tensors(start, config) if start else ({}, "")
        if note and ranks.writes:
            print(f"{init} {note}", flush=True)
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
        trainer = Trainer(
            student, dataset, recipe, output, ranks, loaded, origin, bad_images, pulse
        )
        if recipe.prunes and not resume and ranks.writes:
            layers = prunable_layers(trainer.model.graph, recipe.exclude)
            zeros = sum(int((trainer.model.layers[n].weight == 0).sum()) for n in layers)
            if zeros > 0.1 * trainer.model.graph.parameters:
                print(
                    f"{init}: {zeros:,} weights are zero and may become nonzero until the schedule "
                    "prunes them"
                )
        check_run_folder(output, resume)  # on every process, before one of them writes
        if ranks.writes:
            prepare_run_folder(output, resume)
        if resume and start and start.checkpoint:
            trainer.resume(start.checkpoint)
            if trainer.finished:
                if ranks.writes:
                    print(
                        f"{start.path}: {trainer.step} steps are done of {recipe.steps}: nothing "
                        "is left; --steps with a larger number continues the run",
                        flush=True,
                    )
                if (output / "model.safetensors").exists():
                    return True
            elif ranks.writes:
                print(f"continuing from {start.path}", flush=True)
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


def _load_data(
    annotations: Path, images: Path, resumed: Config | None, folder: Path
) -> CocoDataset:
    """The data set; COCO's classes in COCO's order, those of a resumed run in the run's.

    Raises:
        InputError: it cannot be read, or its classes are not those of the resumed run.
    """
    dataset = load_coco(annotations, images)
    names = resumed.class_names if resumed else COCO_NAMES
    if set(dataset.class_names) == set(names):
        return load_coco(annotations, images, names)
    if resumed:
        raise InputError(
            f"{annotations}: its classes are {_listed(dataset.class_names, resumed.class_names)}, "
            f"but those of the run in {folder} are "
            f"{_listed(resumed.class_names, dataset.class_names)}; --resume needs the same, "
            "--init starts a new run from the old one's weights"
        )
    return dataset


def _listed(names: Sequence[str], others: Sequence[str], most: int = 8) -> str:
    """Names in a row; of many only those that the others lack."""
    if len(names) <= most:
        return ", ".join(names)
    own = [name for name in names if name not in others]
    shown = ", ".join(own[:most]) + (", ..." if len(own) > most else "")
    return f"{len(names)} ({len(own)} of them only here{': ' + shown if own else ''})"
