"""Pruning while training, in anybody's own loop: three lines for any torch module.

    pruner = sparsedet.pruning.Gradual(model, sparsity=0.8, steps=20_000)
    ...
    optimizer.step()
    pruner.step(optimizer)                                # after each step, before zero_grad
    ...
    sparsedet.pruning.export(model, images[:1], "pruned.safetensors")

Nothing is put into the model: no hooks, buffers or other classes. Masks are kept here by the names
of the weights, so a model may be copied, wrapped, saved and loaded as if there were no pruner.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, UsageError
from ..importers import load_trained
from ..importers.onnx.detectors import Preprocessing
from ..model.file import StorageDtype, save_model
from .allocation import LEAST_DENSITY
from .patterns import PATTERNS, UNSTRUCTURED
from .schedule import CubicSchedule
from .selection import keep_largest_of_layers
from .squared_gradients import SquaredGradients

Ranking = Literal["sensitivity", "global", "uniform"]
"""Which weights are pruned first, of all layers together: those whose removal changes the loss
least, or the smallest; "uniform": the smallest of each layer, with the same sparsity in each."""

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


class Gradual:
    """Prunes a model while somebody trains it.

    Zeros grow along Zhu & Gupta's cubic schedule (arXiv 1710.01878) over the first two thirds of
    the steps; the rest lets the model recover. A zero stays zero: in weights, gradients and the
    optimizer's momentum.

    Args:
        model: a module with convolutions and linear layers; also in DistributedDataParallel, where
            each process has a pruner of its own and all prune the same.
        sparsity: zeros among ALL parameters of the model at the end, 0..1; None where the pattern
            fixes it.
        steps: steps of the whole training, calls of `step`.
        pattern: a name of `PATTERNS`.
        exclude: names of modules that stay dense, beside the first and the last layer and grouped
            convolutions.
        allocation: see `Ranking`.
        begin, end: first and last step at which zeros are added; default: 0 and two thirds of
            `steps`.
        every: steps between two times; default: a hundredth of the time from begin to end.

    Attributes:
        keep_masks: bool, by the name of each pruned weight in the model's `named_parameters`.
        steps_done: calls of `step`.

    Raises:
        InputError: the model has no layer to prune, or too few weights for the target; a layer
            does not fit the pattern; an excluded one is unknown.
        UsageError: a setting is out of range.

    A weight that `torch.nn.utils.prune` masks already keeps its zeros.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float | None = None,
        steps: int,
        pattern: str = UNSTRUCTURED.name,
        exclude: Sequence[str] = (),
        allocation: Ranking = "sensitivity",
        begin: int = 0,
        end: int | None = None,
        every: int | None = None,
    ) -> None:
        if pattern not in PATTERNS:
            raise UsageError(f"pattern is {pattern!r}, expected one of {', '.join(PATTERNS)}")
        if allocation not in ("sensitivity", "global", "uniform"):
            raise UsageError(
                f"allocation is {allocation!r}, expected 'sensitivity', 'global' or 'uniform'"
            )
        if steps < 1:
            raise UsageError(f"steps is {steps}, expected at least 1")
        self.model, self.pattern, self.allocation = model, PATTERNS[pattern], allocation
        self.steps_done = 0
        weights = dict(prunable_weights(unwrapped(model), exclude))
        for name, weight in weights.items():
            self._check_layer(name, weight)
        # Plain numbers, so that a copy of the pruner has no tie to the model's tensors.
        self.parameters = sum(p.numel() for p in unwrapped(model).parameters())
        self.available = sum(self.pattern.most_zeros(w.numel()) for w in weights.values())
        sparsity = self._target(sparsity)
        end = max(begin + 1, round(steps * 2 / 3)) if end is None else end
        every = max(1, (end - begin) // 100) if every is None else every
        self.schedule = CubicSchedule(final=sparsity, begin=begin, end=end, every=every)
        self.keep_masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
        for name, mask in _masks_of_torch(unwrapped(model)):
            if name in self.keep_masks:
                self.keep_masks[name] &= mask.bool()
        self.gradients = SquaredGradients(weights if allocation == "sensitivity" else {})

    def _check_layer(self, name: str, weight: Tensor) -> None:
        pattern = self.pattern
        for side, channels, length in (
            ("input", weight.shape[1], pattern.columns),
            ("output", weight.shape[0], pattern.rows),
        ):
            if channels % length:
                raise InputError(
                    f"pattern {pattern.name} needs a multiple of {length} {side} channels, but "
                    f"{name} has {channels}: exclude its module"
                )

    def _target(self, sparsity: float | None) -> float:
        """The sparsity at the end, over all parameters."""
        most = self.available / self.parameters
        if self.pattern.fixed_sparsity is not None:
            if sparsity is not None:
                raise UsageError(f"pattern {self.pattern.name} fixes the sparsity: give none")
            return most
        if sparsity is None or not 0 < sparsity < 1:
            raise UsageError(f"sparsity is {sparsity}, expected more than 0 and less than 1")
        if sparsity > most:
            raise InputError(
                f"sparsity {sparsity:.3f} of all {self.parameters} parameters cannot be reached: "
                f"the pruned layers hold {most:.3f} of them"
            )
        return sparsity

    @property
    def sparsity(self) -> float:
        """Zeros of the masks among ALL parameters of the model, 0..1."""
        return sum(int((~keep).sum()) for keep in self.keep_masks.values()) / self.parameters

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> bool:
        """Count a step of the optimizer, add zeros if it is time, and hold all zeros at zero.

        Call it after each `optimizer.step()`, also after one that a gradient scaler skipped, and
        before the gradients are cleared.

        Args:
            optimizer: its momentum is masked, too.

        Returns:
            whether zeros were added.
        """
        weights = self._weights(self.model)
        self.gradients.observe({name: weight.grad for name, weight in weights.items()})
        self.steps_done += 1
        grows = self.schedule.updates_at(self.steps_done)
        if grows:
            self._grow(weights)
        self._apply(weights, optimizer)
        return grows

    def mask(self, model: nn.Module) -> None:
        """Zero the same weights of another model, as of an average of the weights (EMA).

        Raises:
            InputError: it lacks one of the weights, or has it in another shape.
        """
        self._apply(self._weights(model), None)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs, beside the model's and the optimizer's."""
        return {
            "steps_done": self.steps_done,
            "keep_masks": {name: keep.clone() for name, keep in self.keep_masks.items()},
            "gradients": {name: mean.clone() for name, mean in self.gradients.means.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a pruner of the same model and settings.

        Raises:
            InputError: it is of another model.
        """
        for what, own, given in (
            ("masks", self.keep_masks, state["keep_masks"]),
            ("gradients", self.gradients.means, state["gradients"]),
        ):
            if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in given.items()}:
                raise InputError(f"the state's {what} are of another model or allocation")
            for name, value in own.items():
                value.copy_(given[name])
        self.steps_done = int(state["steps_done"])

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The pruned weights of a model, by name."""
        parameters = dict(unwrapped(model).named_parameters())
        found: dict[str, Tensor] = {}
        for name, keep in self.keep_masks.items():
            # A copy may have been made before or after torch.nn.utils.prune renamed its weights.
            own = next((n for n in (name, *_other_names(name)) if n in parameters), None)
            if own is None or parameters[own].shape != keep.shape:
                raise InputError(f"the model has no weight {name!r} of shape {tuple(keep.shape)}")
            found[name] = parameters[own]
        return found

    @torch.no_grad()
    def _apply(
        self, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None
    ) -> None:
        for name, weight in weights.items():
            dead = ~self.keep_masks[name].to(weight.device)
            # Filled, not multiplied: gradients of a skipped step may be infinite.
            weight.masked_fill_(dead, 0.0)
            if weight.grad is not None:
                weight.grad.masked_fill_(dead, 0.0)
            state = {} if optimizer is None else optimizer.state.get(weight, {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(dead, 0.0)

    @torch.no_grad()
    def _grow(self, weights: Mapping[str, Tensor]) -> None:
        """Choose all zeros anew; those that are there stay."""
        costs = {name: _matrix(self._costs(name, weight)) for name, weight in weights.items()}
        blocks = {name: self.pattern.block_costs(matrix) for name, matrix in costs.items()}
        share = self.schedule.sparsity(self.steps_done) * self.parameters / self.available
        together = [tuple(weights)] if self.allocation != "uniform" else [(n,) for n in weights]
        for names in together:
            count = sum(len(blocks[name]) for name in names)
            keep_blocks = keep_largest_of_layers(
                [blocks[name] for name in names],
                min(count, -int(-share * count // 1)),
                LEAST_DENSITY if len(names) > 1 and not self.pattern.live else 0.0,
            )
            for name, keep in zip(names, keep_blocks, strict=True):
                mask = self.pattern.keep_mask(keep, costs[name])
                self.keep_masks[name] &= _from_matrix(mask, weights[name].shape)

    def _costs(self, name: str, weight: Tensor) -> Tensor:
        """Cost of pruning each weight; what is pruned already costs less than anything else."""
        costs = weight.square()
        if self.gradients.means and self.gradients.means[f"rows/{name}"].any():
            costs = self.gradients.costs(name, weight)
        return torch.where(self.keep_masks[name].to(weight.device), costs, -1.0)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel or an average of weights."""
    while isinstance(model, (*_WRAPPERS, torch.optim.swa_utils.AveragedModel)):
        inner = model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def prunable_weights(model: nn.Module, exclude: Sequence[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """The weights that may be pruned, by their names among the model's parameters.

    Args:
        exclude: names of modules that stay dense.

    Raises:
        InputError: there is none, or a name is of no convolution or linear layer.
    """
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, _LAYERS)]
    names = [name for name, _ in modules]
    if unknown := sorted(set(exclude) - set(names)):
        raise InputError(f"cannot exclude {unknown[0]!r}: no such convolution or linear layer")
    left = {*exclude, *names[:1], *names[-1:]}
    some = False
    for name, module in modules:
        grouped = not isinstance(module, nn.Linear) and module.groups > 1
        parameters = dict(module.named_parameters(recurse=False))
        weight = parameters.get("weight_orig", parameters.get("weight"))
        if name in left or grouped or weight is None:
            continue
        some = True
        own = "weight_orig" if "weight_orig" in parameters else "weight"
        yield (f"{name}.{own}" if name else own), weight
    if not some:
        raise InputError("the model has no layer to prune beside its first and last one")


