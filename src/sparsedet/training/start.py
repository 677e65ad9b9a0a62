"""The start of a run: the model's configuration and its initial weights.

Weights come from a detector in any form that `importers` reads, or from a classifier: torchvision's
ResNet (.pth, .safetensors) or open_nsfw (.onnx). Parameters that the file lacks keep their random
initialisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, UsageError
from ..files import sha256_of, weights_file
from ..importers import detect_format, load_any
from ..importers.open_nsfw import load_open_nsfw
from ..importers.torchvision import fitting_preset, load_torchvision_resnet
from ..model.checkpoint import checkpoints
from ..model.detector_config import Config, config_from_json, require_faster_rcnn
from ..torch_model import TwoStageDetector
from ..torch_model.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint
from .distill import Teacher


def set_threads(count: int) -> None:
    """Set the number of torch's CPU threads, 1..1024.

    Raises:
        InputError: `count` is out of range.
    """
    if not 1 <= count <= 1024:
        raise UsageError(f"threads is {count}, expected 1..1024")
    torch.set_num_threads(count)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The initial weights of a run.

    Attributes:
        path: the file; of a run folder its newest checkpoint.
        config: the detector's configuration; None for a classifier, which fits several.
        tensors: returns the tensors for a configuration. A checkpoint's have the run's form (batch
            norms separate or folded) and are averaged where the run averages; other detectors' are
            folded. Raises InputError if a classifier does not fit.
        notes: lines for the user about settings that a foreign form does not state.
        preset: name of the configuration that a classifier fits, if there is one.
        checkpoint: the checkpoint that was read, for a run to resume from.
    """

    path: Path
    config: Config | None
    tensors: Callable[[Config], Mapping[str, np.ndarray]]
    notes: tuple[str, ...] = ()
    preset: str | None = None
    checkpoint: Checkpoint | None = None


def open_start(path: Path) -> Start:
    """Read the start that `--init` or `--teacher` names.

    Args:
        path: a file, or a run folder: its newest checkpoint, of one-shot pruning its model.

    Raises:
        InputError: the file has no known form, or is damaged.
    """
    if path.is_dir():
        one_shot_result = path / "model.safetensors"
        if checkpoints(path) or not one_shot_result.exists():
            return _start_of_checkpoint(newest_checkpoint(path))
        path = one_shot_result
    if path.suffix == ".onnx":
        return Start(path, None, partial(load_open_nsfw, path), preset="r50half-c4")
    form = detect_format(path)
    if form == "torchvision":
        tensors = partial(load_torchvision_resnet, path)
        name, notes = fitting_preset(path)
        return Start(path, None, tensors, notes, preset=name)
    if form == "checkpoint":
        return _start_of_checkpoint(read_checkpoint(path))
    model, notes = load_any(path, form)
    require_faster_rcnn(model.config)
    return Start(path, model.config, lambda _: model.tensors, notes)


def _start_of_checkpoint(checkpoint: Checkpoint) -> Start:
    try:
        config = config_from_json(checkpoint.metadata["config"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{checkpoint.path}: its metadata cannot be used: {error}") from None
    weights = {name: value.numpy() for name, value in checkpoint.weights.items()}
    return Start(checkpoint.path, config, lambda _: weights, checkpoint=checkpoint)


def model_of_run(path: Path) -> Path:
    """The result of a run folder: its `model.safetensors`, else its newest whole checkpoint.

    Args:
        path: a run folder, or a file, which is returned as it is.

    Raises:
        InputError: the folder holds neither.
    """
    if not path.is_dir():
        return path
    finished = path / "model.safetensors"
    return finished if finished.exists() else newest_checkpoint(path).path


def build_model(config: Config, initial: Mapping[str, np.ndarray]) -> TwoStageDetector:
    """A model to train, with separate batch norms if `initial` has them or is empty.

    Args:
        initial: tensors by name; other parameters keep their random initialisation.

    Raises:
        InputError: a tensor is not one of the model's or has the wrong shape.
    """
    norm = not initial or any(".norm." in name for name in initial)
    model = TwoStageDetector(config, norm=norm)
    own = model.state_dict()
    for name, value in initial.items():
        if name not in own or tuple(own[name].shape) != value.shape:
            raise InputError(f"initial tensor {name!r} {value.shape} does not fit {config.name}")
        own[name] = torch.from_numpy(np.array(value))
    model.load_state_dict(own)
    return model


def load_teacher(path: Path) -> Teacher:
    """A model to learn from.

    Args:
        path: a run folder, whose finished model is preferred to its checkpoints, or a detector in
            any form that `open_start` reads.

    Raises:
        InputError: it cannot be read or is a classifier.
    """
    start = open_start(model_of_run(path))
    if start.config is None:
        raise InputError(f"{path}: a classifier cannot be the teacher of a detector")
    model = build_model(start.config, start.tensors(start.config))
    file = weights_file(start.path)
    return Teacher(model, str(file), sha256_of(file))
