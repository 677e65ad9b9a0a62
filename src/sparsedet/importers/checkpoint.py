"""A training run of this project (its folder, or one checkpoint) -> the model it would save.

Reads the safetensors files itself, so that torch is not needed; `training.run_folder` writes them
and describes their content. If the run averages weights, the averaged ones are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model.c4 import build_network
from ..model.config import ModelConfig, current_names
from .containers import open_source
from .tensor_source import Imported

_LEAVES = ("weight", "bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


def load_checkpoint(
    path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None
) -> Imported:
    """Read a checkpoint; from a folder the newest undamaged one, with a note on damaged ones.

    Args:
        path: the folder or the checkpoint.
        fields: fields of the configuration, which override the run's.

    Raises:
        InputError: there is no checkpoint, it is damaged, or `fields` do not fit it.
    """
    path = Path(path)
    if not path.is_dir():
        return _load(path, fields or {})
    checkpoints = sorted(path.glob("checkpoint-*.safetensors"), reverse=True)
    damaged: list[str] = []
    for file in checkpoints:
        try:
            imported = _load(file, fields or {})
        except InputError as error:
            if file == checkpoints[-1]:
                raise
            damaged.append(f"{error}; trying the one before")
        else:
            return replace(imported, notes=(*damaged, *imported.notes))
    if (path / "model.safetensors").exists():
        raise InputError(
            f"{path}: has no checkpoint of a training run; its model.safetensors is "
            "a model file already"
        )
    raise InputError(f"{path}: has no checkpoint of a training run")


def _load(path: Path, fields: Mapping[str, Any]) -> Imported:
    metadata, source = open_source(path)
    if "recipe" not in metadata:
        raise source.error("is not a checkpoint of a training run (its metadata has no recipe)")
    try:
        own = ModelConfig.from_dict(json.loads(metadata["config"]))
        config = ModelConfig.from_dict({**own.to_dict(), **current_names(fields)})
        layers = build_network(config).weighted
        step = int(metadata["step"])
    except (KeyError, ValueError, RecursionError) as error:
        raise source.error(f"its metadata cannot be used: {error}") from None
    if "sha256" in metadata:  # older checkpoints have none
        values = {name: tensor.read() for name, tensor in source.left.items()}
        if digest(values, metadata) != metadata["sha256"]:
            raise source.error("wrong checksum: the file is damaged")
    tensors: dict[str, NDArray[Any]] = {}
    averaged = 0
    for layer in layers:
        for leaf in _LEAVES:
            name = f"{layer.name}.{leaf}"
            if f"model/{name}" not in source:
                continue
            shape = layer.weight_shape if leaf == "weight" else (layer.out_channels,)
            tensors[name] = source.take(f"model/{name}", shape)
            if f"ema/{name}" in source:
                tensors[name] = source.take(f"ema/{name}", shape)
                averaged += 1
    source.ignore(r"optimizer/.*", r"mask/.*", r"statistic/.*")
    ignored = source.finish(config.name)
    provenance = {"source": f"checkpoint {path.name} of a training run", "step": step}
    notes = (f"step {step} of a training run" + (", averaged weights" if averaged else ""),)
    return Imported(config, source.fold(tensors, config), provenance, ignored, notes)


def digest(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """SHA-256 of a checkpoint's metadata and its tensors' names, types, shapes and values."""
    sha = hashlib.sha256()
    for key in sorted(set(metadata) - {"sha256"}):
        sha.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(tensors):
        values = tensors[name]
        sha.update(f"{name} {values.dtype} {values.shape}\n".encode())
        sha.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
