"""How far a pruning at once has come, and its checkpoints: a killed run goes on to the same bits.

A checkpoint holds `importance/LAYER`, and of each pruned layer `model/LAYER.weight` and
`model/LAYER.bias`. Its metadata holds `step`, the number of pruned layers, and as JSON `prune`
(what the run is), `zeros` (of each layer that is to be pruned) and `layers` (rows of the report).
The outputs of the unpruned network are not in it: they would take gigabytes, and are computed
again, of those layers alone that are left.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..model.checkpoint import checkpoints
from ..torch_model import GraphModule
from ..torch_model.checkpoint import Checkpoint, newest_checkpoint, write_checkpoint
from .report import LayerPruning

CHECKPOINT_MINUTES = 5.0
"""Between two checkpoints, as in training."""


@dataclass(slots=True)
class PruningState:
    """What pruning layer by layer has found and done so far.

    Attributes:
        importance: of each layer's outputs [out]; empty: not measured, or not needed.
        zeros: of each layer that is to be pruned; empty: not known yet.
        layers: the layers that are pruned, in the network's order.
        tensors: their weights and biases, by `NAME.weight` and `NAME.bias`.
    """

    importance: dict[str, Tensor] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    layers: list[LayerPruning] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, row: LayerPruning, weight: Tensor, bias: Tensor) -> None:
        """Note a layer that has just been pruned; its tensors are not copied."""
        self.layers.append(row)
        self.tensors |= {f"{row.name}.weight": weight, f"{row.name}.bias": bias}

    def left(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are not pruned yet."""
        done = {row.name for row in self.layers}
        return [name for name in names if name not in done]

    @torch.no_grad()
    def put_into(self, model: GraphModule) -> None:
        """Give the pruned layers of a model their weights and biases."""
        for row in self.layers:
            conv = model.layers[row.name]
            assert conv.bias is not None  # batch norm is folded
            conv.weight.copy_(self.tensors[f"{row.name}.weight"])
            conv.bias.copy_(self.tensors[f"{row.name}.bias"])


class StoppedPruning(Exception):
    """A signal has stopped a pruning; its checkpoint is written."""


class PruningCheckpoints:
    """Writes the checkpoints of a run while it goes on.

    Args:
        folder: the run folder.
        identity: what the run is, in types that JSON has.
        minutes: least time between two checkpoints.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], minutes: float) -> None:
        self.folder, self.identity, self.minutes = folder, dict(identity), minutes
        self._written = time.monotonic()
        self._state: PruningState | None = None  # not in a checkpoint yet
        self._stopped = False

    def stop(self) -> None:
        """Have the run stop as soon as its present step is done."""
        self._stopped = True

    def keep(self, state: PruningState) -> None:
        """Take note of a finished step.

        Raises:
            InputError: the checkpoint cannot be written.
            StoppedPruning: after `stop`.
        """
        self._state = state
        first = not state.layers  # what all layers need took long
        if first or time.monotonic() - self._written > 60 * self.minutes:
            self.write()
        self.check()

    def check(self) -> None:
        """Raise StoppedPruning after `stop`, when everything that is done is in a checkpoint."""
        if self._stopped:
            self.write()
            raise StoppedPruning

    def write(self) -> None:
        """Write a checkpoint of what is not in one yet.

        Raises:
            InputError: it cannot be written, as on a full disk.
        """
        state, self._state = self._state, None
        if state is None:
            return
        tensors = {f"importance/{name}": value for name, value in state.importance.items()}
        tensors |= {f"model/{name}": value for name, value in state.tensors.items()}
        values = {
            "prune": self.identity,
            "zeros": state.zeros,
            "layers": [asdict(row) for row in state.layers],
        }
        metadata = {name: json.dumps(value) for name, value in values.items()}
        write_checkpoint(self.folder, len(state.layers), tensors, metadata)
        self._written = time.monotonic()


def resumed_state(
    folder: Path,
    identity: Mapping[str, Any],
    names: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> PruningState:
    """The state that the newest checkpoint of a run folder holds.

    Args:
        identity: what the run is now.
        names: of the layers that get zeros.
        shapes: of the network's tensors, by name.

    Raises:
        InputError: there is no readable checkpoint, or it is of another run.
    """
    checkpoint = newest_checkpoint(folder)
    try:
        before = json.loads(checkpoint.metadata["prune"])
        zeros = {str(name): int(count) for name, count in _json(checkpoint, "zeros").items()}
        layers = [LayerPruning(**row) for row in _json(checkpoint, "layers")]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{checkpoint.path}: is of no pruning at once") from None
    for key, value in identity.items():
        if before.get(key) != value:
            raise InputError(
                f"{checkpoint.path}: its run has {key} {before.get(key)!r}, now it is {value!r}: "
                "--resume needs the same"
            )
    tensors = checkpoint.with_prefix("model/")
    wanted = {f"{row.name}.{leaf}" for row in layers for leaf in ("weight", "bias")}
    if (
        tensors.keys() != wanted
        or any(tuple(value.shape) != shapes.get(name) for name, value in tensors.items())
        or zeros.keys() not in (set(), set(names))
    ):
        raise InputError(f"{checkpoint.path}: is of another network")
    return PruningState(checkpoint.with_prefix("importance/"), zeros, layers, tensors)


def _json(checkpoint: Checkpoint, name: str) -> Any:
    return json.loads(checkpoint.metadata[name])


def digest_of_inputs(network_inputs: Iterable[Tensor]) -> str:
    """SHA-256 of the network inputs of all images, in hexadecimal."""
    sha = hashlib.sha256()
    for value in network_inputs:
        sha.update(str(tuple(value.shape)).encode())
        sha.update(value.contiguous().numpy().data)
    return sha.hexdigest()


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that is finished."""
    for path in checkpoints(folder):
        path.unlink(missing_ok=True)


Keep = Callable[[PruningState], None]
"""Called after each step of a pruning with what is done so far."""
