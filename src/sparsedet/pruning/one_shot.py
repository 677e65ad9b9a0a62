"""One-shot pruning of a trained network, without labels and without training.

Layers are pruned once, in the network's order, on the inputs that their pruned predecessors give
them: by magnitude, or by `reconstruct`, whose target is the output of the unpruned network, so that
a layer also makes up for its predecessors. Both then shift the bias so that every channel keeps the
unpruned network's mean over the calibration images.

The sensitivity of the network's outputs decides how many zeros each layer gets: removing a
weight w costs about w^2, times the variance of its column, times the `importance` of its output.
The cheapest weights of all layers are pruned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..model.graph import Graph
from ..torch_model import ConvModule, GraphModule
from .allocation import (
    LEAST_DENSITY,
    Allocation,
    erk_zeros,
    prunable_layers,
    uniform_zeros,
    zeros_needed,
)
from .calibration import LayerInputs, dense_outputs, layer_inputs
from .patterns import PATTERNS, UNSTRUCTURED
from .predictions import Form
from .progress import Keep, PruningState
from .reconstruct import reconstruct
from .report import LayerPruning, PruningReport
from .selection import from_matrix, keep_by_magnitude, keep_largest_of_layers, to_matrix
from .sensitivity import output_importance

Method = Literal["magnitude", "reconstruct"]

IMPORTANCE_IMAGES = 32
"""Images that importance is measured on."""
EVEN_IMPORTANCE = 0.3
"""Within a layer, this fraction of the mean importance is added to each output's. Without it,
unimportant outputs lose so many weights that a layer's error passes that of magnitude pruning, and
detections agree no better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneShotConfig:
    """Settings of one-shot pruning.

    Attributes:
        method: "magnitude" or "reconstruct".
        sparsity: zeros among ALL parameters, 0..1; None where the pattern fixes it.
        pattern: a name of `PATTERNS`.
        allocation: how the zeros are distributed over the layers. "global" ranks all weights by
            magnitude, "sensitivity" by the change of the network's outputs. None: "sensitivity"
            for "reconstruct" where the sparsity is free, else "uniform".
        exclude: layers left dense beside stem and predictors.
        seed: of the sampled output positions and images.
        damping: of reconstruction: added to the diagonal of a layer's Hessian, as a fraction of
            its mean. More of it keeps the weights closer to their present values, and fits the
            calibration images less.

    Raises:
        InputError: a setting is unknown, out of range, or contradicts the pattern.
    """

    method: Method = "reconstruct"
    sparsity: float | None = None
    pattern: str = UNSTRUCTURED.name
    allocation: Allocation | None = None
    exclude: tuple[str, ...] = ()
    seed: int = 0
    damping: float = 0.01

    def __post_init__(self) -> None:
        pattern = PATTERNS.get(self.pattern)
        fixed = pattern.fixed_sparsity if pattern else None
        if self.allocation is None:
            by_sensitivity = self.method == "reconstruct" and fixed is None
            object.__setattr__(self, "allocation", "sensitivity" if by_sensitivity else "uniform")
        for field, choices in (
            ("method", get_args(Method)),
            ("pattern", tuple(PATTERNS)),
            ("allocation", get_args(Allocation)),
        ):
            if getattr(self, field) not in choices:
                raise UsageError(f"{field} is {getattr(self, field)!r}, expected one of {choices}")
        if fixed is not None:
            reason = f"pattern {self.pattern} makes {fixed:g} of each layer zero"
            if self.sparsity is not None:
                raise UsageError(f"{reason}: give no sparsity")
            if self.allocation != "uniform":
                raise UsageError(f"allocation is {self.allocation!r}, expected 'uniform': {reason}")
        elif self.sparsity is None or not 0 < self.sparsity < 1:
            raise UsageError(f"sparsity is {self.sparsity}, expected more than 0 and less than 1")
        if not 1e-6 <= self.damping <= 1e6:
            raise UsageError(f"damping is {self.damping}, expected 1e-6..1e6")


def pruned_layers(graph: Graph, settings: OneShotConfig) -> tuple[str, ...]:
    """The layers that get zeros, in the network's order.

    Raises:
        InputError: the layers have too few weights for the target, an excluded layer is unknown,
            or a layer does not fit the pattern.
    """
    layers = prunable_layers(graph, settings.exclude)
    for name in layers:
        PATTERNS[settings.pattern].check_layer(graph.layer[name])
    if settings.sparsity is not None:
        zeros_needed(graph, layers, settings.sparsity)
    return layers


