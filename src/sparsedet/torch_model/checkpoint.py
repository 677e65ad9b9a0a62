"""Checkpoints of a run, written and read: each one safetensors file.

Files appear whole or not at all, and the newest two are kept: whatever happens to the newest, one
is left to continue from. What their tensors and metadata are is said where a run writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ..errors import InputError
from ..files import write_atomic
from ..model.checkpoint import checkpoint_path, checkpoints, digest, read_newest

KEPT_CHECKPOINTS = 2


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
