"""A training run of this project (its folder, or one checkpoint) -> the model it would save.

Reads the safetensors files itself, so that torch is not needed; `training.run_folder` lists their
tensors. Averaged weights are taken where the run averages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import InputError
from ..model.checkpoint import digest, read_newest
from ..model.config import ModelConfig, current_names
from ..model.detector_config import build_graph, config_from_json
from .containers import open_source
from .tensor_source import Imported

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".npz")
_LEAVES = ("weight", "bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


def load_checkpoint(
    path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None
) -> Imported:
    """Read a checkpoint; of a run folder the newest undamaged one, with a warning for each other.

    Args:
        path: a checkpoint or a run folder.
        fields: fields of the configuration that replace those of the run.

    Raises:
        InputError: there is no checkpoint, it is damaged, or `fields` do not fit it.
    """
    path = Path(path)
    if not path.is_dir():
        return _load(path, fields or {})
    newest = read_newest(path, lambda file: _load(file, fields or {}))
    if newest is not None:
        return newest
    weights = sorted(f.name for end in _WEIGHTS for f in path.glob(f"*{end}") if f.is_file())
    way = f"; give the file of a model, as {path / weights[0]}" if weights else ""
    raise InputError(f"{path}: has no checkpoint of a training run{way}")


def _load(path: Path, fields: Mapping[str, Any]) -> Imported:
    metadata, source = open_source(path)
    if "recipe" not in metadata:
        raise source.error("is not a checkpoint of a training run (its metadata has no recipe)")
    try:
        config = config_from_json(metadata["config"])
        if isinstance(config, ModelConfig):
            config = ModelConfig.from_dict({**config.to_dict(), **current_names(fields)})
        elif fields:
            raise InputError(f"{min(fields)} is a field of the C4 family's configuration")
        graph = build_graph(config)
        step = int(metadata["step"])
    except (KeyError, ValueError, RecursionError) as error:
        raise source.error(f"its metadata cannot be used: {error}") from None
    if "sha256" in metadata:  # older checkpoints have none
        values = {name: tensor.read() for name, tensor in source.left.items()}
        if digest(values, metadata) != metadata["sha256"]:
            raise source.error("wrong checksum: the file is damaged")
    tensors: dict[str, NDArray[Any]] = {}
    averaged = 0
    for layer in graph.layers:
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
