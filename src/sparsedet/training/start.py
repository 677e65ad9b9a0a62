"""What a run starts from: a folder, a configuration, weights.

Weights come from a run's checkpoint, a model file, or a classifier: torchvision's ResNet (.pth,
.pt, .safetensors) or open_nsfw (.onnx). Where they end, the model's random start remains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..config import ModelConfig
from ..errors import InputError
from ..files import sha256_of
from ..importers.open_nsfw import load_open_nsfw
from ..importers.torchvision_resnet import is_torchvision_resnet, load_torchvision_resnet
from ..reference import FasterRCNN
from ..weights import load_model
from .checkpoint import checkpoints, newest_checkpoint, read_checkpoint, remove_leftovers
from .distill import Teacher


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written")
    remove_leftovers(folder)


def initial_tensors(path: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Tensors to start from.

    Checkpoints give the training form (batch norms separate where the run had them so) and the
    averaged weights where the run averages, model files the folded form.

    Raises:
        InputError: the file is of no known kind, damaged, or of another network than `config`.
    """
    if path.suffix == ".onnx":
        return load_open_nsfw(path, config)
    if is_torchvision_resnet(path):
        return load_torchvision_resnet(path, config)
    if "recipe" in _metadata(path):
        return {name: value.numpy() for name, value in read_checkpoint(path).weights.items()}
    return dict(load_model(path).tensors)


def initial_config(path: Path) -> ModelConfig | None:
    """The configuration inside a checkpoint or model file; None for a classifier."""
    if path.suffix == ".onnx" or is_torchvision_resnet(path):
        return None
    metadata = _metadata(path)
    if "recipe" in metadata:
        try:
            return ModelConfig.from_dict(json.loads(metadata["config"]))
        except (KeyError, ValueError):
            pass  # load_model says what is wrong with it
    return load_model(path).config


def _metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file; empty for anything else. `recipe` marks a checkpoint."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


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
        path: a model file, a checkpoint, or a run folder: its `model.safetensors`, else its
            newest checkpoint.

    Raises:
        InputError: it cannot be read or is a classifier.
    """
    if path.is_dir():
        finished = path / "model.safetensors"
        path = finished if finished.exists() else newest_checkpoint(path)
    config = initial_config(path)
    if config is None:
        raise InputError(f"{path}: a classifier cannot be the teacher of a detector")
    return Teacher(build_model(config, initial_tensors(path, config)), str(path), sha256_of(path))
