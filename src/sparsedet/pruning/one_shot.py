"""Pruning a trained network at once, without labels and without training.

Every layer is pruned once, in the network's order, on the inputs that its pruned predecessors
give it: by magnitude, or by `reconstruct`, which aims at what the unpruned network gives there and
so makes up for its predecessors, too. Either way its bias is moved so that every channel's mean
over the calibration photographs is the unpruned network's.

Which layers give how many zeros, the detector's outputs tell: removing the weight w between a
column and an output costs about w^2, times the column's variance, times the output's
`importance`; the cheapest weights of all layers go.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..model.graph import Network
from ..torch_model import FasterRCNN
from .calibration import LayerInputs, dense_outputs, layer_inputs
from .patterns import GROUP, cheapest, check_pattern, from_matrix, pruned_by_size, to_matrix
from .reconstruct import reconstruct
from .report import LayerPruning, PruningReport
from .schedule import (
    LEAST_DENSITY,
    PATTERNS,
    Allocation,
    Pattern,
    erk_zeros,
    prunable_layers,
    uniform_zeros,
    zeros_needed,
)
from .sensitivity import output_importance

Method = Literal["magnitude", "reconstruct"]

IMPORTANCE_PHOTOGRAPHS = 32
EVEN = 0.3
"""Added to the importance of a layer's outputs within the layer, of its mean. Without, outputs that
hardly matter give so much that plain errors pass magnitude's, and detections agree no better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneShotConfig:
    """How to prune at once.

    Attributes:
        sparsity: zeros among ALL parameters, 0..1; None for "2:4", which fixes it.
        allocation: how the zeros are shared out; "global" ranks all weights by magnitude,
            "sensitivity" by what the detector's outputs feel. None: "sensitivity" to reconstruct,
            except in 2:4, else "uniform".
        exclude: layers left dense beside stem and predictors.
        seed: of the sampled positions.
    """

    method: Method = "reconstruct"
    sparsity: float | None = None
    pattern: Pattern = "unstructured"
    allocation: Allocation | None = None
    exclude: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.allocation is None:
            fits = self.method == "reconstruct" and self.pattern != "2:4"
            object.__setattr__(self, "allocation", "sensitivity" if fits else "uniform")
        for field, choices in (
            ("method", get_args(Method)),
            ("pattern", PATTERNS),
            ("allocation", get_args(Allocation)),
        ):
            if getattr(self, field) not in choices:
                raise InputError(f"{field} is {getattr(self, field)!r}, expected one of {choices}")
        if self.pattern == "2:4":
            if self.sparsity is not None:
                raise InputError("pattern 2:4 makes half of each layer zero: give no sparsity")
            if self.allocation != "uniform":
                raise InputError(
                    f"allocation is {self.allocation!r}, expected 'uniform' with "
                    "pattern 2:4, which makes half of each layer zero"
                )
        elif self.sparsity is None or not 0 < self.sparsity < 1:
            raise InputError(f"sparsity is {self.sparsity}, expected more than 0 and less than 1")


def pruned_layers(network: Network, settings: OneShotConfig) -> tuple[str, ...]:
    """The layers that get zeros, in the network's order.

    Raises:
        InputError: too few weights for the target, an unknown layer is excluded, or a layer
            does not fit the pattern.
    """
    layers = prunable_layers(network, settings.exclude)
    for name in layers:
        check_pattern(network.by_name[name], settings.pattern)
    if settings.sparsity is not None:
        zeros_needed(network, layers, settings.sparsity)
    return layers


