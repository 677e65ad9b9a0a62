"""The run folder: `run.json` and the checkpoints, each one safetensors file.

A checkpoint holds everything that continues a run to the same bits. Its tensors are `model/NAME`,
`optimizer/SLOT/PARAMETER`, `mask/LAYER` (keep masks), `statistic/rows/LAYER` and
`statistic/columns/LAYER` (sensitivity) and `ema/PARAMETER`. Its metadata holds `step`, and as JSON
`config`, `recipe` and `state`; `sha256` covers all of that. Files appear whole or not at all, and
the newest two are kept: whatever happens to the newest, one is left to continue from.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ..errors import InputError
from ..files import write_atomic
from ..model.checkpoint import checkpoint_path, checkpoints, digest, read_newest
from ..pruning.masks import Masks
from ..torch_model import GraphModule
from .ema import WeightAverage

KEPT_CHECKPOINTS = 2
PACKAGES = ("sparsedet", "torch", "torchvision", "numpy", "opencv-python-headless")
"""Packages whose versions `run.json` names."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: the file.
        tensors: by their names in the file.
        metadata: as in the file.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, by the rest of their names."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that the run would save now: the model's, averaged where it averages."""
        return self.with_prefix("model/") | self.with_prefix("ema/")


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write the newest checkpoint and delete old ones; returns its path.

    Raises:
        InputError: it cannot be written, as on a full disk; earlier checkpoints are untouched.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    metadata = {**metadata, "step": str(step)}
    metadata["sha256"] = _digest(tensors, metadata)
    path = checkpoint_path(folder, step)
    try:
        write_atomic(path, safetensors_bytes(tensors, metadata), overwrite=True)
    except InputError as error:
        left = checkpoints(folder)
        advice = (
            f"{left[-1]} is whole: free some disk space, then --resume"
            if left
            else "there is no earlier checkpoint"
        )
        raise InputError(f"{error}; {advice}") from None
    for old in checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        InputError: it cannot be read, is not a checkpoint, or its checksum is wrong.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        int(metadata["step"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    # The first version wrote no checksum; such checkpoints are accepted unchecked.
    if "sha256" in metadata and _digest(tensors, metadata) != metadata["sha256"]:
        raise InputError(f"{path}: cannot be read (its checksum is wrong: damaged on disk)")
    return Checkpoint(path, tensors, metadata)


def newest_checkpoint(folder: Path) -> Checkpoint:
    """The newest whole checkpoint of a run folder; warns of each newer one, which is damaged.

    Raises:
        InputError: there is none.
    """
    newest = read_newest(folder, read_checkpoint)
    if newest is None:
        raise InputError(f"{folder}: holds no readable checkpoint")
    return newest


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest({name: value.numpy() for name, value in tensors.items()}, metadata)


# -------------------------------------------------------------------- the tensors of a run


def run_tensors(
    model: GraphModule,
    optimizer: torch.optim.Optimizer,
    pruner: Masks | None,
    average: WeightAverage | None,
) -> dict[str, Tensor]:
    """All tensors of a run, by their names in a checkpoint."""
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{slot}/{name}"] = value
    if pruner:
        tensors |= {f"mask/{k}": v for k, v in pruner.keep_masks.items()}
        tensors |= {f"statistic/{k}": v for k, v in pruner.sensitivity.items()}
    if average:
        tensors |= {f"ema/{k}": v for k, v in average.tensors.items()}
    return tensors


def restore_tensors(
    checkpoint: Checkpoint,
    model: GraphModule,
    optimizer: torch.optim.Optimizer,
    pruner: Masks | None,
    average: WeightAverage | None,
) -> None:
    """The inverse of `run_tensors`.

    Raises:
        KeyError, RuntimeError: the checkpoint belongs to another model or recipe.
    """
    model.load_state_dict(checkpoint.with_prefix("model/"))
    if pruner:
        pruner.restore(checkpoint.with_prefix("mask/"))
        for name, mean in pruner.sensitivity.items():
            mean.copy_(checkpoint.tensors[f"statistic/{name}"])
    parameters = dict(model.named_parameters())
    for key, value in checkpoint.with_prefix("optimizer/").items():
        slot, _, name = key.partition("/")
        parameter = parameters[name]
        device = "cpu" if slot == "step" else parameter.device  # AdamW counts on the CPU
        optimizer.state[parameter][slot] = value.to(device)
    if average:  # a run without averages so far begins them with its weights
        averages = checkpoint.with_prefix("ema/") or checkpoint.with_prefix("model/")
        for name, tensor in average.tensors.items():
            tensor.copy_(averages[name])


# -------------------------------------------------------------------- run.json


def describe_run(
    folder: Path,
    command: Sequence[str],
    settings: Mapping[str, Any],
    device: torch.device,
    processes: int,
) -> None:
    """Write `run.json`: the command, the settings and the environment.

    Args:
        settings: model configuration, recipe and data, in types that JSON has.
        processes: number of processes that train together.
    """
    content = {
        "command": list(command),
        **settings,
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: _version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name()
            if device.type == "cuda"
            else platform.processor() or platform.machine(),
            "processes": processes,
            "threads": torch.get_num_threads(),
        },
    }
    write_atomic(folder / "run.json", json.dumps(content, indent=1).encode(), overwrite=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