def plan_zeros(
    graph: Graph,
    weights: Mapping[str, Tensor],
    settings: OneShotConfig,
    importance: Mapping[str, Tensor] | None = None,
    variances: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """Number of zeros of each pruned layer.

    Args:
        weights: of each prunable layer, folded.
        importance: of each prunable layer's outputs [out], from `output_importance`; needed for
            "sensitivity".
        variances: of each prunable layer's columns [columns]; needed for "sensitivity".

    Raises:
        InputError: as `pruned_layers`.
    """
    layers = pruned_layers(graph, settings)
    pattern = PATTERNS[settings.pattern]
    if settings.sparsity is None:
        return {name: pattern.most_zeros(graph.layer[name].weights) for name in layers}
    if settings.allocation in ("global", "sensitivity"):
        zeros = zeros_needed(graph, layers, settings.sparsity)
        costs = [to_matrix(weights[name]).square() for name in layers]
        if settings.allocation == "sensitivity":
            assert importance is not None and variances is not None
            for name, cost in zip(layers, costs, strict=True):
                cost.mul_(importance[name][:, None]).mul_(variances[name])
        keep_blocks = keep_largest_of_layers(
            [pattern.block_costs(cost) for cost in costs],
            -(-zeros // pattern.zeros),
            LEAST_DENSITY if settings.allocation == "sensitivity" else 0.0,
        )
        return {
            name: pattern.zeros * int((~keep).sum())
            for name, keep in zip(layers, keep_blocks, strict=True)
        }
    allocate = erk_zeros if settings.allocation == "erk" else uniform_zeros
    layer_zeros = allocate(graph, layers, settings.sparsity)
    return {n: -(-count // pattern.zeros) * pattern.zeros for n, count in layer_zeros.items()}


@torch.no_grad()
def prune_once(
    model: GraphModule,
    network_inputs: Sequence[Tensor],
    settings: OneShotConfig,
    *,
    held_out: int,
    outputs: Sequence[tuple[str, Form]] = (),
    progress: Callable[[int, int, str], None] | None = None,
    state: PruningState | None = None,
    keep: Keep | None = None,
) -> PruningReport:
    """Prune a model in place.

    Args:
        model: without separate batch norms.
        network_inputs: one for each calibration image, from `calibration.calibration_input`.
        held_out: how many of them, the last ones, only measure the error.
        outputs: of a network without detections, from `reading.read_outputs`.
        progress: called with (steps done, all steps, description of the present step).
        state: what an earlier run of the same model, images and settings has done.
        keep: called with what is done, after the importance is measured and after each layer. An
            exception of `progress` or `keep` ends the run.

    Raises:
        InputError: the target is impossible, or the images cannot be used.
    """
    if not 1 <= held_out < len(network_inputs):
        raise InputError(
            f"{len(network_inputs)} calibration images, {held_out} of them held out: "
            "expected at least 1 of each kind"
        )
    weights = {name: conv.weight for name, conv in model.layers.items()}
    names = pruned_layers(model.graph, settings)
    importance_inputs: Sequence[Tensor] = ()
    if settings.allocation == "sensitivity":
        count = min(len(network_inputs) - held_out, IMPORTANCE_IMAGES)
        importance_inputs = network_inputs[:count]
    state = PruningState() if state is None else state
    if state.importance:
        importance_inputs = ()
    left = state.left(names)
    done = itertools.count()

    def note(description: str) -> None:
        if progress is not None:
            progress(next(done), len(importance_inputs) + 2 * len(left), description)

    if importance_inputs:
        state.importance = output_importance(
            model, importance_inputs, outputs, seed=settings.seed, note=note
        )
        if keep is not None:
            keep(state)
    dense = dense_outputs(
        model, network_inputs, left, held_out=held_out, seed=settings.seed, note=note
    )
    if not state.zeros:
        state.zeros = plan_zeros(model.graph, weights, settings, state.importance, dense.variances)
    state.put_into(model)  # not before the unpruned network's outputs are known
    inputs_of_layers = layer_inputs(
        model,
        network_inputs,
        left,
        dense,
        held_out=held_out,
        hessians=settings.method == "reconstruct",
        seed=settings.seed,
    )
    for inputs in inputs_of_layers:
        note(f"pruning {inputs.name}")
        conv = model.layers[inputs.name]
        row = _prune_layer(
            conv,
            inputs,
            state.zeros[inputs.name],
            settings,
            state.importance.get(inputs.name),
        )
        assert conv.bias is not None  # batch norm is folded
        state.add(row, conv.weight, conv.bias)
        if keep is not None:
            keep(state)
    total = sum(int((p == 0).sum()) for p in model.parameters())
    return PruningReport(
        settings.method, settings.pattern, tuple(state.layers), model.graph.parameters, total
    )


def _prune_layer(
    conv: ConvModule,
    inputs: LayerInputs,
    zeros: int,
    settings: OneShotConfig,
    importance: Tensor | None,
) -> LayerPruning:
    """Replace a layer's weight and bias."""
    pattern = PATTERNS[settings.pattern]
    before = to_matrix(conv.weight)
    had = int((before == 0).sum())
    by_magnitude = before.masked_fill(~keep_by_magnitude(before, zeros, pattern), 0.0)
    if inputs.hessian is None:
        after = by_magnitude
    else:
        if importance is not None:
            mean = importance.mean()
            importance = importance + EVEN_IMPORTANCE * mean if importance.any() else None
        after = reconstruct(
            before,
            inputs.hessian,
            zeros,
            pattern,
            cross_covariance=inputs.cross_covariance,
            importance=importance,
            damping=settings.damping,
        )
    error = output_error(before, after, inputs)
    magnitude_error = error
    if after is not by_magnitude:
        magnitude_error = output_error(before, by_magnitude, inputs)
    assert conv.bias is not None  # batch norm is folded
    conv.bias.add_(inputs.gap + (before - after) @ inputs.mean)
    conv.weight.copy_(from_matrix(after, conv.weight.shape))
    return LayerPruning(inputs.name, before.numel(), zeros, had, error, magnitude_error)


def output_error(before: Tensor, after: Tensor, inputs: LayerInputs) -> float:
    """`LayerPruning.error` when the weight matrix `after` replaces `before` and the bias is
    shifted along."""
    change = (inputs.held_out - inputs.mean) @ (after - before).T
    change -= inputs.held_out_gap - inputs.gap
    return float(change.norm() / inputs.held_out_norm) if inputs.held_out_norm > 0 else 0.0