def plan_zeros(
    network: Network,
    weights: Mapping[str, Tensor],
    settings: OneShotConfig,
    importance: Mapping[str, Tensor] | None = None,
    variances: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """Zeros of each pruned layer.

    Args:
        weights: of each prunable layer, folded.
        importance: of each prunable layer's outputs [out], as `output_importance` gives it; for
            "sensitivity".
        variances: of each prunable layer's columns [columns], for the same.

    Raises:
        InputError: as `pruned_layers`.
    """
    layers = pruned_layers(network, settings)
    sizes = {name: network.by_name[name].weights for name in layers}
    if settings.sparsity is None:
        return {name: size // 2 for name, size in sizes.items()}
    group = GROUP if settings.pattern == "1x4" else 1
    if settings.allocation in ("global", "sensitivity"):
        needed = -(-zeros_needed(network, layers, settings.sparsity) // group)
        costs = [to_matrix(weights[name]).square() for name in layers]
        if settings.allocation == "sensitivity":
            assert importance is not None and variances is not None
            for name, cost in zip(layers, costs, strict=True):
                cost.mul_(importance[name][:, None]).mul_(variances[name])
        parts = [cost.reshape(-1, group).sum(dim=1) for cost in costs]
        least = LEAST_DENSITY if settings.allocation == "sensitivity" else 0.0
        chosen = cheapest(parts, needed, least)
        return {n: group * int(c.sum()) for n, c in zip(layers, chosen, strict=True)}
    allocate = erk_zeros if settings.allocation == "erk" else uniform_zeros
    zeros = allocate(network, layers, settings.sparsity)
    return {name: -(-count // group) * group for name, count in zeros.items()}


@torch.no_grad()
def prune_once(
    model: FasterRCNN,
    network_inputs: Sequence[Tensor],
    settings: OneShotConfig,
    *,
    held_out: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> PruningReport:
    """Prune a model in place.

    Args:
        model: without separate batch norms.
        network inputs: calibration photographs as `calibration.calibration_input` makes them.
        held_out: how many of them, the last ones, only measure.
        progress: called with (steps done, all steps, what is done now).

    Raises:
        InputError: the target is impossible, or the photographs cannot be used.
    """
    if not 1 <= held_out < len(network_inputs):
        raise InputError(
            f"{len(network_inputs)} calibration photographs, {held_out} of them held out: "
            "expected at least 1 of each kind"
        )
    weights = {name: conv.weight for name, conv in model.layers.items()}
    names = pruned_layers(model.network, settings)
    seen: Sequence[Tensor] = ()
    if settings.allocation == "sensitivity":
        seen = network_inputs[: min(len(network_inputs) - held_out, IMPORTANCE_PHOTOGRAPHS)]
    done = itertools.count()

    def note(what: str) -> None:
        if progress is not None:
            progress(next(done), len(seen) + 2 * len(names), what)

    importance: dict[str, Tensor] = {}
    if seen:
        importance = output_importance(model, seen, seed=settings.seed, note=note)
    dense = dense_outputs(
        model, network_inputs, names, held_out=held_out, seed=settings.seed, note=note
    )
    zeros = plan_zeros(model.network, weights, settings, importance, dense.variances)
    inputs_of_all = layer_inputs(
        model,
        network_inputs,
        names,
        dense,
        held_out=held_out,
        hessians=settings.method == "reconstruct",
        seed=settings.seed,
    )
    rows = []
    for inputs in inputs_of_all:
        note(f"pruning {inputs.name}")
        rows.append(
            _prune_layer(
                model.layers[inputs.name],
                inputs,
                zeros[inputs.name],
                settings,
                importance.get(inputs.name),
            )
        )
    total = sum(int((p == 0).sum()) for p in model.parameters())
    return PruningReport(
        settings.method, settings.pattern, tuple(rows), model.network.parameters, total
    )


def _prune_layer(
    conv: Any, inputs: LayerInputs, zeros: int, settings: OneShotConfig, importance: Tensor | None
) -> LayerPruning:
    """Replace a layer's weight and bias."""
    before = to_matrix(conv.weight)
    had = int((before == 0).sum())
    by_size = before.masked_fill(pruned_by_size(before, zeros, settings.pattern), 0.0)
    if inputs.hessian is None:
        after = by_size
    else:
        if importance is not None:
            importance = importance + EVEN * importance.mean() if importance.any() else None
        after = reconstruct(
            before, inputs.hessian, zeros, settings.pattern, pull=inputs.pull, importance=importance
        )
    error = output_error(before, after, inputs)
    size_error = error if after is by_size else output_error(before, by_size, inputs)
    conv.bias += inputs.missing + (before - after) @ inputs.mean
    conv.weight.copy_(from_matrix(after, conv.weight.shape))
    return LayerPruning(inputs.name, before.numel(), zeros, had, error, size_error)


def output_error(before: Tensor, after: Tensor, inputs: LayerInputs) -> float:
    """`LayerPruning.error` of a weight matrix that replaces another, bias moved along."""
    change = (inputs.held_out - inputs.mean) @ (after - before).T
    change -= inputs.held_out_missing - inputs.missing
    return float(change.norm() / inputs.held_out_size) if inputs.held_out_size > 0 else 0.0
