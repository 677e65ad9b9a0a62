"""Checkpoints: everything that continues a run to the same bits, in one safetensors file.

Tensors are `model/NAME`, `optimizer/SLOT/PARAMETER`, `mask/LAYER`, `statistic/KIND/LAYER` (of the
pruner) and `ema/PARAMETER`; metadata
holds `step`, and as JSON `config`, `recipe` and `state`. `sha256` is of all that, so that a
flipped bit is noticed. Files appear whole or not at all, and the newest two are kept: whatever
happens to the newest, one is left to continue from.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ..errors import InputError
from ..files import write_atomic
from ..importers.checkpoint import digest

KEEP = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of one file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the run would save now: the model's tensors, averaged where it averages."""
        return self.part("model/") | self.part("ema/")


def checkpoints(folder: Path) -> list[Path]:
    """Those of a run folder, oldest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"))


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write the newest checkpoint and drop old ones; returns its path.

    Raises:
        InputError: it cannot be written, as on a full disk; the earlier ones are untouched.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    metadata = {**metadata, "step": str(step)}
    metadata["sha256"] = _digest(tensors, metadata)
    path = folder / f"checkpoint-{step:07d}.safetensors"
    try:
        write_atomic(path, safetensors_bytes(tensors, metadata), overwrite=True)
    except InputError as error:
        left = checkpoints(folder)
        kept = f"{left[-1]} is whole: make room, then --resume" if left else "there is none before"
        raise InputError(f"{error}; {kept}") from None
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        InputError: it cannot be read, is none, or its content is not what was written.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        int(metadata["step"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    # Checkpoints from before there was a checksum are taken as they are.
    if "sha256" in metadata and _digest(tensors, metadata) != metadata["sha256"]:
        raise InputError(f"{path}: cannot be read (its checksum is wrong: damaged on disk)")
    return Checkpoint(tensors, metadata)


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run folder that can be read; says which ones cannot.

    Raises:
        InputError: there is none.
    """
    for path in reversed(checkpoints(folder)):
        try:
            read_checkpoint(path)
            return path
        except InputError as error:
            print(f"{error}, trying the one before", file=sys.stderr)
    raise InputError(f"{folder}: holds no readable checkpoint")


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process had not finished writing."""
    for path in folder.glob(".checkpoint-*.safetensors.*"):
        path.unlink()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest({name: value.numpy() for name, value in tensors.items()}, metadata)
