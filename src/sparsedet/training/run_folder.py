"""The run folder: `run.json`, and what the checkpoints of a training hold.

A checkpoint holds everything that continues a run to the same bits. Its tensors are `model/NAME`,
`optimizer/SLOT/PARAMETER`, `mask/LAYER` (keep masks), `statistic/rows/LAYER` and
`statistic/columns/LAYER` (sensitivity) and `ema/PARAMETER`. Its metadata holds `step`, and as JSON
`config`, `recipe` and `state`; `sha256` covers all of that.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_atomic
from ..pruning.masks import Masks
from ..torch_model import GraphModule
from ..torch_model.checkpoint import Checkpoint
from .ema import WeightAverage

PACKAGES = ("sparsedet", "torch", "torchvision", "numpy", "opencv-python-headless")
"""Packages whose versions `run.json` names."""

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