def _masks_of_torch(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The masks of torch.nn.utils.prune, by the names of their weights."""
    for name, value in model.named_buffers():
        if name.endswith("weight_mask"):
            yield name.removesuffix("mask") + "orig", value


def _other_names(name: str) -> Iterator[str]:
    if name.endswith("weight_orig"):
        yield name.removesuffix("_orig")
    elif name.endswith("weight"):
        yield f"{name}_orig"


def _matrix(weight: Tensor) -> Tensor:
    """[out, in, ...] -> [out, columns], the matrix of `patterns`."""
    return weight.movedim(1, -1).reshape(len(weight), -1)


def _from_matrix(matrix: Tensor, shape: torch.Size) -> Tensor:
    out, ins, *kernel = shape
    return matrix.view(out, *kernel, ins).movedim(-1, 1)


def export(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    dtype: StorageDtype = "float16",
    images: Preprocessing | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a torch model as a model file, through torch's ONNX exporter.

    Args:
        model: a network of the operations of docs/onnx.md; masks of torch.nn.utils.prune count.
        example: an input [1, 3, height, width].
        path: the file.
        dtype: type of the stored weights.
        images: how images become its input; default: as torchvision's classifiers have it, and of
            a detector as its family has it.
        overwrite: replace an existing file.

    Returns:
        lines about what was assumed.

    Raises:
        InputError: onnx is not installed, or the network cannot run here; the message names the
            node.
    """
    model = unwrapped(model)
    training = model.training
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own age
        file = Path(folder) / f"{Path(path).stem}.onnx"
        model.eval()
        try:
            torch.onnx.export(model, (example,), str(file), dynamo=False, opset_version=17)
        except (RuntimeError, TypeError, ModuleNotFoundError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"torch cannot export the model to ONNX: {reason[0]}") from None
        finally:
            model.train(training)
        network, notes = load_trained(file, stated=images)
    provenance = {"converted_from": f"torch module {type(model).__name__}"}
    save_model(path, network.config, network.tensors, provenance, dtype=dtype, overwrite=overwrite)
    return notes
