"""What a run starts from: a folder, a configuration, weights.

Weights come from a detector in any form that `importers` reads, or a classifier: torchvision's
ResNet (.pth, .safetensors) or open_nsfw (.onnx). Where they end, the model's random start remains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..files import make_folder, sha256_of, weights_file
from ..importers import detect_format, load_any
from ..importers.open_nsfw import load_open_nsfw
from ..importers.torchvision import fitting_preset, load_torchvision_resnet
from ..model.config import ModelConfig
from ..torch_model import FasterRCNN
from .distill import Teacher
from .run_folder import checkpoints, newest_checkpoint, read_checkpoint, remove_leftovers


def set_threads(count: int) -> None:
    """Let torch use that many CPU threads."""
    if not 1 <= count <= 1024:
        raise InputError(f"threads is {count}, expected 1..1024")
    torch.set_num_threads(count)


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds another run.

    Raises:
        InputError: it does, and `resume` is not asked for.
    """
    if not resume and checkpoints(folder):
        raise InputError(f"{folder}: holds a run already; resume it or choose another folder")


def prepare_folder(folder: Path, resume: bool) -> None:
    """Create the run folder, or clear away what a killed run left half-written in it.

    Raises:
        InputError: it cannot be written, or holds another run and `resume` is not asked for.
    """
    check_folder(folder, resume)
    make_folder(folder)
    remove_leftovers(folder)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a run begins with.

    Attributes:
        path: the file; of a run folder its newest checkpoint.
        config: of the detector in it; None for a classifier, which fits several.
        tensors: gives them for a configuration. Checkpoints have the training form (batch norms
            separate where the run had them so) and averaged weights where the run averages; other
            detectors are folded. Raises InputError if a classifier does not fit.
        notes: lines for the user: what a foreign form did not state.
        preset: name of the configuration that a classifier fits, if there is one.
    """

    path: Path
    config: ModelConfig | None
    tensors: Callable[[ModelConfig], Mapping[str, np.ndarray]]
    notes: tuple[str, ...] = ()
    preset: str | None = None


def open_start(path: Path) -> Start:
    """Read what `--init` and `--teacher` name.

    Raises:
        InputError: the file is of no known kind, or damaged.
    """
    if path.is_dir():
        pruned_at_once = path / "model.safetensors"
        finished = pruned_at_once.exists() and not checkpoints(path)
        path = pruned_at_once if finished else newest_checkpoint(path)
    if path.suffix == ".onnx":
        return Start(path, None, partial(load_open_nsfw, path), preset="r50half-c4")
    kind = detect_format(path)
    if kind == "torchvision":
        fitting = partial(load_torchvision_resnet, path)
        return Start(path, None, fitting, preset=fitting_preset(path))
    if kind == "checkpoint":
        read = read_checkpoint(path)
        try:
            config = ModelConfig.from_dict(json.loads(read.metadata["config"]))
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: its metadata cannot be used: {error}") from None
        weights = {name: value.numpy() for name, value in read.weights.items()}
        return Start(path, config, lambda _: weights)
    model, notes = load_any(path, kind)
    return Start(path, model.config, lambda _: model.tensors, notes)


def model_of_run(path: Path) -> Path:
    """What a run folder came to: its `model.safetensors`, else its newest checkpoint. A file is
    itself."""
    if not path.is_dir():
        return path
    finished = path / "model.safetensors"
    return finished if finished.exists() else newest_checkpoint(path)


def build_model(config: ModelConfig, initial: Mapping[str, np.ndarray]) -> FasterRCNN:
    """A model to train, batch norms separate where `initial` has them.

    Args:
        initial: tensors by name; layers that it does not name keep their random start.

    Raises:
        InputError: a tensor has no place in the model or the wrong shape.
    """
    norm = not initial or any(".norm." in name for name in initial)
    model = FasterRCNN(config, norm=norm)
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
        path: a run folder, or a detector in any form that `open_start` reads.

    Raises:
        InputError: it cannot be read or is a classifier.
    """
    start = open_start(model_of_run(path))
    if start.config is None:
        raise InputError(f"{path}: a classifier cannot be the teacher of a detector")
    model = build_model(start.config, start.tensors(start.config))
    file = weights_file(start.path)
    return Teacher(model, str(file), sha256_of(file))
